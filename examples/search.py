"""Search a space of small language models, print the leaderboard, deepen and train the winner.

python examples/search.py            five minutes of search on two cores
python examples/search.py --quick    two candidates, a few steps
"""

import sys

import mlxhog
from mlxhog import mad


def main(*, quick: bool = False) -> mlxhog.Result:
    """Search, deepen, train."""
    how = {"suite": "lm:4ktok", "candidates": 2, "pairs": 0} if quick else {"suite": "lm:20s"}
    study = mad.search("space-small", study="quick" if quick else "small", parallel=2, **how)
    for candidate in study:  # the best first
        print(f"{candidate.measures['val_bits_per_byte']:.3f}  {candidate.candidate}")
    deep = mad.deepen(study, depth=8, output=study.store.directory / "deep.yaml")
    return mlxhog.train(model=deep.file, time=None if quick else 60, steps=3 if quick else None)


if __name__ == "__main__":
    print(main(quick="--quick" in sys.argv).run)
