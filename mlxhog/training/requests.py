"""Requests of other processes to a running run: `mlxhog join`, `stop`, the board, and the like.

    request     fields           answer            when
    status                       what the run does  always
    stop                         message            always: as one Ctrl-C, it ends with a checkpoint
    checkpoint                   path               while training
    sample                       message            while training
    join        workers, threads message            while training, see `elastic.py`
    leave       worker           message            while training, see `elastic.py`

A request for training that comes while workers start or pause waits until they train.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mlxhog.arena.requests import Refused, Request, RequestServer
from mlxhog.config.limits import shown
from mlxhog.errors import RunError
from mlxhog.report.metrics import Activity, Doing
from mlxhog.report.monitor import Monitor
from mlxhog.training.elastic import Elastic
from mlxhog.training.session import Session

_Answer = dict[str, Any]


class Requests:
    """Answers the requests of one run. Used by the thread that polls its workers."""

    def __init__(
        self,
        session: Session,
        server: RequestServer,
        monitor: Monitor,
        elastic: Elastic,
        *,
        end: Callable[[], None],
        save: Callable[[], Path],
    ) -> None:
        """Prepare; nothing is answered before `serve`.

        Args:
            session: of the run.
            server: where requests come in.
            monitor: what the run has come to.
            elastic: lets workers join and leave.
            end: lets the run end as if it was interrupted.
            save: saves a checkpoint while training.
        """
        self._session, self._server, self._monitor = session, server, monitor
        self._elastic, self._end, self._save = elastic, end, save
        self._waiting: deque[Request] = deque()
        self._at_once: dict[str, Callable[[Mapping[str, Any], Doing | None], _Answer]] = {
            "status": self._status,
            "stop": self._stop,
        }
        self._while_training: dict[str, Callable[[Mapping[str, Any]], _Answer]] = {
            "checkpoint": self._checkpoint,
            "sample": self._sample,
            "join": self._join,
            "leave": self._leave,
        }

    def serve(self, doing: Doing | None) -> None:
        """Answer what has come in.

        Args:
            doing: what the run does instead of training.
        """
        for request in self._server.take():
            if request.name in self._at_once:
                self._answer(request, lambda r: self._at_once[r.name](r.fields, doing))
            elif request.name in self._while_training:
                self._waiting.append(request)
            else:
                names = ", ".join((*self._at_once, *self._while_training))
                request.refuse(Refused(f"a run takes no request {request.name!r}, but {names}"))
        if doing is None:
            # A request may poll workers itself, and so come here again, with something to do.
            while self._waiting:
                self._answer(
                    self._waiting.popleft(), lambda r: self._while_training[r.name](r.fields)
                )
        elif doing.activity not in (Activity.STARTING, Activity.PAUSING):
            self._refuse_all(f"the run is {doing}: its training is over")

    def close(self) -> None:
        """Refuse what is still to be answered: the run has ended."""
        for request in self._server.take():
            self._waiting.append(request)
        self._refuse_all("the run has ended")
        self._server.close()

    def _answer(self, request: Request, act: Callable[[Request], _Answer]) -> None:
        try:
            answer = act(request)
        except RunError as error:
            request.refuse(error)
        except BaseException:  # of the workers, and so of the run
            request.hang_up()
            raise
        else:
            request.answer(**answer)

    def _refuse_all(self, why: str) -> None:
        while self._waiting:
            request = self._waiting.popleft()
            request.refuse(Refused(f"no {request.name}: {why}"))

    # -- at any time -----------------------------------------------------------------------------

    def _status(self, fields: Mapping[str, Any], doing: Doing | None) -> _Answer:
        _check(fields)
        steps, tokens, seconds = self._monitor.totals()
        return {
            "doing": str(doing or "training"),
            "step": steps,
            "tokens": tokens,
            "seconds": seconds,
            "workers": [
                {
                    "slot": one.slot,
                    "backend": one.backend,
                    "pid": one.pid,
                    "state": one.state,
                    "steps": one.steps,
                }
                for one in self._monitor.worker_reports()
            ],
            "free_slots": self._elastic.free_slots(),
        }

    def _stop(self, fields: Mapping[str, Any], doing: Doing | None) -> _Answer:
        _check(fields)
        self._end()
        self._session.report("stopping, as mlxhog stop asks: the step in hand, then a checkpoint")
        return {"message": "the run finishes its step, saves a checkpoint and ends"}

    # -- while training --------------------------------------------------------------------------

    def _checkpoint(self, fields: Mapping[str, Any]) -> _Answer:
        _check(fields)
        return {"path": str(self._save())}

    def _sample(self, fields: Mapping[str, Any]) -> _Answer:
        _check(fields)
        self._session.ask("sample")
        return {"message": "the next worker that finishes a step writes a sample"}

    def _join(self, fields: Mapping[str, Any]) -> _Answer:
        _check(fields, "workers", "threads")
        workers, threads = fields.get("workers", "1"), _number(fields, "threads")
        if not isinstance(workers, str):
            raise Refused(f"workers is {shown(workers)}; wanted text such as 'torch:cpu*2'")
        return {"message": self._elastic.join(workers, threads)}

    def _leave(self, fields: Mapping[str, Any]) -> _Answer:
        _check(fields, "worker")
        return {"message": self._elastic.leave(_number(fields, "worker"))}


def _number(fields: Mapping[str, Any], name: str) -> int | None:
    """A field that is a number of 1 or more, or is not there.

    Raises:
        Refused: it is something else.
    """
    value: int | None = fields.get(name)
    if value is not None and (type(value) is not int or value < 1):
        raise Refused(f"{name} is {shown(value)}; wanted a whole number of at least 1")
    return value


def _check(fields: Mapping[str, Any], *names: str) -> None:
    """Refuse fields that a request does not have.

    Raises:
        Refused: there is one.
    """
    unknown = [name for name in fields if name not in names]
    if unknown:
        expected = f"it has {', '.join(names)}" if names else "it has none"
        raise Refused(f"the request has no field {unknown[0]!r}; {expected}")
