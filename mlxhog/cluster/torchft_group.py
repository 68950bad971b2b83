"""A cluster on torchft: the store and lighthouse of its first machine, and a member's group.

torchft decides who takes part in a round, replaces connections after a change, moves the state to a
member that is behind, and says whether a round is committed. What this file adds:

- connections, store and transfers use the machine's address in the cluster, not its hostname;
- a transferred state is loaded as data; torchft by itself would execute what a peer pickled;
- each machine describes itself in the store at each join;
- members authenticate by HMAC under the token (`rendezvous.hmac_of`): a round with a member whose
  hello has another one is refused, and the state is sent only for an authenticated request;
- members exchange their ids whenever the membership changes.

A group is used once: after an exception from `join` its process ends, since a torchft manager
raises the error of a failed quorum at every later one.
"""

import json
import logging
import os
import re
import time
import urllib.parse
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any, Final

# Read at the imports below. Errors are raised; a line for every quorum would hide them.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
os.environ.setdefault("RUST_LOG", "warn")

import torch
import torch.distributed as dist
import torchft
from torchft.checkpointing import HTTPTransport
from torchft.checkpointing._serialization import _streaming_load
from torchft.coordination import LighthouseClient, LighthouseServer
from torchft.process_group import create_store_client

from mlxhog.base import plain_json
from mlxhog.base.http_server import listen
from mlxhog.base.processes import FAULTS
from mlxhog.base.reading import MAX_BYTES
from mlxhog.cluster.group import (
    MAX_COUNT,
    MAX_SECONDS,
    ClusterError,
    Describe,
    Float32,
    GetState,
    GroupState,
    Identity,
    MemberMachine,
    Membership,
    check_identity,
)
from mlxhog.cluster.rendezvous import Address, check_token, hmac_of, is_hmac
from mlxhog.errors import message_of, shown

logging.getLogger("torchft").setLevel(logging.ERROR)
_DIRECT: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Opens URLs of members, which no proxy of this machine's settings reaches, as all else does."""
MIN_REPLICAS: Final = 1
"""The lighthouse's minimum; a machine without others trains on and does not wait for them."""
JOIN_S: Final = 10.0
"""Longest wait of a round for live machines; above `HEARTBEAT_TIMEOUT_S`, else they take turns."""
HEARTBEAT_TIMEOUT_S: Final = 2.0
"""A round does not wait for a machine without a heartbeat for this long."""
CONNECT_S: Final = 10.0
MAX_NAME: Final = 64
MAX_MACHINES: Final = 1000  # that a machine reads about, the newest


class Rendezvous:
    """The store at a named address and torchft's lighthouse, until `close`.

    Raises:
        ConfigError: the address is in use, or not one of this machine.
        EnvironmentLacks: the system does not allow this user to listen there.
    """

    def __init__(self, address: Address, token: str) -> None:
        port, self._store = _serve_store(address.ip, address.port)
        self.address = Address(address.host, address.ip, port)
        self._lighthouse = LighthouseServer(
            bind=f"{address.ip}:0",
            min_replicas=MIN_REPLICAS,
            join_timeout_ms=round(1000 * JOIN_S),
            heartbeat_timeout_ms=round(1000 * HEARTBEAT_TIMEOUT_S),
        )
        port = self._lighthouse.address().rpartition(":")[2]
        self._store.set("lighthouse", f"http://{address.ip}:{port}")
        self._store.append("machines", " ")
        self._store.set("token", hmac_of(token))  # last: members wait for it

    def close(self) -> None:
        """End both servers."""
        self._lighthouse.shutdown()
        del self._store


class TorchftGroup:
    """A member of the cluster at an address; used by one thread.

    A sidecar makes these calls, in this order; `check` once, the others for every round:

        check    compare the identity that all members share
        join     wait for the members of the next round
        state    the members' state, where this one's is older
        average  the mean of the members' buffers, or none for any of them

    Each may raise a network error. The sidecar then ends; the next begins from the arena.

    Args:
        address: of the cluster.
        describe: see `group.py`; the id is also that of torchft's logs.
        get_state: see `group.py`. Its arrays must not change before `average` returns.
        own: address of this machine, which the others reach.
        round: rounds that this member has committed, 0 for a new one.
        token: of the cluster.
        dtype: of values on the wire, the exact ones of `average` apart: float32 or bfloat16.
        timeout_s: limit for a join, for a transfer, and for an average.

    Raises:
        ConfigError: wrong token.
        ClusterError: no cluster answers.
    """

    def __init__(
        self,
        address: Address,
        describe: Describe,
        get_state: GetState,
        *,
        own: str,
        round: int = 0,
        token: str = "",
        dtype: str = "float32",
        timeout_s: float = 60.0,
    ) -> None:
        self._describe, self._dtype = describe, getattr(torch, dtype)
        self._loaded: GroupState | None = None
        connect, timeout = timedelta(seconds=CONNECT_S), timedelta(seconds=timeout_s)
        id = describe().id
        max_bytes = 4 * get_state().params.nbytes + (1 << 20)  # two such arrays, and scalars
        with _failures(f"joining the cluster at {address}"):
            self._store = dist.TCPStore(
                address.ip, address.port, is_master=False, wait_for_workers=False, timeout=connect
            )
            proof, machines, lighthouse = self._read("token", "machines", "lighthouse")
            check_token(token, proof, address)
            if str(id) not in machines.split():
                self._store.set(f"machine/{id}", "null")
                self._store.append("machines", f"{id} ")
            port, self._rendezvous = _serve_store(own, 0)
            self._connections = _Connections(own, timeout, token, id)
            for name in [one for one in os.environ if one.startswith("TORCHFT_")]:
                del os.environ[name]  # torchft prefers them to the arguments below
            self._manager = torchft.Manager(
                pg=self._connections,
                state_dict=lambda: _to_tensors(get_state()),
                load_state_dict=lambda state: setattr(self, "_loaded", state["state"]),
                min_replica_size=1,
                use_async_quorum=False,
                timeout=timeout,
                quorum_timeout=timeout,
                connect_timeout=connect,
                rank=0,
                world_size=1,
                store_addr=own,
                store_port=port,
                lighthouse_addr=lighthouse,
                replica_id=str(id),  # of a name it would read the last digits, such as "²"
                hostname=own,
                checkpoint_transport=_Transport(own, timeout, token, max_bytes),
            )
            client = LighthouseClient(lighthouse, connect)
            replica_id = self._rendezvous.get(torchft.manager.REPLICA_ID_KEY).decode()
            self._heartbeat = partial(client.heartbeat, replica_id, connect)
            self._heartbeat()  # from now on a round waits for this member
        self.be_at(round)

    def check(self, identity: Identity) -> None:
        """Compare this member with the others; ConfigError as `check_identity`."""
        with _failures("comparing with the other machines"):
            own = json.dumps(dict(identity), sort_keys=True)
            first = self._store.compare_set("identity", "", own).decode()
        check_identity(identity, first)

    def join(self) -> Membership:
        """Wait for the members of the next round; ClusterError if one is out of reach."""
        self._loaded = None
        with _failures("joining a round"):
            self._heartbeat()
            machines = self._exchange_machines()
            self._manager.start_quorum()
            # torchft notes a failed connection or transfer, and would go on with the old state:
            # what this member has sent would count as not committed.
            if (failure := self._manager.errored()) is not None:
                if isinstance(failure.original_exception, ClusterError):
                    raise failure.original_exception
                raise RuntimeError(message_of(failure.original_exception))
        ids = self._connections.ids
        here = tuple(replace(one, seen_s=0.0) if one.id in ids else one for one in machines)
        return Membership(self._manager.current_step(), self._connections.rank, ids, here)

    def _read(self, *keys: str) -> list[str]:
        """Wait for values of the store, in one round trip."""
        return [value.decode() for value in self._store.multi_get(keys)]

    def _exchange_machines(self) -> list[MemberMachine]:
        """Describe this machine in the store; return all machines that have done so."""
        own, now_s = self._describe(), time.time()
        described = [own.name[:MAX_NAME], own.tokens, own.rounds, now_s]
        self._store.set(f"machine/{own.id}", json.dumps(described))
        (known,) = self._read("machines")
        every = dict.fromkeys(id for id in known.split() if re.fullmatch("[0-9]{1,19}", id))
        ids = list(every)[-MAX_MACHINES:]  # whoever reaches the store may add to them
        machines = list[MemberMachine]()
        for id, text in zip(ids, self._read(*(f"machine/{id}" for id in ids)), strict=True):
            with suppress(ValueError, TypeError, OverflowError):  # not yet, or something else
                name, tokens, rounds, at_s = plain_json.loads(text)
                seen_s = min(max(0.0, now_s - float(at_s)), MAX_SECONDS)
                if type(tokens) is type(rounds) is int and 0 <= min(tokens, rounds):
                    counts = min(tokens, MAX_COUNT), min(rounds, MAX_COUNT)
                    machines.append(MemberMachine(int(id), str(name)[:MAX_NAME], *counts, seen_s))
        return machines

    def state(self) -> GroupState | None:
        """Return the members' state after `join`; None if this member has the same round.

        In round 0 it is the state of rank 0, so that all begin at the same parameters.
        """
        return self._loaded

    def average(self, buffer: Float32, exact: int) -> bool:
        """Replace a buffer by the mean over all members, the same bits for each.

        Args:
            buffer: (n,) float32; of undefined content if the result is False.
            exact: floats at its end that are sent as float32, also with `bfloat16`; at least 1.

        Returns:
            Whether all members have the mean; else none of them may use it.
        """
        tensor = torch.from_numpy(buffer)
        parts = [tensor[:-exact].to(self._dtype), tensor[-exact:]]  # float32: of the same memory
        with _failures("averaging"):
            for part in parts:
                self._manager.allreduce(part, reduce_op=dist.ReduceOp.SUM).wait()
            commits = bool(self._manager.should_commit())
        tensor[:-exact].copy_(parts[0])
        tensor.div_(self._manager.num_participants())
        return commits

    def be_at(self, round: int) -> None:
        """Set the number of committed rounds that this member reports."""
        self._manager.load_state_dict({"step": round, "batches_committed": 0})

    def leave(self) -> None:
        """Leave the cluster; no other call follows."""
        with suppress(ClusterError), _failures("leaving"):
            self._exchange_machines()  # with what the last round has committed
        self._manager.shutdown()
        self._connections.abort(errored=False)


class _Connections(torchft.ProcessGroupGloo):  # type: ignore[misc]  # it has no types
    """Gloo on one address of this machine; members exchange their ids in `configure`."""

    def __init__(self, own: str, timeout: timedelta, token: str, id: int) -> None:
        super().__init__(timeout)
        self._own, self._token, self._id = own, token, id
        self.ids: tuple[int, ...] = ()  # of the members, by rank
        self.rank = 0

    def configure(
        self, store_addr: str, replica_id: str, rank: int, world_size: int, *more: Any
    ) -> None:
        """Authenticate the members of a new quorum, and connect to them."""
        store = create_store_client(store_addr, self._timeout)
        proof = hmac_of(self._token, f"{store_addr} {rank} {self._id}")
        store.set(f"hello/{rank}", json.dumps([self._id, proof]))
        texts = [store.get(f"hello/{other}").decode() for other in range(world_size)]
        with _foreign("the hello of a member"):
            hellos = [plain_json.loads(text) for text in texts]
            for other, (id, proof) in enumerate(hellos):
                if not is_hmac(self._token, f"{store_addr} {other} {id}", proof):
                    raise ClusterError(
                        f"member {other} of the round does not know the cluster's token, so no "
                        "round takes place with it; let only machines of this run reach the ports"
                    )
            self.ids, self.rank = tuple(int(id) for id, _ in hellos), rank
            if not all(0 < id < 1 << 63 for id in self.ids):
                raise ValueError(f"{shown(self.ids)} has an id that no machine has")
        super().configure(store_addr, replica_id, rank, world_size, *more)

    def _create_pg(self, store: dist.Store, rank: int, world_size: int) -> dist.ProcessGroup:
        """Connect as torchft does, but by this machine's address in place of its hostname."""
        group = dist.ProcessGroup(store, rank, world_size)
        gloo, cpu = dist.ProcessGroup.BackendType.GLOO, torch.device("cpu")
        options = dist.ProcessGroupGloo._Options()
        options._devices = [dist.ProcessGroupGloo.create_device(hostname=self._own)]
        options._timeout = self._timeout
        backend = dist.ProcessGroupGloo(store, rank, world_size, options)
        backend._set_sequence_number_for_group()
        group._set_default_backend(gloo)
        group._register_backend(cpu, gloo, backend)
        return group


class _Transport(HTTPTransport):  # type: ignore[misc]  # likewise
    """torchft's HTTP transfer by address; a state is loaded as data and never executed."""

    def __init__(
        self, own: str, timeout: timedelta, token: str, max_bytes: int = MAX_BYTES
    ) -> None:
        self._own, self._token, self._max_bytes = own, token, max_bytes
        super().__init__(timeout, num_chunks=0)
        handler: Any = self._server.RequestHandlerClass

        class Authenticated(handler):  # type: ignore[misc]
            def do_GET(self) -> None:
                if is_hmac(token, self.path, self.headers.get("Authorization")):
                    super().do_GET()
                else:
                    self.send_error(403, "the request has no HMAC by the cluster's token")

            def log_message(self, *arguments: object) -> None:
                pass  # else each request adds a line to the log

        self._server.RequestHandlerClass = Authenticated

    def address(self) -> str:
        """Return the URL of this server by address; torchft's has the hostname."""
        return f"http://{self._own}:{self._server.socket.getsockname()[1]}/checkpoint/"

    def shutdown(self, wait: bool = True) -> None:
        """End the server and close its socket."""
        super().shutdown(wait)
        self._server.server_close()

    def recv_checkpoint(
        self, src_rank: int, metadata: str, step: int, timeout: timedelta
    ) -> dict[str, Any]:
        """Load the state of a round from the member at a URL; anything else is an error."""
        path = urllib.parse.urlsplit(url := f"{metadata}{step}/full").path
        request = urllib.request.Request(url, headers={"Authorization": hmac_of(self._token, path)})
        with (
            _DIRECT.open(request, timeout=timeout.total_seconds()) as stream,
            warnings.catch_warnings(),
            _foreign("the state of another member"),
        ):
            warnings.filterwarnings("ignore", "The given buffer is not writable")  # it is copied
            bounded: Any = _Bounded(stream, self._max_bytes)
            loaded: Any = _streaming_load(bounded, weights_only=True)
            values = loaded["user"]["default"]
            arrays = {name: values[name].numpy().copy() for name in ("params", "velocity")}
            state = GroupState(**{**values, **arrays})  # `GroupState.check` checks its numbers
        torchft_own = {"step": step, "batches_committed": 0}
        return {"user": {"default": {"state": state}}, "torchft": torchft_own}


class _Bounded:
    """A stream that raises ValueError beyond a number of bytes, before memory is allocated."""

    def __init__(self, stream: Any, max_bytes: int) -> None:
        self._stream, self._left, self._max_bytes = stream, max_bytes, max_bytes

    def read(self, n: int) -> bytes:
        self._count(n)
        content: bytes = self._stream.read(n)
        return content

    def readline(self) -> bytes:
        line: bytes = self._stream.readline(self._left + 1)
        self._count(len(line))
        return line

    def _count(self, n: int) -> None:
        if not 0 <= n <= self._left:
            raise ValueError(f"more than {self._max_bytes:,} bytes")
        self._left -= n


def _serve_store(ip: str, port: int) -> tuple[int, dist.TCPStore]:
    """Serve a store, at any free port for 0; returns its port, too."""
    listener = listen(ip, port)
    port = listener.getsockname()[1]
    return port, dist.TCPStore(
        ip, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
    )


def _to_tensors(state: GroupState) -> dict[str, Any]:
    arrays = {name: torch.from_numpy(getattr(state, name)) for name in ("params", "velocity")}
    return {**vars(state), **arrays}


@contextmanager
def _foreign(what: str) -> Iterator[None]:
    try:
        yield
    except (*FAULTS, MemoryError) as error:
        raise ClusterError(
            f"{what} is not what mlxhog sends: {message_of(error)}; let only machines of this run "
            "reach the ports"
        ) from error


@contextmanager
def _failures(what: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, OSError) as error:
        reason = message_of(error).partition(", details:")[0]  # the rest is gRPC's metadata
        raise ClusterError(f"{what} failed: {reason}") from error
