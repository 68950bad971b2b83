"""Text to training batches: corpora, tokenizers, token files, the order of sequences, tickets.

Pure NumPy: one source of numbers for the MLX and the torch worker.
"""
