"""Train as README's first command does, and write the pictures and the output that README shows.

    python -m tools.readme_pictures

takes about four minutes. It trains three times, writes the three scores to
docs/generated/minute.json, which a test compares with README, and shows the run in the middle:
docs/pictures/live.svg (the live table, late in the run), docs/pictures/losses.png (`mlxhog plot`),
and what the command prints at its end into README.
"""

import datetime
import io
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from mlxhog.checkpoint.run import list_runs
from mlxhog.display.record import RunRecord
from mlxhog.display.terminal import Picture
from mlxhog.progress import Progress

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PICTURES = ROOT / "docs" / "pictures"
SCORES = ROOT / "docs" / "generated" / "minute.json"
MARK = "<!-- python -m tools.readme_pictures writes the next block -->"
COLUMNS = 92
LOOK_S = 0.5
RUNS = 3
LATEST = 0.9
"""Share of the budget up to which a table is taken: workers train then, and nothing else."""


def main() -> None:
    """Train, and write all of it."""
    with tempfile.TemporaryDirectory() as folder:
        runs = [_trained(Path(folder) / str(number)) for number in range(RUNS)]
        runs.sort(key=lambda run: bits_per_byte(run[2]))
        here, progress, output = runs[RUNS // 2]
        PICTURES.mkdir(exist_ok=True)
        every = [bits_per_byte(output) for _, _, output in runs]
        SCORES.write_text(json.dumps(scores(every, here), indent=1) + "\n", encoding="utf-8")
        (PICTURES / "live.svg").write_text(picture(progress), encoding="utf-8")
        plot = _mlxhog("plot", "latest", "--output", str(PICTURES / "losses.png"))
        subprocess.run(plot, cwd=here, check=True)
    README.write_text(with_output(README.read_text(encoding="utf-8"), output), encoding="utf-8")


def _trained(here: Path) -> tuple[Path, Progress, str]:
    """Train in a new folder; return it, a late state of the run, and what the command printed."""
    here.mkdir()
    log = here / "stderr"
    with log.open("w") as errors:
        trainer = subprocess.Popen(
            _mlxhog("train"), cwd=here, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        progress = _late_table(here / "runs", trainer)
        output, _ = trainer.communicate()
    if trainer.returncode or progress is None:
        sys.exit(f"{log.read_text()}the run failed, or showed no table")
    return here, progress, output


def bits_per_byte(output: str) -> float:
    """The score of all validation text that the command printed."""
    score = re.search(r"([\d.]+)(?: bits per byte)? \(full set\)", output)
    assert score is not None, f"no score of all validation text in {output!r}"
    return float(score[1])


def scores(bits: list[float], here: Path) -> dict[str, object]:
    """The scores of all runs, with what is needed to measure them again."""
    (run,) = list_runs(here / "runs")
    status = run.read_status()
    commit = ["git", "rev-parse", "--short=9", "HEAD"]
    return {
        "command": "python -m tools.readme_pictures",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": subprocess.run(commit, cwd=ROOT, capture_output=True, text=True).stdout.strip(),
        **{name: status[name] for name in ("mlxhog", "chip", "cores", "memory_bytes")},
        "bits_per_byte": bits,
    }


def picture(progress: Progress) -> str:
    """Return the live table of a moment as an SVG file, which loads nothing from a network."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Picture(progress))
    svg = console.export_svg(title="mlxhog train", unique_id="mlxhog")
    return re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL)


def with_output(page: str, output: str) -> str:
    """Return a page whose block after `MARK` is the output of the command."""
    before, mark, after = page.partition(f"{MARK}\n\n```\n")
    _, end, rest = after.partition("\n```\n")
    assert end, f"the page needs a block between ``` after the line {MARK}"
    return f"{before}{mark}{output.rstrip()}{end}{rest}"


def _late_table(runs: Path, trainer: subprocess.Popen[str]) -> Progress | None:
    """Look at the files of a process's run until it ends; return its last state of training."""
    record = kept = None
    while trainer.poll() is None:
        time.sleep(LOOK_S)
        for run in list_runs(runs):
            record = record or RunRecord(run)
        if record is not None:
            record.refresh()
            progress = record.progress
            if progress.sample and progress.budget_fraction < LATEST:
                kept = progress
    return kept


def _mlxhog(*words: str) -> list[str]:
    return [sys.executable, "-m", "mlxhog", *words]


if __name__ == "__main__":
    main()
