"""One change to a plan: a layer is replaced, inserted or deleted, or two change places.

In an alternating space layers are inserted and deleted as pairs of a mixer and a channel map. Where
the depth must not change, an insertion is followed by a deletion elsewhere, and the other way
round: what lies between moves.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from mlxhog.mad.search.space import Space
from mlxhog.models.mad.layer import Layer

Plan = tuple[Layer, ...]
Mutation = Callable[[Plan, Space, random.Random], Plan]


def mutate(plan: Plan, space: Space, stream: random.Random) -> Plan:
    """Return a plan after one change; it may be equal, or outside of the space's bounds."""
    return stream.choice(MUTATIONS)(plan, space, stream)


def replaced(plan: Plan, space: Space, stream: random.Random) -> Plan:
    """Put another choice into one slot."""
    slot = stream.randrange(len(plan))
    others = [layer for layer in space.slots(len(plan))[slot] if layer != plan[slot]]
    return (*plan[:slot], stream.choice(others), *plan[slot + 1 :]) if others else plan


def swapped(plan: Plan, space: Space, stream: random.Random) -> Plan:
    """Let two layers that differ, and may stand in each other's slot, change places."""
    slots = space.slots(len(plan))
    pairs = [
        (a, b)
        for b in range(len(plan))
        for a in range(b)
        if plan[a] != plan[b] and plan[a] in slots[b] and plan[b] in slots[a]
    ]
    if not pairs:
        return plan
    a, b = stream.choice(pairs)
    found = list(plan)
    found[a], found[b] = plan[b], plan[a]
    return tuple(found)


def inserted(plan: Plan, space: Space, stream: random.Random) -> Plan:
    """Put new layers in; delete others where the depth is not possible."""
    longer = _insert(plan, space, stream)
    return longer if len(longer) in space.depths else _delete(longer, space, stream)


def deleted(plan: Plan, space: Space, stream: random.Random) -> Plan:
    """Take layers out; insert others where the depth is not possible."""
    shorter = _delete(plan, space, stream)
    return shorter if len(shorter) in space.depths else _insert(shorter, space, stream)


MUTATIONS: tuple[Mutation, ...] = (replaced, swapped, inserted, deleted)


def _unit(space: Space) -> int:
    return 2 if space.template == "alternate" else 1


def _insert(plan: Plan, space: Space, stream: random.Random) -> Plan:
    unit = _unit(space)
    slots = space.slots(unit)
    if not all(slots):
        return plan  # one layer deep: there are no channel maps to insert
    at = unit * stream.randrange(len(plan) // unit + 1)
    return (*plan[:at], *(stream.choice(slot) for slot in slots), *plan[at:])


def _delete(plan: Plan, space: Space, stream: random.Random) -> Plan:
    unit = _unit(space)
    if len(plan) < unit:
        return plan
    at = unit * stream.randrange(len(plan) // unit)
    return (*plan[:at], *plan[at + unit :])
