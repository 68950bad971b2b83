"""The sidecar process of a machine, which synchronizes with other machines; and its handle.

It is crash-only. After any error it ends; the supervisor (`Sidecar`) starts a new one, no sooner
than a round later, which begins from the arena (`outer_state.py`). It sends the supervisor the
members of each round, and its last error, through a pipe. Workers never wait for it and never touch
the network; but training begins when the first sidecar has compared this machine with the others,
or has failed. It writes no parameter while a checkpoint is taken (`pause`), and after training only
in the last round, which the supervisor requests when the workers are quiesced. Then it leaves: a
member that is alive and joins no round would delay the others.

A machine that does not fit the cluster, or lacks torchft, is refused before it trains; that ends
the run. Later errors are reported once, and the machine trains on alone.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from io import BytesIO
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from mlxhog.arena import Arena, ArenaHandle
from mlxhog.arena.control import ControlCommand
from mlxhog.arena.process import Heartbeat, WatchedTime, monotonic_ns
from mlxhog.arena.published import SeqlockCounters
from mlxhog.arena.workers import WorkerPhase, WorkerState
from mlxhog.base.child_processes import WorkerProcess, last_lines
from mlxhog.base.inside import OpenFolder, inside
from mlxhog.base.processes import FAULTS, end_by
from mlxhog.base.quantities import format_duration
from mlxhog.cluster.group import (
    ClusterMembers,
    Describe,
    GetState,
    Identity,
    MemberMachine,
    Membership,
)
from mlxhog.cluster.outer_state import OuterState
from mlxhog.cluster.rendezvous import check_torchft, own_ip, parse_address, token_of
from mlxhog.cluster.round import Outcome, run_round
from mlxhog.config.config import TrainConfig
from mlxhog.errors import ConfigError, EnvironmentLacks, MlxhogError

if TYPE_CHECKING:
    from mlxhog.cluster.torchft_group import TorchftGroup

POLL_S = 0.01
ROUNDS = "rounds.jsonl"
"""File beside the log: a line for each round that this machine committed, with its own tokens, all
tokens of the cluster, and the digest of the outer parameters after it."""
MIN_SLOW_S = 1.0  # a shorter round is never reported as slow
CONNECT_S = 10.0  # longest wait for the rendezvous to answer
SOLO_JOIN_S = 1.0  # between joins of a machine alone, so that a new one waits no longer
RETRY_S = 0.2  # before a last round that was not committed is tried again
START_S = 120.0  # the import of torch sends no heartbeat
LAST_ROUND_S = 5.0  # limit of the last round, beyond the time until the next one begins
CALLS = 4  # of a group in a round; each has a limit
QUIESCING = {ControlCommand[name] for name in ("DRAIN", "EVALUATE", "SAMPLE", "EXIT")}
OpenGroup = Callable[[TrainConfig, GetState, Describe], "TorchftGroup"]


def open_torchft(cluster: TrainConfig, get_state: GetState, describe: Describe) -> TorchftGroup:
    """Join the cluster by torchft; imports torch, so only the sidecar calls it."""
    check_torchft()
    address = parse_address(cluster.cluster or "")
    own = own_ip(address, CONNECT_S)  # fails without a cluster, before the slow import of torch
    if cluster.cluster_own_address is not None:
        own = parse_address(f"{cluster.cluster_own_address}:0").ip
    engine = importlib.import_module("mlxhog.cluster.torchft_group")
    group: TorchftGroup = engine.TorchftGroup(
        address,
        describe,
        get_state,
        round=get_state().round,
        token=token_of(cluster.cluster_token or ""),
        own=own,
        dtype=cluster.round_dtype,
        timeout_s=cluster.cluster_limit_s,
    )
    return group


@dataclass(frozen=True, kw_only=True)
class SidecarJob:
    """Arguments of every sidecar process of a run."""

    cluster: TrainConfig  # configuration of the run
    identity: Identity  # of the run
    log: Path  # file for its output, in a folder of the run, which may be renamed
    open_group: OpenGroup = open_torchft


# -- the process -----------------------------------------------------------------------------------


def main(pipe: Connection, job: SidecarJob, handle: ArenaHandle, slot: int) -> None:
    """Run the sidecar process, which sends its error before it ends."""
    with suppress(OSError):  # else output is dropped
        with open(job.log, "w", buffering=1, opener=inside(job.log.parents[1])) as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
    code = 1
    try:
        _run(pipe, job, Arena.from_handle(handle), slot)
        code = 0
    except FAULTS as fault:
        end_by(fault)
    except MlxhogError as error:
        with suppress(OSError):
            pipe.send(error)
            print(f"error: {error}", file=sys.stderr, flush=True)
    except BaseException:  # of the network, mostly
        with suppress(OSError):
            traceback.print_exc()
    os._exit(code)  # threads of torchft must not keep the process


def _run(pipe: Connection, job: SidecarJob, arena: Arena, slot: int) -> None:
    cluster, counters, entry = job.cluster, arena.counters, arena.workers.entry(slot)
    entry.beat(WorkerPhase.IDLE)

    @contextmanager
    def writing() -> Iterator[None]:
        """Wait until the parameters may be written, with the phase APPLY meanwhile."""
        while True:
            entry.beat(WorkerPhase.APPLY)
            command = ControlCommand(counters.load("command"))
            if not counters.load("pause") and (command not in QUIESCING or words["last"]):
                break
            if command == ControlCommand.EXIT:
                os._exit(0)
            entry.beat(WorkerPhase.IDLE)
            time.sleep(POLL_S)
        yield
        entry.beat(WorkerPhase.IDLE)

    own = OuterState(arena, slot, writing)
    own.recover()
    words, logs = own.words, OpenFolder(job.log.parent)

    def describe() -> MemberMachine:
        name = cluster.cluster_machine or platform.node()
        return MemberMachine(words["id"], name, own.committed(), words["rounds"])

    group = job.open_group(cluster, own.state, describe)
    group.check(job.identity)
    newest = list[Membership]()

    def show(member: Membership, notes: Mapping[str, str] | None = None) -> None:
        newest[:] = [member]
        pipe.send((member, replace(describe(), id=member.ids[member.rank]), notes or {}))

    words["ready"] = 1
    entry.state = WorkerState.RUNNING
    every_ns, solo_ns = (int(seconds * 1e9) for seconds in (cluster.round_every, SOLO_JOIN_S))
    next_ns = monotonic_ns()
    due_ns = next_ns + every_ns
    while (command := ControlCommand(counters.load("command"))) != ControlCommand.EXIT:
        entry.beat()
        if not words["last"] and (command in QUIESCING or monotonic_ns() < next_ns):
            time.sleep(POLL_S)
            continue
        is_due = bool(words["last"]) or monotonic_ns() >= due_ns
        outcome = run_round(own, group, cluster, show, is_due=is_due)
        show(newest[0], slowness(own, outcome, cluster))
        if outcome is Outcome.COMMITTED:
            _record(logs.path / ROUNDS, own)
        else:
            time.sleep(RETRY_S)
        # All members have left `join` together, so their next rounds begin together.
        if outcome is not Outcome.EARLY:
            due_ns = words["joined_ns"] + every_ns
        next_ns = due_ns if words["members"] > 1 else min(due_ns, monotonic_ns() + solo_ns)
        if words["last"] and not own.uncommitted(own.trained()):
            words["last"] = 0
            break
    group.leave()
    entry.state = WorkerState.FINISHED


def slowness(own: OuterState, outcome: Outcome, cluster: TrainConfig) -> dict[str, str]:
    """Return warnings that this machine may be too slow for its rounds, by subject."""
    took_s = (monotonic_ns() - own.words["joined_ns"]) / 1e9
    took, every = format_duration(took_s), format_duration(cluster.round_every)
    if outcome is Outcome.REFUSED and took_s > cluster.cluster_limit_s:
        return {
            "timeout": f"a round was aborted after {took}: a machine was stopped or unplugged, or "
            "a network connection is too slow; if this recurs, raise --cluster-timeout and "
            "--round-every on all machines, or use --round-dtype bfloat16"
        }
    if outcome is Outcome.COMMITTED and took_s > max(cluster.round_every, MIN_SLOW_S):
        return {
            "slow": f"a round took {took}, longer than the {every} between rounds: this machine or "
            "its network connection is too slow; raise --round-every on all machines, or use "
            "--round-dtype bfloat16"
        }
    return {}


def _record(path: Path, own: OuterState) -> None:
    """Append a committed round to the file of rounds; a full disk loses its line only."""
    words = own.words
    record = {
        "round": words["round"] - 1,
        "members": words["members"],
        "rank": words["rank"],
        "tokens": own.round_tokens,
        "cluster_tokens": words["tokens"],
        "outer_digest": own.digest.hex(),
    }
    with suppress(OSError), open(path, "a", opener=inside(path.parents[1])) as stream:
        stream.write(json.dumps(record) + "\n")


# -- the supervisor's handle -----------------------------------------------------------------------


class Sidecar:
    """The supervisor's handle of the sidecar process; used by one thread of one process."""

    def __init__(self, arena: Arena, job: SidecarJob) -> None:
        """Start no process yet, in an arena of this process."""
        self.arena, self._job, self.members = arena, job, ClusterMembers()
        self._state = OuterState(arena)
        self._words = self._state.words
        self.slot = 0  # its worker slot; 0 while there is none
        self.messages = list[str]()  # for the user; the supervisor removes them
        self._process: WorkerProcess | None = None
        self._started_ns = 0
        self._noted = set[str]()  # subjects of notes that were reported
        self._error: MlxhogError | None = None  # the last of the present process
        self._faulty = False
        self._rounds = 0
        self._watched, self._heartbeat = WatchedTime(), Heartbeat()

    def start(self, slot: int) -> None:
        """Initialize the outer parameters, and start the process in a free worker slot.

        No worker may write yet.
        """
        self._state.initialize()
        self._logs = OpenFolder(self._job.log.parent)
        self.slot = slot
        self.arena.workers.entry(slot).is_sidecar = 1
        self._spawn()

    def _spawn(self) -> None:
        self._started_ns, self._error = monotonic_ns(), None
        self._process = WorkerProcess(
            main,
            (replace(self._job, log=self._log), self.arena.handle(), self.slot),
            name="mlxhog-sidecar",
            threads=1,
            table=self.arena.workers,
            slot=self.slot,
        )

    @property
    def _log(self) -> Path:
        return self._logs.path / self._job.log.name

    @property
    def pid(self) -> int | None:
        """Id of the process; None while there is none."""
        return None if self._process is None else self._process.pid

    def poll(self) -> None:
        """Replace a dead process when a round has passed since its start; report changes.

        Raises:
            ConfigError, EnvironmentLacks: the first process was refused; the message is its own.
        """
        if not self.slot or self._faulty:
            return
        rounds = self._words["rounds"]
        if self.members.is_alone and rounds > self._rounds:
            self.members.is_alone = False
            members = self._words["members"]
            self.messages.append(f"back in the cluster, in a round of {members} machines")
        self._rounds = rounds
        if self._process is not None:
            self._listen(self._process.pipe)
            self._kill_stale(self._process)
            if not self._process.is_alive():
                self._reap(self._process)
        elapsed_s = (monotonic_ns() - self._started_ns) / 1e9
        is_due = elapsed_s > self._job.cluster.round_every
        is_over = self.arena.counters.load("command") in QUIESCING
        if self._process is None and is_due and not is_over and not self._faulty:
            try:
                self._spawn()
            except EnvironmentLacks as lacking:  # the next try is a round later
                if (message := f"the sidecar cannot be started now: {lacking}") not in self._noted:
                    self._noted.add(message)
                    self.messages.append(message)

    def _listen(self, pipe: Connection) -> None:
        with suppress(EOFError, OSError):  # it has ended
            while pipe.poll():
                message = pipe.recv()
                if isinstance(message, MlxhogError):
                    self._error = message
                    continue
                member, own, notes = message
                self.members.update(member, own)
                self.messages += [notes[subject] for subject in notes.keys() - self._noted]
                self._noted |= notes.keys()

    def _kill_stale(self, process: WorkerProcess) -> None:
        """Kill a process without a heartbeat for longer than its calls may take."""
        entry = self.arena.workers.entry(self.slot)
        limit_s = CALLS * self._job.cluster.cluster_limit_s
        if entry.state == WorkerState.STARTING:
            limit_s = max(limit_s, START_S)
        if self._heartbeat.silent_s(entry.heartbeat_ns, self._watched.look()) > limit_s:
            process.kill()

    def _reap(self, process: WorkerProcess) -> None:
        state = self.arena.workers.entry(self.slot).state
        death, self._process = process.reap(), None
        self._listen(process.pipe)
        process.close()
        SeqlockCounters(self.arena, self.slot).end_update()
        if state == WorkerState.FINISHED:
            return
        log = self._log
        refused = isinstance(self._error, ConfigError | EnvironmentLacks)
        if self._error and refused and not self.arena.counters.load("start_ns"):
            raise self._error
        with log.open("rb") if log.exists() else BytesIO() as output:
            line = last_lines(output)[-1]
        self._faulty = death.is_fault
        if self._faulty:
            self.messages.append(
                f"the sidecar failed with an error that a restart repeats ({line}), so this "
                f"machine trains alone; see {log}, and please report it"
            )
        elif not self.members.is_alone:
            self.messages.append(
                f"the sidecar ended ({death}; {line}); this machine trains alone until another "
                "one reaches the cluster"
            )
        self.members.is_alone = True

    def is_idle(self) -> bool:
        """Whether it writes no parameter while `pause` is set, or training is over."""
        return (
            self._process is None or self.arena.workers.entry(self.slot).phase != WorkerPhase.APPLY
        )

    @property
    def is_ready(self) -> bool:
        """Whether workers may start: this machine fits the others, or the first try has failed."""
        return self.members.is_alone or bool(self._words["ready"])

    def run_last_round(self, until: Callable[..., bool]) -> None:
        """Let the sidecar send what is trained, now that workers are quiesced.

        One that has not sent all in time is killed, so that a checkpoint knows what was sent.

        Args:
            until: waits for a condition, at most `limit_s`, as `Session.until`.
        """
        words = self._words
        words["last"] = 1
        for word, limit_s in (
            ("last", self._job.cluster.round_every + LAST_ROUND_S),
            ("sent", LAST_ROUND_S),  # others may have committed what it does not know of yet
        ):
            if self._process is not None and words["last"]:
                until(lambda word=word: self._process is None or not words[word], limit_s=limit_s)
        if words["last"]:
            self.stop(0.0)

    def stop(self, timeout_s: float) -> None:
        """Let the process leave the cluster, after the command to exit; kill it if that is slow."""
        if self._process is not None:
            self._process.reap(timeout_s)
            self._process.close()
            self._process = None
            SeqlockCounters(self.arena, self.slot).end_update()
            self.arena.workers.release(self.slot)
            self.arena.workers.entry(self.slot).is_sidecar = 0
            self.slot = 0

    def report(self) -> dict[str, object]:
        """Return the machine's counts, as `OuterState.report`."""
        return {"alone": self.members.is_alone, **self._state.report()}
