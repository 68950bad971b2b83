"""Members on torchft in processes: what we add to it; whole runs show deaths (`test_runs.py`)."""

import json
import os
import pickle
import threading
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from multiprocessing.connection import wait
from types import SimpleNamespace

import numpy as np
import pytest

from mlxhog.arena.child import Failed
from mlxhog.cluster.group import ClusterError, GroupState, MemberMachine
from tests.cluster.members import DEAD_S, IDENTITY, Lighthouse, Member, cluster, together
from tests.threads import LIMIT_S

pytest.importorskip("torchft")


def same(answers):
    return len({answer.state.digest for answer in answers}) == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])  # on the wire
def test_members_commit_the_mean_of_their_buffers_and_have_the_same_bits(dtype):
    with cluster(1.0, 2.0, 6.0, dtype=dtype) as (_, members):
        first, second = together(members), together(members)
    assert [answer.commits for answer in first + second] == [True] * 6
    assert sorted(answer.membership.rank for answer in first) == [0, 1, 2]
    assert {(a.membership.round, a.membership.members) for a in second} == {(1, 3)}
    assert same(second)
    assert np.array_equal(second[0].state.params, np.full(4, 6.0, np.float32))


def test_a_machine_takes_part_whatever_its_name():
    with Lighthouse() as light, Member(light.address, "rack²") as one:
        answer = one.round()
    assert answer.commits
    assert [machine.name for machine in answer.membership.machines] == ["rack²"]


def test_a_late_member_and_a_restarted_one_load_the_state_and_take_part_at_once():
    with cluster(1.0, 3.0, silent_s=DEAD_S) as (address, members):
        together(members)
        members[1].close()
        with Member(address, "m1", 5.0) as again, Member(address, "late", 7.0) as late:
            answers = together([members[0], again, late])
    assert {one.name for one in answers[-1].membership.machines} == {"m0", "m1", "late"}
    assert [answer.has_loaded for answer in answers] == [False, True, True]
    assert [(a.commits, a.membership.members, a.state.round) for a in answers] == [(True, 3, 2)] * 3
    assert same(answers)


def test_a_member_that_cannot_load_the_state_does_not_take_part_with_its_old_one():
    with cluster(1.0, silent_s=DEAD_S) as (address, (first,)):
        first.round()
        with Member(address, "late", 3.0, loses_transfers=True) as late:
            late.begin_round()
            first.begin_round()
            while late.pipe not in wait([first.pipe, late.pipe], LIMIT_S):
                first.answer()
                first.begin_round()  # the late one was not in that one yet
            with pytest.raises(Failed, match="joining a round failed: the connection was"):
                late.answer()
        while not first.answer().commits:
            first.begin_round()  # the lost member was still in that one


def test_without_the_rendezvous_no_round_begins_and_with_the_next_one_members_join_again():
    with Lighthouse() as first:
        with Member(first.address, "m0", 1.0) as one, Member(first.address, "m1", 3.0) as other:
            before = together([one, other])
            first.close()
            for own in (one, other):
                with pytest.raises(Failed, match=" failed: "):
                    own.round()
        with Lighthouse(first.address) as second:
            assert second.address == first.address
            kept = {"round": 1, "params": 2.0}
            with Member(second.address, "m0", **kept) as one:
                with Member(second.address, "m1", **kept) as other:
                    after = together([one, other])
    assert [answer.commits for answer in before + after] == [True] * 4
    assert not any(answer.has_loaded for answer in after)
    assert same(after)


def test_members_that_give_up_a_round_meet_again_and_the_second_loads():
    """As after a mean that shows unequal outer parameters."""
    with Lighthouse() as light:
        one = Member(light.address, "m0", 1.0, round=5, params=-1.0)
        other = Member(light.address, "m1", 1.0, round=5, params=-2.0)
        with one, other:
            split, healed = together([one, other]), together([one, other])
    assert [answer.commits for answer in split] == [False, False]
    assert sum(answer.has_loaded for answer in healed) == 1
    assert [(answer.commits, answer.state.round) for answer in healed] == [(True, 6)] * 2
    assert same(healed)


def test_another_identity_is_refused_by_name_with_both_values():
    foreign = {**IDENTITY, "tokenizer": "other"}
    with cluster(1.0, silent_s=DEAD_S) as (address, members):
        members[0].round()
        with Member(address, "m1", identity=foreign) as other:
            with pytest.raises(Failed, match="tokenizer is 'other' here and 't'"):
                other.round()
        assert members[0].round().commits


def test_a_member_that_does_not_know_the_token_takes_part_in_no_round():
    """Its own check is no protection, so the others check."""
    with Lighthouse(token="right") as light:
        with Member(light.address, "m0", token="right") as one:
            assert one.round().commits
            with pytest.raises(Failed, match="has another token"):
                Member(light.address, "m1", token="wrong")
            with Member(light.address, "m1", 100.0, token="wrong", is_stranger=True) as stranger:
                stranger.begin_round()
                with pytest.raises(Failed, match="does not know the cluster's token"):
                    rounds_until_an_error(one)


def rounds_until_an_error(one):
    while True:
        assert one.round().state.params.max() < 99.0


@contextmanager
def offered(params):
    """A state that a member with the token "right" offers, and a function that fetches it."""
    from mlxhog.cluster.torchft_group import _to_tensors, _Transport

    limit, state = timedelta(seconds=LIMIT_S), GroupState(2, 30, params, np.zeros(4, np.float32))

    def fetch(token, **bound):
        own = stack.enter_context(closing_transport(_Transport("127.0.0.1", limit, token, **bound)))
        return own.recv_checkpoint(0, sender.address(), 2, limit)["user"]["default"]["state"]

    with ExitStack() as stack:
        sender = stack.enter_context(closing_transport(_Transport("127.0.0.1", limit, "right")))
        content = {"user": {"default": _to_tensors(state)}, "torchft": {}}
        sender.send_checkpoint([1], 2, content, limit)
        yield state, fetch


@contextmanager
def closing_transport(transport):
    try:
        yield transport
    finally:
        transport.shutdown()


def test_a_state_is_sent_only_for_a_request_with_the_token_and_read_up_to_its_size():
    with offered(np.ones(4, np.float32)) as (state, fetch):
        received = fetch("right")
        assert (received.digest, received.round) == (state.digest, 2)
        with pytest.raises(OSError, match="403"):
            fetch("wrong")
    with offered(np.ones(10**6, np.float32)) as (_, fetch):
        with pytest.raises(ClusterError, match="is not what mlxhog sends: more than 1,000,000 by"):
            fetch("right", max_bytes=10**6)


def test_a_state_of_a_member_takes_no_way_through_a_proxy(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    with offered(np.ones(4, np.float32)) as (state, fetch):
        assert fetch("right").digest == state.digest


def test_machines_that_describe_themselves_absurdly_are_left_out_or_bounded():
    from mlxhog.cluster.torchft_group import MAX_NAME, TorchftGroup

    told = {
        "1": ["a", 5, 2, 0.0], "2": ["b", -1, 2, 0.0], "3": ["c", 2**62, 2**70, -1e300],
        "4": ["d", "5", 2, 0.0], "5": ["e" * 999, 0, 0, 1e300], "6": 7, "9" * 30: ["f", 1, 1, 0.0],
    }  # fmt: skip
    store = {f"machine/{id}": json.dumps(words).encode() for id, words in told.items()}
    store["machines"] = " ".join([*told, "x", "-1"]).encode()
    group = SimpleNamespace(
        _describe=lambda: MemberMachine(7, "own"),
        _store=SimpleNamespace(set=lambda *_: None, multi_get=lambda keys: map(store.get, keys)),
    )
    group._read = partial(TorchftGroup._read, group)
    machines = {one.id: one for one in TorchftGroup._exchange_machines(group)}
    assert list(machines) == [1, 3, 5]
    assert (machines[3].tokens, machines[3].rounds) == (2**53 - 1, 2**53 - 1)
    assert machines[3].seen_s <= 366 * 86_400
    assert len(machines[5].name) == MAX_NAME


class Harm:
    def __reduce__(self):
        return os.abort, ()


def test_what_a_peer_sends_is_not_executed():
    from torch.distributed._serialization import _streaming_save

    from mlxhog.cluster.torchft_group import _Transport

    class Sender(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            _streaming_save({"user": Harm()}, self.wfile)

        def log_message(self, *words):
            pass

    transport = _Transport("127.0.0.1", timedelta(seconds=LIMIT_S), "")
    with HTTPServer(("127.0.0.1", 0), Sender) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/checkpoint/"
        with pytest.raises(pickle.UnpicklingError, match="abort"):
            transport.recv_checkpoint(0, url, 1, timedelta(seconds=LIMIT_S))
        thread.join()
    transport.shutdown()
