"""Draw the losses of runs, in the terminal and as one picture.

The unit is bits per byte. The picture is a PNG, SVG or PDF file, by the suffix of --output; a
dotted line is the learning rate. The terminal has a line for each run, on one scale. A run in
progress is drawn up to its last number.

Examples:
    plot latest
    plot sotu notes --output compared.pdf
"""

import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from mlxhog.cli.frame import CommandResult, command, short_name
from mlxhog.cli.report import ReportOptions, suffix_of
from mlxhog.display.metrics import format_loss
from mlxhog.display.streams import wrapped
from mlxhog.errors import RunError

if TYPE_CHECKING:
    from mlxhog.display.record import RunRecord

NAMES_WIDTH, NUMBERS_WIDTH = 26, 24  # of `plot` in the terminal


@command(writes=True)
def run(config: ReportOptions) -> CommandResult:
    from mlxhog.display import charts
    from mlxhog.display.record import different_texts

    kind = suffix_of(config.output or "losses.png", charts.FORMATS)
    records = config.records()
    for each in records:
        if each.last("train_bits_per_byte") is None:
            why = "no numbers yet; the first come two seconds after training begins"
            if not each.is_running:
                word = shlex.quote(short_name(each.run.directory))
                why = f"no training loss, and is {each.state}; mlxhog show {word} describes it"
            raise RunError(f"the run {each.run.name} has {why}")
    differ = different_texts(records)
    path = config.write(records, "losses.png", charts.losses(records, kind))
    columns = ("train_bits_per_byte", "val_bits_per_byte")
    runs = [
        {
            "name": each.run.name,
            "lines": len(each.history),
            **{name: each.last(name) for name in columns},
            "final_bits_per_byte": each.progress.final_bits_per_byte,
            "val_step": each.progress.val_step,
            "validation": each.status.get("validation"),
        }
        for each in records
    ]
    notes = [*(note for each in records for note in each.notes), *differ]
    width = shutil.get_terminal_size().columns
    lines = [*_curves(records, width), *(part for one in differ for part in wrapped(one, width))]
    return CommandResult({"plot": path, "runs": runs, "notes": notes}, [*lines, path])


def _curves(records: "Sequence[RunRecord]", width: int) -> Iterator[str]:
    """Yield a line per run, all on one scale: a character for the mean of each part."""
    import numpy as np

    from mlxhog.display.table import cut

    columns = (record.history.column("train_bits_per_byte") for record in records)
    curves = [column[~np.isnan(column)] for column in columns]
    low, high = (float(bound(np.concatenate(curves))) for bound in (np.min, np.max))
    names = [cut(record.run.name, NAMES_WIDTH) for record in records]
    wide = max(map(len, names))
    room = max(width - wide - NUMBERS_WIDTH - 4, 8)
    has_blocks = (sys.stdout.encoding or "").lower().startswith("utf")
    signs = "▁▂▃▄▅▆▇█" if has_blocks else "_.-=+*#@"
    for name, curve, record in zip(names, curves, records, strict=True):
        means = [part.mean() for part in np.array_split(curve, min(room, len(curve)))]
        levels = (np.array(means) - low) / max(high - low, 1e-12) * (len(signs) - 1)
        drawn = "".join(signs[round(level)] for level in levels.tolist())
        validation = record.last("val_bits_per_byte")
        scored = (
            ""
            if validation is None
            else f", validation {format_loss(validation)}{record.scored_at}"
        )
        end = format_loss(record.last("train_bits_per_byte"))
        yield f"{name:{wide}}  {drawn:{room}}  {end}{scored}"
    yield f"training, bits per byte, from {high:.2f} at the top to {low:.2f}"
