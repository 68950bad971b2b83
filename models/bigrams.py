"""Initial embedding and head of a language model: what counts of pairs of words say at once.

A model whose blocks add nothing yet has the logits W norm(E[x]), which depend on the last word
alone. Training spends its first tokens on what counting pairs says: with the share P(x, y) of the
pair x, y among all pairs of the training text, and the shares P(x) and P(y) of the words,

    log(1 + P(x, y) / (P(x) P(y))) (P(x) P(y))^1/4  ~  U S V^T

of rank d - 1. Word x begins with the row P(x)^-1/4 U S^1/2, made as long as 1, and a 1 behind it;
the head with the rows P(y)^-1/4 V S^1/2, times a constant, and log P(y) behind it. So words in
like surroundings have like rows, and rare words begin with what the whole text says of them.

Source: this matrix as what embeddings of words factorize: Levy and Goldberg 2014, Neural Word
Embedding as Implicit Matrix Factorization (NeurIPS 27); the decomposition by random projections,
which takes a third of the time of SciPy's `svds`: Halko, Martinsson and Tropp 2011,
doi:10.1137/090771806.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

WEIGHT = 0.25  # power of the shares; 0, 1/4 and 1/2 are within .01 bits per byte of each other
STRENGTH = 8.0  # mean length of a row of the head, for a last word of length 1
MAX_RANK = 255  # directions of wider models; the others begin as zeros
MAX_TOKENS = 1 << 22  # counted at most
_BLOCK = 4096  # tokens in a row, if not all are counted
_MORE = 16  # random directions beside the rank
_LEAST = 1e-9  # divisor of what is 0
_NO_DIRECTION = 1e-13  # share of the largest square below which a direction is noise

Float32 = NDArray[np.float32]


def embedding_and_head(
    tokens: NDArray[np.unsignedinteger[Any]], vocab_size: int, width: int
) -> tuple[Float32, Float32]:
    """Return E, with rows as long as sqrt(2), and W, (V, d) float32 each.

    `tokens` (n,) are the training text; the pairs of evenly spaced parts are counted if it is long.
    Takes .3 s for 2 M tokens, 8,192 words and width 128.
    """
    shares, pairs = _counted(tokens, vocab_size)
    rank = min(width - 1, MAX_RANK, vocab_size)
    left, values, right = _decomposed(pairs, rank)
    spread = np.sqrt(values) / shares[:, None] ** WEIGHT
    words, heads = left * spread, right * spread
    embedding, head = np.zeros((2, vocab_size, width), np.float32)
    embedding[:, :rank] = words / np.maximum(np.linalg.norm(words, axis=1, keepdims=True), _LEAST)
    embedding[:, rank] = 1.0
    head[:, :rank] = heads * STRENGTH / math.sqrt(max(shares @ (heads**2).sum(1), _LEAST))
    head[:, rank] = np.log(shares)
    return embedding, head / math.sqrt(width / 2)  # the norm makes rows of E as long as sqrt(d)


def _counted(tokens: NDArray[Any], vocab_size: int) -> tuple[Float32, Any]:
    """Return the shares of the words, (V,), and the matrix to decompose, sparse (V, V)."""
    from scipy.sparse import csr_array  # .1 s

    if len(tokens) > MAX_TOKENS:
        blocks = tokens[: len(tokens) // _BLOCK * _BLOCK].reshape(-1, _BLOCK)
        tokens = blocks[:: -(-len(tokens) // MAX_TOKENS)].reshape(-1)
    ids = tokens.astype(np.int64)
    counts = np.bincount(ids, minlength=vocab_size) + 0.5
    shares = (counts / counts.sum()).astype(np.float32)
    pair, n = np.unique(ids[:-1] * vocab_size + ids[1:], return_counts=True)
    first, second = np.divmod(pair, vocab_size)
    expected = shares[first] * shares[second]
    value = np.log1p(n / n.sum() / expected) * expected**WEIGHT
    shape = (vocab_size, vocab_size)
    return shares, csr_array((value.astype(np.float32), (first, second)), shape=shape)


def _decomposed(matrix: Any, rank: int) -> tuple[Float32, Float32, Float32]:
    """Return U (V, rank), S (rank,) and V (V, rank) of a truncated singular value decomposition."""
    directions = min(rank + _MORE, matrix.shape[0])
    random = np.random.Generator(np.random.Philox(key=0))
    start = random.standard_normal((matrix.shape[0], directions), np.float32)
    sample = (matrix @ (matrix.T @ (matrix @ start))).astype(np.float64)
    # Not by QR: beside other busy processes OpenBLAS takes seconds for it.
    squares, turned = np.linalg.eigh(sample.T @ sample)
    turned /= np.sqrt(np.maximum(squares, _NO_DIRECTION * squares[-1] + _LEAST))
    basis = (sample @ turned).astype(np.float32)
    scaled = matrix.T @ basis  # V S U^T in this basis
    squares, left = np.linalg.eigh(scaled.T @ scaled)
    squares, left = squares[: -rank - 1 : -1], left[:, : -rank - 1 : -1]
    values = np.sqrt(np.maximum(squares, _LEAST))
    return basis @ left, values, scaled @ left / values
