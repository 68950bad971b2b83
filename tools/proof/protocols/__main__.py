"""`python -m tools.proof.protocols`: the scenarios and the needed orders."""

import argparse
import sys
import tempfile
from pathlib import Path

from tools.proof.protocols import (
    Searched,
    Weakened,
    build,
    problems,
    search,
    sources,
)


def main() -> int:
    """Print a line per scenario and per weakened order; 1 if one is not as promised."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.proof.protocols",
        description="Search every run of the locks and the ticket ledger on weak memory.",
    )
    parser.parse_args()
    results: list[Searched | Weakened] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        steps = sources(folder)
        for result in search(build(folder), steps):
            results.append(result)
            if isinstance(result, Searched):
                said = result.wrong or "holds"
                print(f"{result.states:>10,} states  {result.name}: {result.claim}: {said}")
            else:
                print(f"needed  {result.order}: {result.by}: {result.wrong}")
            sys.stdout.flush()
    lines = problems(results)
    print("\n".join(lines))
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main())
