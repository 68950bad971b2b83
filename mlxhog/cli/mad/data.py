"""`mlxhog mad data` and `mlxhog mad check`: write the rows of a task, and check such files."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxhog.base.paths import expanded
from mlxhog.base.quantities import format_bytes
from mlxhog.cli.flags import Flags
from mlxhog.cli.output import print_json
from mlxhog.config.options import option
from mlxhog.errors import ConfigError, DataError

if TYPE_CHECKING:
    from mlxhog.mad.tasks import Dataset, Task

SET_FLAG = "--set"


def add_task_flags(flags: Flags) -> None:
    """Add `--plugin`, and `--set` with its words in `Parsed.other.set`."""
    flags.plugin()
    flags.argument(
        SET_FLAG,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting of the task, such as vocab=32 or seq_len=256; may be given several times",
    )
    flags.otherwise(f"; a setting of the task is given as in {SET_FLAG} vocab=32")


def read_settings(words: Sequence[str]) -> dict[str, str]:
    """Return setting -> text of its value, for `tasks.resolve(.., origin=SET_FLAG)`.

    Raises:
        ConfigError: a word is not key=value, or a key is given twice.
    """
    settings: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name or not value:
            raise ConfigError(f"{SET_FLAG} {word!r}; wanted key=value, such as {SET_FLAG} vocab=32")
        if name in settings:
            raise ConfigError(f"{SET_FLAG} {name} is given twice; keep one")
        settings[name] = value
    return settings


DATA_ABOUT = """\
Draw the training and test rows of a MAD task, and write them to an .npz file: train_inputs,
train_targets, test_inputs, test_targets, and meta (JSON). Targets are aligned with inputs; -100 is
ignored. One seed draws the same rows on every machine.
`mlxhog mad tasks` lists the tasks and their settings."""
DATA_EXAMPLES = (
    "mad data --task in-context-recall --set vocab=16 --set seq_len=32 --out cr.npz",
    "mad data --task NR --set frac_noise=0.4 --train-rows 6400 --out noisy.npz --json",
    "mad data --task M --set vocab=8192 --out map.npz --dry-run",
)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Options of `mlxhog mad data`."""

    task: str | None = option(None, "full or short name of the task, as in mlxhog mad tasks")
    out: str | None = option(None, "file to write or replace")
    seed: int = option(12345, "seed of all draws", low=0)
    train_rows: int | None = option(None, "rows to train on", low=1, none="the task's")
    test_rows: int | None = option(None, "rows to score on", low=1, none="the task's")
    val_rows: int | None = option(None, "rows of a third split", low=0, none="the task's")


def run_data(arguments: list[str]) -> int:
    """Run the command; returns its exit code."""
    flags = Flags("mad data", DATA_ABOUT, DATA_EXAMPLES)
    add_task_flags(flags)
    flags.argument("--dry-run", action="store_true", help="say what would be written, and stop")
    flags.argument("--json", action="store_true", help="one JSON object")
    parsed, config = flags.read(DataConfig, arguments)
    values = _task_settings(config, parsed.other.set)
    if config.task is None or config.out is None:
        lacks = "--task" if config.task is None else "--out"
        raise ConfigError(f"mad data lacks {lacks}, as in `mlxhog {DATA_EXAMPLES[0]}`")
    # These import NumPy: wrong flags are reported before.
    from mlxhog.mad import tasks

    settings = tasks.resolve(config.task, values, origin=SET_FLAG)
    path = _place(config.out)
    if parsed.other.dry_run:
        return _say(_planned(settings, config), path, parsed.other.json)
    from mlxhog.mad.tasks import dataset as files

    began = time.perf_counter()
    data = tasks.make_task(config.task, seed=config.seed, **values)
    seconds = time.perf_counter() - began
    written = files.write(path, data)
    return _say(_done(data, settings, seconds, written), path, parsed.other.json)


def _task_settings(config: DataConfig, words: list[str]) -> dict[str, Any]:
    """Return the settings of both kinds of flags."""
    values: dict[str, Any] = dict(read_settings(words))
    for name in ("train_rows", "test_rows", "val_rows"):
        value = getattr(config, name)
        if value is not None:
            if name in values:
                flag = "--" + name.replace("_", "-")
                raise ConfigError(f"{flag} and {SET_FLAG} {name} are the same; keep one")
            values[name] = value
    return values


def _place(out: str) -> Path:
    """Return the path of the file, before rows are drawn.

    Raises:
        ConfigError: it cannot be written.
    """
    path = expanded(out)
    if not out:
        raise ConfigError("--out is empty; name a file, such as cr.npz")
    if path.is_dir() or not path.name:
        raise ConfigError(f"--out {out} is a folder; name a file, such as {out.rstrip('/')}/cr.npz")
    if not path.parent.is_dir():
        raise ConfigError(f"--out {out}: no folder {str(path.parent)!r}; create it first")
    return path


def _planned(settings: Task, config: DataConfig) -> dict[str, Any]:
    """Return the size of the file before packing."""
    scored = settings.test_rows + settings.val_rows
    tokens = settings.train_rows * settings.length + scored * settings.test_length
    return {
        **_facts(settings, config.seed),
        "array_bytes": tokens * 2 * (2 if settings.vocab <= 2**15 else 4),
        "dry_run": True,
    }


def _facts(settings: Task, seed: int) -> dict[str, Any]:
    return {
        "task": settings.name,
        "seed": seed,
        "vocab": settings.vocab,
        "seq_len": settings.seq_len,
        "length": settings.length,
        "test_length": settings.test_length,
        "train_rows": settings.train_rows,
        "test_rows": settings.test_rows,
        "val_rows": settings.val_rows,
    }


def _done(data: Dataset, settings: Task, seconds: float, written: int) -> dict[str, Any]:
    from mlxhog.mad.tasks.dataset import ceiling, unigram

    rows = settings.train_rows + settings.test_rows + settings.val_rows
    return {
        **_facts(settings, int(data.meta["seed"])),
        "ceiling": ceiling(data),
        "unigram_accuracy": unigram(data),
        "rows_per_s": rows / seconds,
        "seconds": seconds,
        "bytes": written,
    }


def _say(facts: dict[str, Any], path: Path, as_json: bool) -> int:
    facts = {"file": str(path), **facts}
    if as_json:
        print_json(facts)
        return 0
    rows = f"{facts['train_rows']:,} train, {facts['test_rows']:,} test"
    rows += f", {facts['val_rows']:,} val" if facts["val_rows"] else ""
    what = f"{facts['task']}, vocab {facts['vocab']}, {rows} rows of {facts['length']} tokens"
    if facts["test_length"] != facts["length"]:
        what += f" to train on, {facts['test_length']} to score"
    if facts.get("dry_run"):
        size = format_bytes(facts["array_bytes"])
        print(f"would write {path}: {what}, {size} before packing")
        return 0
    print(f"{path}: {what}, seed {facts['seed']}, {format_bytes(facts['bytes'])}")
    remarks = [f"a constant answer is right in {facts['unigram_accuracy']:.1%}"]
    if facts["ceiling"] < 1:
        remarks.append(f"all keys of the training rows answer {facts['ceiling']:.1%}")
    print(f"{facts['rows_per_s']:,.0f} rows/s; {', '.join(remarks)}")
    return 0


CHECK_ABOUT = """\
Draw the rows of .npz files of `mlxhog mad data` again, by the settings and the seed that each file
has, and compare every bit. Exit code 1 if a row differs, with the numbers of such rows."""
CHECK_EXAMPLES = (
    "mad check cr.npz",
    "mad check data/*.npz --json",
)
MOST_ROWS_SHOWN = 10


def run_check(arguments: list[str]) -> int:
    """Run the command; returns its exit code."""
    flags = Flags("mad check", CHECK_ABOUT, CHECK_EXAMPLES, ("FILE...",))
    flags.argument("files", nargs="+", metavar="FILE", help=".npz files of rows")
    flags.plugin()
    flags.argument("--json", action="store_true", help="one JSON object with ok and failed")
    parsed = flags.parse(arguments)
    if parsed.problems:
        raise ConfigError("\n".join(parsed.problems))
    # These import NumPy: wrong flags are answered before.
    from mlxhog.mad.tasks import check
    from mlxhog.mad.tasks.dataset import read

    failed: list[dict[str, Any]] = []
    for file in parsed.other.files:
        rows = read(expanded(file))
        try:
            differ = check(rows)
        except DataError as error:
            raise DataError(f"{file}: {error}") from None
        failed += [{"file": file, "part": part, "rows": differ[part]} for part in differ]
        if not parsed.other.json:
            result = "FAIL" if differ else "ok"
            print(f"{file}: {rows.task}, seed {rows.meta['seed']}: {result}")
            for part, numbers in differ.items():
                listed = ", ".join(map(str, numbers[:MOST_ROWS_SHOWN]))
                others = len(numbers) - MOST_ROWS_SHOWN
                more = f" and {others:,} more" if others > 0 else ""
                print(f"  {part} differs in row {listed}{more}")
    if parsed.other.json:
        print_json({"ok": not failed, "failed": failed})
    return 1 if failed else 0
