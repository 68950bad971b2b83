"""Study lock-free training: theory, simulator, and the Hogwild paper's own problems.

Examples:
    research analyze latest
    research advise tiny
    research simulate --workers 16 --inject-stragglers 1=10
    research classic svm --workers 2
"""
