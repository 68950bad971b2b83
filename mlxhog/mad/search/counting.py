"""How many sequences of choices keep within bounds, and which of them is number n.

The bounds are on sums: every choice uses up some of every resource (one of its kind, parameters,
state). Sequences are never enumerated: what matters of a beginning is how much it has left, so

    count(slot, left) = sum over the choices of the slot of count(slot + 1, left - use)

and beginnings with the same remainder are one. A remainder that no completion can exceed counts as
endless, which merges most of them.
"""

from __future__ import annotations

from collections.abc import Sequence

Left = tuple[int | None, ...]
"""What is left of every resource; None is endless."""


Use = Sequence[int]
"""What a choice uses of every resource, each at least 0."""


class Sequences:
    """All sequences of one choice per slot within the bounds, in lexicographic order.

    Args:
        slots: what every choice of every slot uses; each slot has a choice.
        bounds: how much of every resource there is; None is endless.
    """

    def __init__(self, slots: Sequence[Sequence[Use]], bounds: Left) -> None:
        self._slots = slots
        self._bounds = bounds
        self._most = [[0] * len(bounds)]
        self._least = [[0] * len(bounds)]
        for slot in reversed(slots):
            uses = list(zip(*slot, strict=True))  # by resource
            self._most.insert(0, [a + max(b) for a, b in zip(self._most[0], uses, strict=True)])
            self._least.insert(0, [a + min(b) for a, b in zip(self._least[0], uses, strict=True)])
        self._known: dict[tuple[int, Left], int] = {}

    def count(self) -> int:
        """Return the number of sequences."""
        return self._count(0, self._bounds)

    def sequence(self, number: int) -> tuple[int, ...]:
        """Return sequence `number` from 0, as the number of every slot's choice.

        Raises:
            IndexError: there are not so many.
        """
        if not 0 <= number < self.count():
            raise IndexError(f"sequence {number} of {self.count()}")
        found: list[int] = []
        left = self._bounds
        for slot, uses in enumerate(self._slots):
            for which, use in enumerate(uses):
                after = _minus(left, use)
                if after is None:
                    continue
                below = self._count(slot + 1, after)
                if number < below:
                    found.append(which)
                    left = after
                    break
                number -= below
        return tuple(found)

    def _count(self, slot: int, left: Left) -> int:
        """Return how many ways there are to go on from a slot with what is left."""
        most, least = self._most[slot], self._least[slot]
        if any(one is not None and one < needed for one, needed in zip(left, least, strict=True)):
            return 0
        left = tuple(
            None if one is None or one >= enough else one
            for one, enough in zip(left, most, strict=True)
        )
        if slot == len(self._slots):
            return 1
        key = (slot, left)
        if key not in self._known:
            self._known[key] = sum(
                self._count(slot + 1, after)
                for use in self._slots[slot]
                if (after := _minus(left, use)) is not None
            )
        return self._known[key]


def _minus(left: Left, use: Use) -> Left | None:
    after = tuple(None if one is None else one - used for one, used in zip(left, use, strict=True))
    return None if any(one is not None and one < 0 for one in after) else after
