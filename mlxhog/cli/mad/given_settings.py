"""Settings of a task on a command line: `--set key=value`, as often as one likes."""

from __future__ import annotations

from collections.abc import Sequence

from mlxhog.cli.flags import Flags
from mlxhog.errors import ConfigError

FLAG = "--set"


def add(flags: Flags) -> None:
    """Add the flag to a command; its words are in `Parsed.other.set`."""
    flags.argument(
        FLAG,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting of the task, such as vocab=32 or seq_len=256; may be given several times",
    )
    flags.otherwise(f"; a setting of the task is given as in {FLAG} vocab=32")


def read(words: Sequence[str]) -> dict[str, str]:
    """Return setting -> value as written; `tasks.resolve(.., origin=FLAG)` gives it meaning.

    Raises:
        ConfigError: a word is no key=value, or a key is given twice.
    """
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name or not value:
            raise ConfigError(f"{FLAG} {word!r}; wanted key=value, such as {FLAG} vocab=32")
        if name in found:
            raise ConfigError(f"{FLAG} {name} is given twice; keep one")
        found[name] = value
    return found
