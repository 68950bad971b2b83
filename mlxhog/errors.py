"""Every exception of mlxhog.

A message names the thing, what it got, what it wanted and the way out. `exit_code` is what the
command line returns when the exception ends a command. A message is never longer than
`MOST_CHARACTERS`, however much of a file it quotes.
"""

MOST_CHARACTERS = 4000
_KEPT_AT_END = 1000  # where the way out stands


class MlxhogError(Exception):
    """Base of every error a user can meet."""

    exit_code = 2

    def __init__(self, message: str = "") -> None:
        left_out = len(message) - MOST_CHARACTERS
        if left_out > 0:
            message = (
                f"{message[: MOST_CHARACTERS - _KEPT_AT_END]} [{left_out:,} characters left out] "
                f"{message[-_KEPT_AT_END:]}"
            )
        super().__init__(message)


class ConfigError(MlxhogError):
    """An option is unknown, has the wrong type, or contradicts another one."""


class DataError(MlxhogError):
    """A corpus, data set, tokenizer or token file is missing, empty, malformed or too short."""


class ShapeError(MlxhogError):
    """An array does not have the shape its slot in the arena or the model has."""


class ArenaError(MlxhogError):
    """A shared segment is truncated, foreign, corrupted or of another layout."""


class WriteModeError(ArenaError):
    """A writer asked for another write mode than the arena was created with."""


class CheckpointError(MlxhogError):
    """A checkpoint is missing, incomplete, corrupted or of another architecture."""


class RunError(MlxhogError):
    """A run directory is missing, in use by another process, or not a run."""


class StudyError(MlxhogError):
    """A study directory is missing, in use, of another version, or of another space."""


class EnvironmentLacks(MlxhogError):
    """The machine lacks something: a backend, a package, memory or disk space."""

    exit_code = 3


class MetalError(MlxhogError):
    """A Metal kernel does not compile, or failed while it ran."""

    exit_code = 3


class Diverged(MlxhogError):
    """Training met too many non-finite gradients in a row."""

    exit_code = 4


class WorkerFailed(MlxhogError):
    """A worker died more often than the restart limit allows, or of an error that stays."""

    exit_code = 1
