"""Options of `mlxhog train` that hold inside a candidate, too: how its workers train together.

With one worker there is nothing to choose: every strategy is the same then.
"""

from typing import Final

INSIDE: Final = (
    "strategy",
    "predict",
    "async_after",
    "average_every",
    "second_moment",
    "read",
    "write",
    "gpu_write",
    "kernels",
    "force",
    "restarts",
    "heartbeat_timeout_s",
    "max_nonfinite",
    "on_torn",
)
