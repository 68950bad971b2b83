"""Soaks: what is promised of every run, counted over as many runs as one likes.

A part is a function `part(n, say) -> Counts`. pytest calls every part with n = 1 (`test_parts.py`),
`python -m tests.soak --runs N` with N, and the scripts of benchmarks/ with what the claims in
docs/results.md rest on.
"""

from dataclasses import dataclass, field
from importlib import import_module

PARTS = {
    "kills": "kills", "feeds": "feeds", "replays": "runs", "gates": "runs", "repeats": "runs",
    "damage": "damage", "records": "damage", "interrupts": "interrupts", "endings": "endings",
    "cluster": "cluster",
}  # fmt: skip
"""Every part, and the module that has it."""


def part(name):
    """The function of a part. Workers import nothing of it: they import what `__main__` does."""
    return getattr(import_module(f"tests.soak.{PARTS[name]}"), name)


@dataclass
class Counts:
    """What a part has counted.

    Attributes:
        rows: name -> how often it was so, how often it should have been, and among how many trials.
        facts: further numbers, and what was wrong.
    """

    rows: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    facts: dict = field(default_factory=dict)

    def never(self, name, times, trials=1):
        """Count what must not happen."""
        self._add(name, times, 0, trials)

    def always(self, name, times, trials=1):
        """Count what must happen in each trial."""
        self._add(name, times, trials, trials)

    def _add(self, name, *counts):
        before = self.rows.get(name, (0, 0, 0))
        self.rows[name] = tuple(old + int(new) for old, new in zip(before, counts, strict=True))

    @property
    def failures(self):
        """A line for each row that is not as it should be."""
        return [
            f"{name}: {times} of {trials}, wanted {wanted}"
            for name, (times, wanted, trials) in self.rows.items()
            if times != wanted
        ]
