"""`mlxhog report` and `mlxhog plot`: one HTML file, or one picture, about one run or several."""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlxhog.cli.flags import Json, RunFolder, run_argument
from mlxhog.cli.frame import Report, command
from mlxhog.config.options import option
from mlxhog.errors import RunError
from mlxhog.report.metrics import number
from mlxhog.report.streams import wrapped

if TYPE_CHECKING:
    from mlxhog.report.record import RunRecord

NAMES_WIDTH, NUMBERS_WIDTH = 26, 24


@dataclass(frozen=True, kw_only=True)
class _Words(RunFolder, Json):
    runs: tuple[str, ...] = run_argument("RUN...")
    to: str | None = option(
        None, "file to write; in the run's folder, or here for several", none="auto"
    )

    def records(self) -> "list[RunRecord]":
        """Return the runs, each once."""
        from mlxhog.report.record import RunRecord

        records = [RunRecord(self.find(name)) for name in self.runs]
        return list({each.run.directory.resolve(): each for each in records}.values())

    def write(self, records: "Sequence[RunRecord]", name: str, content: bytes) -> str:
        """Write the file under its default name, unless another is named; returns its path."""
        from mlxhog.base.durable import disk_errors, replace_file

        default = Path(name) if len(records) > 1 else records[0].run.directory / name
        path = Path(self.to) if self.to else default
        with disk_errors(f"writing {path}"):
            replace_file(path, content)
        return str(path)


@command("report")
def run(config: _Words) -> Report:
    """Write one HTML file about one run, or about several beside each other.

    It has result, machine, curves over time, samples and updates, staleness, workers over time,
    samples of text, what failed and recovered, configuration, and the commands that repeat it. The
    file needs no network. A run in progress is reported up to its last number.

    Examples:
        report latest
        report latest --to page.html
        report runs/20260102-101500-sotu runs/20260102-111500-sotu --to compared.html
    """
    from mlxhog.report.run_page import report

    records = config.records()
    page = report(records).encode()
    path = config.write(records, "report.html", page)
    notes = [note for each in records for note in each.notes]
    return Report({"report": path, "bytes": len(page), "notes": notes})


@dataclass(frozen=True, kw_only=True)
class _PlotWords(_Words):
    over: str = option("time", "horizontal axis of the curves", choices=("time", "steps", "tokens"))


@command("plot")
def plot(config: _PlotWords) -> Report:
    """Draw the losses of runs in bits per byte, in the terminal and as one PNG file.

    The terminal has a line for each, on one scale. A run in progress is drawn up to its last
    number.

    Examples:
        plot latest
        plot sotu notes --to compared.png
        plot latest --over tokens
    """
    from mlxhog.report.figures import losses
    from mlxhog.report.record import different_texts

    records = config.records()
    for each in records:
        if each.last("train_bits_per_byte") is None:
            raise RunError(
                f"the run {each.run.name} has no numbers yet; the first come two seconds after "
                "training begins"
            )
    differ = different_texts(records)
    path = config.write(records, "losses.png", losses(records, config.over))
    columns = ("train_bits_per_byte", "val_bits_per_byte", "final_bits_per_byte")
    runs = [
        {
            "name": each.run.name,
            "lines": len(each.history),
            **{name: each.last(name) for name in columns},
            "val_step": each.progress.val_step,
            "held_out": each.part or None,
        }
        for each in records
    ]
    notes = [*(note for each in records for note in each.notes), *differ]
    width = shutil.get_terminal_size().columns
    lines = [*_curves(records, width), *(part for one in differ for part in wrapped(one, width))]
    return Report({"plot": path, "runs": runs, "notes": notes}, [*lines, path])


def _curves(records: "Sequence[RunRecord]", width: int) -> list[str]:
    """Return a line per run, all on one scale: a character for the mean of each part."""
    import numpy as np

    from mlxhog.report.table import cut

    columns = (record.history.column("train_bits_per_byte") for record in records)
    curves = [column[~np.isnan(column)] for column in columns]
    low, high = (float(bound(np.concatenate(curves))) for bound in (np.min, np.max))
    names = [cut(record.run.name, NAMES_WIDTH) for record in records]
    wide = max(map(len, names))
    room = max(width - wide - NUMBERS_WIDTH - 4, 8)
    has_blocks = (sys.stdout.encoding or "").lower().startswith("utf")
    signs = "▁▂▃▄▅▆▇█" if has_blocks else "_.-=+*#@"
    lines = []
    for name, curve, record in zip(names, curves, records, strict=True):
        means = [part.mean() for part in np.array_split(curve, min(room, len(curve)))]
        levels = (np.array(means) - low) / max(high - low, 1e-12) * (len(signs) - 1)
        drawn = "".join(signs[round(level)] for level in levels.tolist())
        held_out = record.last("val_bits_per_byte")
        scored = "" if held_out is None else f", held-out {number(held_out)}{record.scored_at}"
        end = number(record.last("train_bits_per_byte"))
        lines.append(f"{name:{wide}}  {drawn:{room}}  {end}{scored}")
    return [*lines, f"training, bits per byte, from {high:.2f} at the top to {low:.2f}"]
