"""Soaks: what is promised of every run, counted over many.

    python -m tests.soak                        each part once, as pytest does: some minutes
    python -m tests.soak --runs 3               n = 3: ten minutes on two idle cores
    python -m tests.soak --only kills gates     some of the parts
    python -m tests.soak --say                  a line for every run, too

Each part prints a line with its counts. The exit code is 0, or 1 if any is not as it should be.
"""

import argparse
import json
import signal
import sys
import time
import traceback

from tests.soak import PARTS, Counts, part


def main():
    """Run the command; returns its exit code."""
    parts = {name: part(name) for name in PARTS}
    lines = "\n".join(f"    {name:12} {one.__doc__.splitlines()[0]}" for name, one in parts.items())
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak", description=f"{__doc__}\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--runs", type=int, default=1, metavar="N", help="n of each part [1]")
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", default=list(PARTS))
    parser.add_argument("--say", action="store_true", help="print a line for each run")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing stays behind
    failed = []
    for name in options.only:
        began, counts, error = time.monotonic(), Counts(), ""
        try:
            counts = parts[name](options.runs, print if options.say else lambda line: None)
        except Exception:  # the other parts run, too
            error = traceback.format_exc()
        rows = "; ".join(f"{row}: {times} of {n}" for row, (times, _, n) in counts.rows.items())
        verdict = "FAILED" if error or counts.failures else "ok"
        print(f"{verdict:6}  {name:10}  {time.monotonic() - began:5.0f} s  {rows}", flush=True)
        if verdict != "ok":
            failed.append(name)
            print(*counts.failures, json.dumps(counts.facts, default=str), error, sep="\n")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
