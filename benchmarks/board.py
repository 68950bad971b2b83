"""Opens the board of a long run in headless Chromium: time to load, weight, how smooth it stays.

    python benchmarks/board.py           8 hours of 16 workers: 10^6 numbers
    python benchmarks/board.py --quick   an hour of 4 workers

Loading lasts from the request of the page until every chart is drawn, with a board that has read
the run's files; reading them is shown beside it. While lines are added, frames are counted.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from harness.claims import Findings, flags, measured
from harness.estimates import Mean
from harness.machine import ROOT

from mlxhog.report.history import OF_RUN, OF_WORKER

sys.path.insert(0, str(ROOT))  # the run that nobody trained is that of the tests
from tests.report.conftest import DRAWN, NAMES  # noqa: E402
from tests.report.sample_run import append, lines, write_run  # noqa: E402

REPEATS = 5
WATCHED_S = 10.0
LINE_S = 2.0
MOST_LOAD_S, MOST_BYTES, MOST_PAUSE_MS = 2.0, 500_000, 200.0
FRAMES = """(seconds) => new Promise((resolve) => {
  const gaps = [], end = performance.now() + 1000 * seconds;
  let last = performance.now();
  const step = (now) => {
    gaps.push(now - last);
    last = now;
    if (now < end) requestAnimationFrame(step); else resolve(gaps);
  };
  requestAnimationFrame(step);
})"""


def measure(findings: Findings, chosen: Namespace) -> None:
    """Write a run, open its board, and let it grow."""
    from playwright.sync_api import sync_playwright

    hours, workers = (1.0, 4) if chosen.quick else (8.0, 16)
    rows = round(hours * 3600 / LINE_S)
    table = list(lines(rows + 10, workers=workers, every_s=LINE_S))
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        run = write_run(Path(folder), metrics=table[:rows])
        began = time.perf_counter()
        board = subprocess.Popen(
            [sys.executable, "-m", "mlxhog", "board", str(run.directory), "--port", "0", "--json"],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert board.stdout is not None
            url = json.loads(board.stdout.readline())["url"]
            reading_s = time.perf_counter() - began
            path = next(filter(None, map(shutil.which, NAMES)))
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
            loads = [load(browser, url) for _ in range(REPEATS)]
            page = browser.new_page()
            page.goto(url)
            page.locator(DRAWN).wait_for(state="attached")
            append(run, table[rows:])
            gaps = page.evaluate(FRAMES, WATCHED_S)
            browser.close()
        finally:
            board.kill()
            board.wait()
        metrics_bytes = run.metrics_path.stat().st_size
    findings.results |= {
        "numbers": rows * (len(OF_RUN) + workers * len(OF_WORKER)),
        "metrics_bytes": metrics_bytes,
        "reading_s": round(reading_s, 3),
        "load_s": [round(seconds, 3) for seconds, _ in loads],
        "longest_pause_ms": max(gaps),
        "frames_per_s": round(len(gaps) / WATCHED_S, 1),
    }
    weight = max(weight for _, weight in loads)
    findings.at_most("load of the page, s", Mean.of(seconds for seconds, _ in loads), MOST_LOAD_S)
    pauses = sum(gap > MOST_PAUSE_MS for gap in gaps)
    name = f"frames that came more than {MOST_PAUSE_MS:g} ms late while lines are added"
    findings.exact(name, pauses, 0, n=len(gaps), timing=True)
    findings.at_most("page and data, bytes", weight, MOST_BYTES, timing=False)


def load(browser: Any, url: str) -> tuple[float, int]:
    """Seconds until every chart is drawn, and bytes that came."""
    page = browser.new_page()
    answers: list[Any] = []
    page.on("response", lambda answer: None if "events" in answer.url else answers.append(answer))
    began = time.perf_counter()
    page.goto(url)
    page.locator(DRAWN).wait_for(state="attached")
    seconds = time.perf_counter() - began
    weight = sum(len(answer.body()) for answer in answers)
    page.close()
    return seconds, weight


def main() -> int:
    """Measure, end with one JSON line."""
    chosen = flags(__doc__, quick="an hour of 4 workers").parse_args()
    packages = ("starlette", "uvicorn", "playwright")
    return measured("board", chosen, measure, packages=packages, quiet=True)


if __name__ == "__main__":
    raise SystemExit(main())
