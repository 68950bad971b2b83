"""Training batches from text: corpora, tokenizers, token files, the order of sequences, tickets.

Pure NumPy, so that MLX and torch workers get the same numbers.
"""
