"""`mlxhog mad data`: write the rows of a task."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mlxhog.cli.flags import Json, Plugins
from mlxhog.cli.frame import Report, command, writable
from mlxhog.config.options import option, switch
from mlxhog.errors import ConfigError

OTHERWISE = "; a setting of the task is given as in --set vocab=32"
SIZES = ("vocab", "seq_len", "length", "test_length", "train_rows", "test_rows", "val_rows")


@dataclass(frozen=True, kw_only=True)
class Settings(Plugins):
    """The option --set of a task."""

    set: tuple[str, ...] = option(
        (), "a setting of the task, such as vocab=32 or seq_len=256; may be given several times",
        many=True, metavar="KEY=VALUE",
    )  # fmt: skip


def read_settings(words: Sequence[str]) -> dict[str, str]:
    """Return setting -> text of its value; a ConfigError if a word is not key=value, or repeats."""
    settings: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name or not value:
            raise ConfigError(f"--set {word!r}; wanted key=value, such as --set vocab=32")
        if name in settings:
            raise ConfigError(f"--set {name} is given twice; keep one")
        settings[name] = value
    return settings


@dataclass(frozen=True, kw_only=True)
class _Data(Settings, Json):
    dry_run: bool = switch("say what would be written, and stop")
    task: str = option("", "full or short name of the task, as in mlxhog mad tasks", required=True)
    out: str = option("", "file to write or replace", required=True)
    seed: int = option(12345, "seed of all draws", low=0)


@command("mad data", otherwise=OTHERWISE)
def data(config: _Data) -> Report:
    """Draw the training and test rows of a MAD task, and write them to an .npz file.

    It has train_inputs, train_targets, test_inputs, test_targets, and meta (JSON). Targets are
    aligned with inputs; -100 is ignored. One seed draws the same rows on every machine, and writes
    the same file. It says what a constant answer reaches (unigram_accuracy), and what all keys of
    the training rows reach (ceiling). `mlxhog mad tasks` lists the tasks and their settings.

    Examples:
        mad data --task in-context-recall --set vocab=16 --set seq_len=32 --out cr.npz
        mad data --task NR --set frac_noise=0.4 --set train_rows=6400 --out noisy.npz --json
        mad data --task M --set vocab=8192 --out map.npz --dry-run
    """
    values = read_settings(config.set)
    # These import NumPy: wrong flags are reported before.
    from mlxhog.mad import tasks
    from mlxhog.mad.tasks import dataset

    settings = tasks.resolve(config.task, values, origin="--set")
    path = writable("--out", config.out)
    facts: dict[str, Any] = {"file": str(path), "task": settings.name, "seed": config.seed}
    facts |= {name: getattr(settings, name) for name in SIZES}
    scored = settings.test_rows + settings.val_rows
    if config.dry_run:
        tokens = settings.train_rows * settings.length + scored * settings.test_length
        facts["array_bytes"] = tokens * 2 * (2 if settings.vocab <= 2**15 else 4)
        return Report(facts | {"dry_run": True})
    began = time.perf_counter()
    drawn = tasks.make_task(config.task, seed=config.seed, **values)
    seconds = time.perf_counter() - began
    facts |= {
        "ceiling": dataset.ceiling(drawn),
        "unigram_accuracy": dataset.unigram(drawn),
        "rows_per_s": (settings.train_rows + scored) / seconds,
        "seconds": seconds,
        "bytes": dataset.write(path, drawn),
    }
    return Report(facts)
