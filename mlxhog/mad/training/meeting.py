"""Where runs of one shape meet once a step, to compute their gradients together.

Each run lives in a thread of its own and is an ordinary run in everything else: its arena, its
optimizer, its evaluations. The last one to arrive computes for all; one that has ended leaves.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np

from mlxhog.backends.backend import Backend, Float32, Grads
from mlxhog.data.batch import Batch
from mlxhog.strategies import Context

Compute = Callable[[Sequence[Float32], Sequence[Batch]], list[tuple[float, Grads]]]
"""From the parameters and the batch of every run to its loss and gradient."""


class Meeting:
    """The place where runs meet.

    Args:
        members: runs, by number from 0.
        compute: for all that are there, in the order of their numbers.

    Concurrency: every member is one thread; any may leave at any time.
    """

    def __init__(self, members: int, compute: Compute) -> None:
        """See the class."""
        self._compute = compute
        self._members = set(range(members))
        self._asked: dict[int, tuple[Float32, Batch]] = {}
        self._answers: dict[int, tuple[float, Grads] | BaseException] = {}
        self._changed = threading.Condition()

    def ask(self, member: int, params: Float32, batch: Batch) -> tuple[float, Grads]:
        """Wait for the others, and return this member's loss and gradient.

        Raises:
            Exception: what the computation raised, in every member.
        """
        with self._changed:
            self._asked[member] = (params, batch)
            self._answer_if_complete()
            while member not in self._answers:
                self._changed.wait()
            answer = self._answers.pop(member)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def leave(self, member: int) -> None:
        """Let the others go on without this member."""
        with self._changed:
            self._members.discard(member)
            self._answer_if_complete()

    def _answer_if_complete(self) -> None:
        if not self._members or self._asked.keys() != self._members:
            return
        members = sorted(self._asked)
        params, batches = zip(*(self._asked[member] for member in members), strict=True)
        try:
            self._answers.update(zip(members, self._compute(params, batches), strict=True))
        except Exception as error:  # every member shall know, none shall wait for ever
            self._answers.update(dict.fromkeys(members, error))
        self._asked.clear()
        self._changed.notify_all()


class Member:
    """A backend whose gradients are computed at a meeting; everything else is its own."""

    def __init__(self, backend: Backend, meeting: Meeting, number: int) -> None:
        """See the class."""
        self._backend, self._meeting, self._number = backend, meeting, number

    def __getattr__(self, name: str) -> Any:
        """Return what the backend has under a name."""
        return getattr(self._backend, name)

    def loss_and_grads(self, batch: Batch) -> tuple[float, Grads]:
        """See `Backend.loss_and_grads`."""
        return self._meeting.ask(self._number, self._backend.inbox, batch)


def join(context: Context, meeting: Meeting, number: int) -> None:
    """Let a run compute its gradients at a meeting, as its member `number`."""
    context.backend = cast(Backend, Member(context.backend, meeting, number))


def stacked(params: Sequence[Float32], batches: Sequence[Batch]) -> tuple[Float32, Any, Any]:
    """Return parameters (N, n_floats), inputs and targets (N, B, S) of runs in the same step."""
    return (
        np.stack(params),
        np.stack([batch.x for batch in batches]),
        np.stack([batch.y for batch in batches]),
    )
