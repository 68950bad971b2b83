"""Mechanistic Architecture Design: synthetic tasks, candidates, architecture search.

Examples:
    mad data --task in-context-recall --task-set vocab=16 --task-set seq_len=32 --output cr.npz
    mad train --task in-context-recall --layers "mlstm swiglu mlstm swiglu"
    mad search --space space-small --suite smoke --parallel 2 --study first
    mad leaderboard first
"""
