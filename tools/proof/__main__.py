"""`python -m tools.proof`: every proof with its verdict and the states it visited."""

import argparse
import sys

from tools.proof import PROOFS, verify


def main() -> int:
    """Print a line per proof; 1 if one is not as promised."""
    wrong = 0
    for proof in PROOFS:
        verdict = verify(proof)
        wrong += verdict.holds != proof.holds
        said = "holds" if verdict.holds else f"does not hold: {verdict.counterexample}"
        print(f"{verdict.states:>10,} states  {proof.claim}: {said}", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    argparse.ArgumentParser(
        prog="python -m tools.proof",
        description="Check the model of the packed 16-bit add, and planted faults, with spin.",
    ).parse_args()
    sys.exit(main())
