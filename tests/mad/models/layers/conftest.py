"""One thread of torch: operators this small only wait for a second one."""

from tests.models.conftest import _one_thread

__all__ = ["_one_thread"]
