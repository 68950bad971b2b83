"""Search a space of small models, print the leaderboard, deepen the winner, and train it.

python examples/search.py            a minute and a half of search on two cores
python examples/search.py --quick    one task, a few steps
"""

import sys
from typing import Any

import mlxhog
from mlxhog import mad


def main(*, quick: bool = False, **how: Any) -> mlxhog.Result:
    """Search, deepen, train; `how` is for the search."""
    small = {"tasks": "memorization", "steps": 20, "study": "quick"} if quick else {"study": "s1"}
    study = mad.search("space-small", prune=False, parallel=2, **small, **how)
    for candidate in study:  # the best first
        print(f"{candidate.score:.3f}  {candidate.candidate}")
    deep = mad.deepen(study, depth=8, output=study.store.directory / "deep.yaml", dim=128)
    return mlxhog.train(model=deep.file, time=None if quick else 60, steps=3 if quick else None)


if __name__ == "__main__":
    print(main(quick="--quick" in sys.argv).run)
