"""Every exception of mlxhog, and how their messages quote values, other errors and known words.

A message names the thing, its value, the expected value and the way out. `exit_code` is the exit
code of a command that the exception ends. A message has no control character but line ends,
so no terminal obeys the name of a file or a tensor. It is hardly longer than `MAX_CHARACTERS`,
however much of a file it quotes, and of a compiler's text it keeps the errors before the warnings;
quoting any value needs little memory.
"""

import difflib
import reprlib
from collections.abc import Iterable

FAILED, WRONG_INPUT, LACKS, DIVERGED, INTERRUPTED = 1, 2, 3, 4, 130
"""Exit codes of a command that does not end with 0, see `mlxhog --help`."""

_METAL_SAYS = "Command buffer execution failed"  # through MLX
MAX_CHARACTERS = 4000
_KEPT_AT_END = 1000  # where the way out stands
MAX_SHOWN = 100
"""Characters of a value in a message."""

MAX_SUGGESTIONS = 20
"""Unknown names that get a suggestion; it takes a millisecond each, and few problems are shown."""


class MlxhogError(Exception):
    """Base of every error that a user can see."""

    exit_code = WRONG_INPUT

    def __init__(self, message: str = "") -> None:
        message = visible(message)
        left_out = len(message) - MAX_CHARACTERS
        if left_out > 0:
            end = len(message) - _KEPT_AT_END
            end = message.rfind("\n", end - 2 * MAX_SHOWN, end) + 1 or end
            first, line_end, rest = message[:end].partition("\n")
            if "error:" in rest:
                first, rest = first[:_KEPT_AT_END], _errors_first(rest)
            begin = (first + line_end + rest)[: MAX_CHARACTERS - len(message) + end]
            message = f"{begin} [{left_out:,} characters left out] {message[end:]}"
        super().__init__(message)

    def say_more(self, text: str) -> None:
        """Add to the message what became of the work that the error ended."""
        self.args = MlxhogError(f"{self}; {text}").args


class ConfigError(MlxhogError):
    """An option is unknown, has the wrong type, or contradicts another one."""


class DataError(MlxhogError):
    """A corpus, data set, tokenizer or token file is missing, empty, malformed or too short."""


class ShapeError(MlxhogError):
    """An array does not have the shape its slot in the arena or the model has."""


class ArenaError(MlxhogError):
    """A shared segment is truncated, foreign, corrupted or of another layout."""


class CheckpointError(MlxhogError):
    """A checkpoint is missing, incomplete, corrupted or of another architecture."""


class RunError(MlxhogError):
    """A run directory is missing, in use by another process, or not a run."""


class StudyError(MlxhogError):
    """A study directory is missing, in use, of another version, or of another space."""


class EnvironmentLacks(MlxhogError):
    """The machine lacks something: a backend, a package, memory or disk space."""

    exit_code = LACKS


class MetalError(MlxhogError):
    """A Metal kernel does not compile, or failed while it ran."""

    exit_code = LACKS


class LostGPU(MetalError):
    """A GPU gave up work, so what its memory holds is not the result; a new process may go on."""


def is_lost_gpu(error: BaseException) -> bool:
    """Whether an error or its cause is Metal's error of unfinished work, see `LostGPU`."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, LostGPU) or _METAL_SAYS in str(cause):
            return True
        cause = cause.__cause__
    return False


class Diverged(MlxhogError):
    """Numbers are not finite: too many gradients in a row, or a model's loss or logits.

    Generating, scoring and measuring raise it; `train` returns a result of status "diverged".
    """

    exit_code = DIVERGED


class WorkerFailed(MlxhogError):
    """A worker died more often than the restart limit allows, or of an error that would repeat."""

    exit_code = FAILED


def shown(value: object, most: int = MAX_SHOWN) -> str:
    """Return `repr(value)`, shortened to about `most` characters, for any value.

    >>> shown([1, "two"])
    "[1, 'two']"
    >>> shown("x" * 1000, most=20)
    "'xxxxxxx...xxxxxxxx'"
    """
    text = _SHORT.repr(value)
    if len(text) <= most:
        return text
    half = (most - 3) // 2
    return f"{text[:half]}...{text[-(most - 3 - half) :]}"


def visible(text: str) -> str:
    r"""Return a text with its control characters but line ends as escapes, such as \x1b.

    >>> print(visible("a\x1b[2J\nb"))
    a\x1b[2J
    b
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def message_of(error: BaseException) -> str:
    """Return another package's message: one line, bounded, without escape sequences."""
    name = "too little memory" if isinstance(error, MemoryError) else type(error).__name__
    return one_line(str(error)) or name


def one_line(text: str, most: int = 2 * MAX_SHOWN) -> str:
    r"""Return a text as one line of about `most` characters; a compiler's errors stand first.

    >>> one_line("2 diagnostics\na.h:1: warning: unused\na.h:2: error: no such type", most=30)
    'a.h:2: error: no such type 2 d...'
    """
    text = text if len(text) <= most else _errors_first(text)[: 5 * most]
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= most else f"{text[:most]}..."


def whole_text(error: BaseException) -> str:
    """Return another package's message with its lines, bounded as one of ours, for a record."""
    return str(MlxhogError(str(error))) or type(error).__name__


def _errors_first(text: str) -> str:
    """Put a compiler's errors before its warnings, which can be many."""
    return "\n".join(sorted(text.split("\n"), key=lambda line: "error:" not in line))


def not_imported(package: str, error: Exception, advice: str) -> EnvironmentLacks:
    """Return the error for a failed import of a package.

    Args:
        package: that was imported.
        error: of the import.
        advice: the message if the package is not installed.
    """
    if isinstance(error, ModuleNotFoundError) and error.name == package:
        return EnvironmentLacks(advice)
    return EnvironmentLacks(
        f"the package {package} is installed and cannot be loaded: {message_of(error)}; if memory "
        "is short, end other programs or raise the limit (ulimit -v), else install it again"
    )


UNLOADABLE = (ImportError, OSError, MemoryError, RuntimeError, SystemError)
"""Errors of an import: the package is missing, or its libraries cannot be loaded."""


def nearest(word: object, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the known word nearest to `word`, ignoring case; None if no word is near."""
    spelled = {one.lower(): one for one in known}
    near = difflib.get_close_matches(str(word)[:MAX_SHOWN].lower(), spelled, n=1, cutoff=cutoff)
    return spelled[near[0]] if near else None


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for another known word nearest to `word`, or nothing."""
    near = nearest(word, (one for one in known if one != word))
    return f"; did you mean {near!r}?" if near else ""


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxother = 4, MAX_SHOWN
        self.maxstring = 10 * MAX_SHOWN  # `shown` cuts; this bounds the work
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = self.maxfrozenset = 16

    def repr_int(self, x: int, level: int) -> str:
        digits = x.bit_length() * 0.30103
        return repr(x) if digits < MAX_SHOWN else f"a whole number of {digits:.0f} digits"


_SHORT = _Short()
