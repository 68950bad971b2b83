"""Mechanistic Architecture Design: tasks, training and scoring, and search over architectures.

Source: Poli et al. 2024, Mechanistic Design and Scaling of Hybrid Architectures, arXiv:2403.17844.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlxhog.mad.api import search

__all__ = ["search"]


def __getattr__(name: str) -> object:
    """Import a public name on first use (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mlxhog.mad import api

    return getattr(api, name)
