"""List the cache: prepared texts, kernels, doctor's record; `cache clear` removes some.

Prepared texts have a bound: a new one takes the place of those unused for the longest time. `mlxhog
cache clear` removes them all, or some.

Examples:
    cache
    cache --json
    cache clear sotu --yes
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mlxhog.base.paths import expanded, path_from_here, quoted_paths
from mlxhog.base.quantities import format_bytes
from mlxhog.cli.frame import CommandResult, Json, argument, command, option, table
from mlxhog.errors import ConfigError, did_you_mean

KINDS = {
    "tokens": "the next run on such a text prepares it again",
    "kernels": "they are compiled again when they are needed",
    "doctor": "no run uses the GPU's own writes before the next mlxhog doctor",
    "named-files": "a plugin is not loaded again before you name it: --plugin FILE",
    "bases": "the next run with such a base converts it again",
    "digests": "the next command with an adapter reads its base model once more",
    "other": "this mlxhog has not made it",
}
"""Kinds of things in the cache folder, each with what its removal means."""

_MADE_AGAIN = ("tokens", "kernels", "bases")
_NAME_LENGTH = 12  # letters that are shown of the name of a prepared text


@dataclass(frozen=True)
class _Entry:
    name: str
    kind: str
    n_bytes: int
    used_s: float  # last use, in seconds since 1970
    remove: Callable[[], bool]  # whether it is gone
    text: str | None = None
    tokenizer: str | None = None
    in_use: bool = False

    @property
    def texts(self) -> list[str]:
        """The sources of its text, paths in full."""
        return self.text.split("\n") if self.text else []

    def is_called(self, name: str) -> bool:
        """Whether a user means it by a name, a text or a kind; another's file only by its name."""
        full = os.path.abspath(expanded(name))
        kind = None if self.kind == "other" else self.kind
        return name in (self.name, kind, *self.texts) or full in self.texts

    def to_json(self) -> dict[str, Any]:
        names = ("name", "kind", "text", "tokenizer", "used_s", "in_use")
        return {**{name: getattr(self, name) for name in names}, "bytes": self.n_bytes}

    def __str__(self) -> str:
        return f"{_text_here(self.texts) or self.name} ({format_bytes(self.n_bytes)})"


def _entries(folder: Path) -> list[_Entry]:
    """Return what is in the cache folder, tokens first, those of the last use first."""
    from mlxhog.backends import frozen
    from mlxhog.base.durable import disk_bytes, remove
    from mlxhog.data.prepare import stored_texts

    def gone(path: Path) -> bool:
        remove(path)
        return not os.path.lexists(path)

    if not folder.is_dir():
        return []
    texts = stored_texts(folder)
    of_texts = [
        _Entry(
            one.path.name[:_NAME_LENGTH], "tokens", one.n_bytes, one.used_s, one.remove,
            one.source, one.tokenizer, one.is_in_use,
        )
        for one in texts
    ]  # fmt: skip
    of_bases = [
        _Entry(
            "-".join((digest[:_NAME_LENGTH], held)), "bases", disk_bytes(path),
            path.lstat().st_mtime, partial(frozen.remove, path), in_use=in_use,
        )
        for path, in_use in frozen.converted(folder / "bases")
        for digest, _, held in [path.name.partition("-")]
    ]  # fmt: skip
    kinds = {
        "metal": "kernels", "named": "named-files", "doctor": "doctor", "digest": "digests",
    }  # fmt: skip
    known = {folder / "locks", folder / "bases", *(one.path for one in texts)}
    others = sorted(set(folder.iterdir()) - known)
    return of_texts + of_bases + [
        _Entry(
            path.name, kinds.get(path.name.partition("-")[0], "other"), disk_bytes(path),
            path.lstat().st_mtime, partial(gone, path),
        )
        for path in others
    ]  # fmt: skip


def _text_here(texts: list[str]) -> str:
    """Return the texts of a corpus as a user types them here."""
    return quoted_paths([str(path_from_here(Path(one))) for one in texts])


@command(otherwise="; cache lists what is kept: `mlxhog cache clear` removes it")
def run(_: Json) -> CommandResult:
    from mlxhog.base.cache import user_cache_directory
    from mlxhog.data.prepare import max_bytes

    folder = user_cache_directory()
    entries = _entries(folder)
    payload: dict[str, Any] = {
        "folder": str(folder),
        "bytes": sum(one.n_bytes for one in entries),
        "token_bytes": sum(one.n_bytes for one in entries if one.kind == "tokens"),
        "max_token_bytes": max_bytes(folder),
        "entries": [one.to_json() for one in entries],
    }
    total, tokens, limit = (
        format_bytes(payload[name]) for name in ("bytes", "token_bytes", "max_token_bytes")
    )
    note = f"{total} in {folder}: tokens {tokens} of at most {limit}"
    return CommandResult(
        payload, [table("", list(map(_row, entries)), [note])] if entries else note
    )


def _row(entry: _Entry) -> dict[str, str]:
    used = time.localtime(max(0.0, entry.used_s))
    return {
        "name": entry.name,
        "kind": entry.kind,
        "text": _text_here(entry.texts) or "-",
        "tokenizer": entry.tokenizer or "-",
        "size": format_bytes(entry.n_bytes),
        "last used": "now" if entry.in_use else time.strftime("%Y-%m-%d %H:%M", used),
    }


@dataclass(frozen=True, kw_only=True)
class _Clear(Json):
    names: tuple[str, ...] = argument(
        "[NAME...]",
        "a name, a text or a kind as mlxhog cache lists them; all tokens and kernels without one",
        (),
    )
    yes: bool = option(False, "remove them; without it they are only listed")


@command(writes=True)
def clear(config: _Clear) -> CommandResult:
    """Remove prepared texts and compiled kernels, which the next run makes again, or what is named.

    What a process uses stays. The record of doctor and the list of plugins that you have named are
    removed by their names only: doctor, named-files.

    Examples:
        cache clear
        cache clear --yes
        cache clear tokens notes/ --yes
    """
    from mlxhog.base.cache import user_cache_directory

    entries = _entries(user_cache_directory())
    for name in config.names:
        if not name or not any(one.is_called(name) for one in entries):
            known = [text for one in entries for text in (one.name, one.kind, *one.texts)]
            hint = did_you_mean(name, known) or "; mlxhog cache lists what there is"
            raise ConfigError(f"nothing in the cache is called {name!r}{hint}")
    wanted = config.names or _MADE_AGAIN
    chosen = [one for one in entries if any(map(one.is_called, wanted))]
    free = [one for one in chosen if not one.in_use]
    if free and not config.yes:
        means = [f"{kind}: {KINDS[kind]}" for kind in dict.fromkeys(one.kind for one in free)]
        listed = ", ".join(map(str, free))
        raise ConfigError(
            f"would remove {listed}; {'; '.join(means)}; run it again with --yes to remove them"
        )
    removed = [one for one in free if one.remove()]
    kept = [one for one in chosen if one not in removed]
    payload = {
        "removed": [one.to_json() for one in removed],
        "bytes": sum(one.n_bytes for one in removed),
        "kept": [one.to_json() for one in kept],
    }
    lines = [f"removed {one}" for one in removed] or ["nothing is removed"]
    return CommandResult(
        payload, lines + [f"kept {one}: in use, or the system refuses" for one in kept]
    )
