"""MAD candidates: any sequence of layers, each with a norm before it and a residual around it.

With B batch, S sequence, d = hidden_size, V vocabulary:

    x = E[tokens] + P[positions]                               (B, S, d), P where there is one
    x = x + layer(RMSNorm(x))                                  for every layer of the flat list
    logits = RMSNorm(x) H^T + b                                language model

    z = x[:, last]                                             auto-encoder, for compression
    x = z + P'                                                 (B, S, d), P' sines and cosines
    x = GELU(W RMSNorm(x) + b)                                 twice
    logits = RMSNorm(x) H^T + b

Every mixer (attention, a recurrence, a convolution) and every channel map (an MLP) is a layer;
`layers/` has one file for each, with its equations. A model is defined by the flat list of its
layers with all their numbers; `sequence.py` reads the short forms of such lists.

Sources: Poli et al. 2024, Mechanistic Design and Scaling of Hybrid Architectures, arXiv:2403.17844;
athms/mad-lab.
"""

from mlxhog.models.mad import model
from mlxhog.models.mad.architecture import read
from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.model import (
    EMBEDDING,
    HEAD,
    HEAD_BIAS,
    param_count,
    param_spec,
    state_sizes,
)

__all__ = [
    "EMBEDDING",
    "HEAD",
    "HEAD_BIAS",
    "MADConfig",
    "model",
    "param_count",
    "param_spec",
    "read",
    "state_sizes",
]
