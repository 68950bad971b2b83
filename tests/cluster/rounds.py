"""The rounds that runs have recorded, and what must hold between them."""

import json
from collections import defaultdict
from dataclasses import dataclass

from mlxhog.cluster.sidecar import ROUNDS


def rounds_in(root):
    """The rounds of the newest run below a folder; its last line may be cut off."""
    runs = sorted((root / "runs").glob("*"))
    path = runs[-1] / "logs" / ROUNDS if runs else root / "none"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(True) if line.endswith("\n")]


def part_of(root):
    """The part of the newest run below a folder in its cluster, of run.json."""
    newest = max((root / "runs").glob("*"))
    return json.loads((newest / "run.json").read_text())["cluster"]


def is_balanced(part):
    """Whether all tokens that a machine trained are committed, declared lost, or wait."""
    counts = [part[f"tokens_{what}"] for what in ("committed", "lost", "waiting")]
    return bool(min(counts) >= 0 and sum(counts) == part["tokens_trained"])


@dataclass
class Audit:
    """What the rounds of all runs of a cluster say.

    Attributes:
        rounds: that any run has recorded.
        unequal: of these, rounds after which members had unequal outer parameters, or tokens.
        unbalanced: rounds that counted other tokens than those of their members.
        partial: rounds without the line of a member, which was killed after its commit.
    """

    rounds: int = 0
    unequal: int = 0
    unbalanced: int = 0
    partial: int = 0

    @classmethod
    def of(cls, runs):
        """Compare the lines of all runs."""
        by_round = defaultdict(list)
        for lines in runs:
            for line in lines:
                by_round[line["round"]].append(line)
        audit, before, tokens = cls(rounds=len(by_round)), -1, 0
        for number, lines in sorted(by_round.items()):
            states = {(line["outer_digest"], line["cluster_tokens"]) for line in lines}
            audit.unequal += len(states) > 1
            total = lines[0]["cluster_tokens"]
            if len(lines) < lines[0]["members"]:
                audit.partial += 1
            elif number == before + 1:
                audit.unbalanced += total - tokens != sum(line["tokens"] for line in lines)
            before, tokens = number, total
        return audit
