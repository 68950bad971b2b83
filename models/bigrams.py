"""Bigram initialization of the embedding and the head of a language model.

A model whose blocks add nothing yet has the logits W norm(E[x]), which depend on the last token
alone. This initialization makes them those of a bigram model: with the share P(x, y) of the bigram
x, y in the training text, and the shares P(x) and P(y) of the tokens,

    log(1 + P(x, y) / (P(x) P(y))) (P(x) P(y))^1/4  ~  U S V^T

of rank d - 1. Token x begins with the row P(x)^-1/4 U S^1/2, scaled to length 1, and a 1 after it;
the head with the rows P(y)^-1/4 V S^1/2, times a constant, and log P(y) after it. So tokens in
similar contexts have similar rows.

Source: this matrix as what word embeddings factorize: Levy and Goldberg 2014, Neural Word Embedding
as Implicit Matrix Factorization (NeurIPS 27); the decomposition by random projections, which takes
a third of the time of SciPy's `svds`: Halko, Martinsson and Tropp 2011, doi:10.1137/090771806.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

WEIGHT = 0.25  # power of the shares; 0, 1/4 and 1/2 are within .01 bits per byte of each other
STRENGTH = 8.0  # mean length of a row of the head, for an embedding of length 1
MAX_RANK = 255  # rank in wider models; their other columns begin as zeros
MAX_TOKENS = 1 << 22  # counted at most
_BLOCK = 4096  # consecutive tokens, if not all are counted
_OVERSAMPLING = 16  # random directions beside the rank
_EPS = 1e-9  # smallest divisor
_NOISE = 1e-13  # eigenvalues below this share of the largest are noise

Float32 = NDArray[np.float32]


def embedding_and_head(
    tokens: NDArray[np.unsignedinteger[Any]], vocab_size: int, width: int
) -> tuple[Float32, Float32]:
    """Return E, with rows as long as sqrt(2), and W, (V, d) float32 each.

    `tokens` (n,) are the training text; the bigrams of evenly spaced blocks are counted if it is
    long. Takes .3 s for 2 M tokens, a vocabulary of 8,192 and width 128.
    """
    shares, matrix = _bigram_matrix(tokens, vocab_size)
    rank = min(width - 1, MAX_RANK, vocab_size)
    left, values, right = _truncated_svd(matrix, rank)
    spread = np.sqrt(values) / shares[:, None] ** WEIGHT
    rows, heads = left * spread, right * spread
    embedding, head = np.zeros((2, vocab_size, width), np.float32)
    embedding[:, :rank] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), _EPS)
    embedding[:, rank] = 1.0
    head[:, :rank] = heads * STRENGTH / math.sqrt(max(shares @ (heads**2).sum(1), _EPS))
    head[:, rank] = np.log(shares)
    return embedding, head / math.sqrt(width / 2)  # the norm makes rows of E as long as sqrt(d)


def _bigram_matrix(tokens: NDArray[Any], vocab_size: int) -> tuple[Float32, Any]:
    """Return the shares of the tokens, (V,), and the matrix to decompose, sparse (V, V)."""
    from scipy.sparse import csr_array  # .1 s

    if len(tokens) > MAX_TOKENS:
        blocks = tokens[: len(tokens) // _BLOCK * _BLOCK].reshape(-1, _BLOCK)
        tokens = blocks[:: -(-len(tokens) // MAX_TOKENS)].reshape(-1)
    ids = tokens.astype(np.int64)
    counts = np.bincount(ids, minlength=vocab_size) + 0.5
    shares = (counts / counts.sum()).astype(np.float32)
    bigram, n = np.unique(ids[:-1] * vocab_size + ids[1:], return_counts=True)
    first, second = np.divmod(bigram, vocab_size)
    expected = shares[first] * shares[second]
    value = np.log1p(n / n.sum() / expected) * expected**WEIGHT
    shape = (vocab_size, vocab_size)
    return shares, csr_array((value.astype(np.float32), (first, second)), shape=shape)


def _truncated_svd(matrix: Any, rank: int) -> tuple[Float32, Float32, Float32]:
    """Return U (V, rank), S (rank,) and V (V, rank) of a truncated singular value decomposition."""
    directions = min(rank + _OVERSAMPLING, matrix.shape[0])
    random = np.random.Generator(np.random.Philox(key=0))
    start = random.standard_normal((matrix.shape[0], directions), np.float32)
    sample = (matrix @ (matrix.T @ (matrix @ start))).astype(np.float64)
    # Not by QR: beside other busy processes OpenBLAS takes seconds for it.
    squares, rotation = np.linalg.eigh(sample.T @ sample)
    rotation /= np.sqrt(np.maximum(squares, _NOISE * squares[-1] + _EPS))
    basis = (sample @ rotation).astype(np.float32)
    scaled = matrix.T @ basis  # V S U^T in this basis
    squares, left = np.linalg.eigh(scaled.T @ scaled)
    squares, left = squares[: -rank - 1 : -1], left[:, : -rank - 1 : -1]
    values = np.sqrt(np.maximum(squares, _EPS))
    return basis @ left, values, scaled @ left / values
