"""The machines of a cluster as one of them sees them, for the live table, the board and reports.

The link writes what it learns at each join into a segment of the arena, so that the display needs
no network:

    link.machines  uint8  line 0: views since the beginning, written by the link
                          line 1: whether this machine trains alone, written by its supervisor
                          then two views, each JSON of `VIEW_BYTES`; view k is at place k mod 2
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

from mlxhog.arena import Arena
from mlxhog.arena.process import monotonic_ns
from mlxhog.arena.words import Table
from mlxhog.report.metrics import MachineReport
from mlxhog.report.streams import printable

MACHINES: Final = "link.machines"
VIEW_BYTES: Final = 1 << 15
_HEAD = Table(view=(1, "views"), machine=(1, "alone"))
IN_QUORUM, ALONE, AWAY = "in the quorum", "alone", "away"


def segment() -> dict[str, tuple[str, int]]:
    """The segment of the table above, as `arena.plan` takes it."""
    return {MACHINES: ("uint8", _HEAD.n_bytes + 2 * VIEW_BYTES)}


class Roster:
    """The machines that the link of an arena knows.

    Concurrency: one link writes views, the supervisor's process `is_alone`; any process reads.
    """

    def __init__(self, arena: Arena) -> None:
        """Wrap the segment."""
        self._data = arena.segment(MACHINES)
        self._words = _HEAD.open(self._data)

    def write(
        self,
        machines: Iterable[Mapping[str, Any]],
        members: Iterable[int],
        own: int,
        notes: Mapping[str, str],
    ) -> None:
        """Replace the view; machines and notes of earlier views stay in it.

        Args:
            machines: id, name, tokens, rounds and seen_s of each.
            members: ids of those of the newest round.
            own: id of this machine.
            notes: what its user should know, by subject.
        """
        before, now_ns = self._read(), monotonic_ns()
        known = {one["id"]: one for one in before["machines"]}
        for one in machines:
            known[one["id"]] = {**one, "seen_ns": now_ns - round(1e9 * one["seen_s"])}
        newest = sorted(known.values(), key=lambda one: -one["seen_ns"])
        view = {"own": own, "members": list(members), "notes": {**before["notes"], **notes}}
        while len(text := json.dumps({**view, "machines": newest}).encode()) > VIEW_BYTES:
            newest.pop()  # away for longest
        n = self._words["views"] + 1
        start = _HEAD.n_bytes + n % 2 * VIEW_BYTES
        self._data[start : start + VIEW_BYTES] = memoryview(text.ljust(VIEW_BYTES))
        self._words["views"] = n

    def _read(self) -> dict[str, Any]:
        """The newest view."""
        while n := self._words["views"]:
            start = _HEAD.n_bytes + n % 2 * VIEW_BYTES
            text = self._data[start : start + VIEW_BYTES].tobytes()
            if self._words["views"] == n:  # else the next but one may be half written there
                view: dict[str, Any] = json.loads(text)
                return view
        return {"own": None, "members": [], "notes": {}, "machines": []}

    @property
    def is_alone(self) -> bool:
        """Whether this machine trains alone, as its supervisor last reported."""
        return bool(self._words["alone"])

    @is_alone.setter
    def is_alone(self, value: bool) -> None:
        self._words["alone"] = int(value)

    def notes(self) -> dict[str, str]:
        """What the user should know, by subject."""
        return dict(self._read()["notes"])

    def reports(self) -> tuple[MachineReport, ...]:
        """One report per machine, this one first, then by name."""
        view, now_ns = self._read(), monotonic_ns()
        own, members = view["own"], [] if self.is_alone else view["members"]
        reports, names = list[MachineReport](), Counter[str]()
        for one in sorted(view["machines"], key=lambda x: (x["id"] != own, x["name"], x["id"])):
            is_own, name = one["id"] == own, printable(one["name"])
            names[name] += 1
            reports.append(
                MachineReport(
                    name=name if names[name] == 1 else f"{name} ({names[name]})",
                    state=IN_QUORUM if one["id"] in members else ALONE if is_own else AWAY,
                    tokens=one["tokens"],
                    rounds=one["rounds"],
                    seen_s=(now_ns - one["seen_ns"]) / 1e9,
                    is_own=is_own,
                )
            )
        return tuple(reports)


def machines_of(arena: Arena) -> tuple[MachineReport, ...]:
    """The machines of a run's cluster; () without one."""
    return Roster(arena).reports() if MACHINES in arena.layout.segments else ()
