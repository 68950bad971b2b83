"""Mechanistic Architecture Design: tasks, training and scoring, and search over architectures.

    from mlxhog import mad

    study = mad.search("space-small", study="first", tasks="in-context-recall")
    for candidate in study:  # the best first
        print(candidate.score, candidate.candidate)
    mad.deepen("first", depth=8, output="deep.yaml")

Source: Poli et al. 2024, Mechanistic Design and Scaling of Hybrid Architectures, arXiv:2403.17844.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlxhog.mad.api import Study, bench, deepen, leaderboard, search
    from mlxhog.mad.samplers.space import Space

__all__ = ["Space", "Study", "bench", "deepen", "leaderboard", "search"]


def __getattr__(name: str) -> object:
    """Import a public name on first use (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "mlxhog.mad.samplers.space" if name == "Space" else "mlxhog.mad.api"
    return getattr(importlib.import_module(home), name)
