"""The machines of a cluster as one of them sees them, for the live table, the board and reports."""

from __future__ import annotations

import time
from collections import Counter

from mlxhog.cluster.group import Machine, Membership
from mlxhog.report.metrics import ALONE, AWAY, IN_QUORUM, MachineReport
from mlxhog.report.streams import printable


class Roster:
    """The machines that the links of a run have met; used by one thread of its supervisor."""

    def __init__(self) -> None:
        self.is_alone = False  # whether this machine trains alone
        self._own, self._members = 0, tuple[int, ...]()
        self._met = dict[int, tuple[Machine, float]]()  # by id; with the time of the last join

    def meet(self, member: Membership, own: Machine) -> None:
        """Take the members of the newest round, and this machine as it is now."""
        self._own, self._members = own.id, member.ids
        now_s = time.monotonic()
        for one in (*member.machines, own):
            self._met[one.id] = one, now_s - one.seen_s

    def reports(self) -> tuple[MachineReport, ...]:
        """One report per machine, this one first, then by name."""
        members = () if self.is_alone else self._members
        now_s, names, reports = time.monotonic(), Counter[str](), list[MachineReport]()
        met = sorted(self._met.values(), key=lambda x: (x[0].id != self._own, x[0].name, x[0].id))
        for one, seen_s in met:
            is_own, name = one.id == self._own, printable(one.name)
            names[name] += 1
            reports.append(
                MachineReport(
                    name=name if names[name] == 1 else f"{name} ({names[name]})",
                    state=IN_QUORUM if one.id in members else ALONE if is_own else AWAY,
                    tokens=one.tokens,
                    rounds=one.rounds,
                    seen_s=now_s - seen_s,
                    is_own=is_own,
                )
            )
        return tuple(reports)
