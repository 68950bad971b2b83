"""Small functions in float64 NumPy that the references of several layers share."""

import math

import numpy as np

from mlxhog.models.mad.layer import Float


def rms_norm(x: Float, w: Float, eps: float) -> Float:
    """Return w * x / sqrt(mean(x^2) + eps) over the last axis."""
    normed: Float = x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)
    return w * normed


def sigmoid(x: Float) -> Float:
    """Return 1 / (1 + exp(-x)), without overflow."""
    found: Float = np.exp(-np.logaddexp(0.0, -x))
    return found


def softplus(x: Float) -> Float:
    """Return log(1 + exp(x)), without overflow."""
    found: Float = np.logaddexp(x, 0.0)
    return found


def silu(x: Float) -> Float:
    """Return x * sigmoid(x)."""
    return x * sigmoid(x)


def gelu(x: Float) -> Float:
    """Return GELU, x times the normal distribution up to x, by erf (arXiv:1606.08415)."""
    area: Float = 0.5 * np.vectorize(math.erfc, otypes=[float])(-x / math.sqrt(2.0))
    return x * area


def gelu_tanh(x: Float) -> Float:
    """Return GELU in its form with tanh (Hendrycks and Gimpel 2016, arXiv:1606.08415)."""
    found: Float = 0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3)))
    return found
