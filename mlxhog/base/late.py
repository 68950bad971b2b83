"""NumPy, imported when it is first used.

Files with the options of a run compute as well. They take NumPy from here, so that help and errors
about options need not wait for it: `from mlxhog.base.late import np`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
else:

    class _Late:
        """A module that is imported when an attribute of it is first looked up."""

        def __init__(self, name: str) -> None:
            self._name, self._module = name, None

        def __getattr__(self, attribute: str) -> Any:
            if self._module is None:
                self._module = importlib.import_module(self._name)
            return getattr(self._module, attribute)

    np = _Late("numpy")

__all__ = ["np"]
