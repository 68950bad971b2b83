"""Text that is divided among clients: every document once, as unevenly as alpha says."""

import hashlib
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from mlxhog.data import clients, prepare
from mlxhog.data.clients import ClientBatches
from mlxhog.data.tokens import TokenFile
from mlxhog.errors import DataError
from tests.strategies.runs import begin_step, end_step, new_arena, strategy, worker

LABELS = [f"class {k % 5}" for k in range(100)]
TOKENS = [10 + k % 7 for k in range(100)]
ALPHAS = (0, 0.01, 0.1, 1.0, 100.0, math.inf)


def divide(alpha, n=4, seed=0, least=1):
    return clients.divide(LABELS, TOKENS, clients=n, alpha=alpha, seed=seed, least_tokens=least)


def test_every_document_goes_to_exactly_one_client_as_recorded():
    divisions = [divide(alpha) for alpha in ALPHAS]
    for division in divisions:
        assert sorted(k for own in division.documents for k in own) == list(range(100))
        assert sum(division.tokens) == sum(TOKENS)
    lists = json.dumps([division.documents for division in divisions]).encode()
    assert hashlib.sha256(lists).hexdigest()[:16] == "93b777f3fba1a1b6"


def test_shares_are_drawn_again_until_every_client_has_enough():
    assert min(divide(0.3, least=100).tokens) >= 100
    with pytest.raises(DataError, match="use fewer --clients, or a larger --split-alpha"):
        divide(0.0, n=6)


@pytest.mark.slow
def test_addresses_are_divided_by_party_and_other_texts_in_ten_parts():
    assert len(clients.classes("sotu", "every-12th", 214)) == 214
    assert len(set(clients.classes("sotu", "tail", 233))) == 8
    assert len(set(clients.classes("/texts", "tail", 20))) == 10


def test_a_clients_batches_are_its_own_text_each_sequence_once(tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    for k in range(24):
        (folder / f"{k:02}.txt").write_text(chr(97 + k) * (90 + 5 * k))
    train = TokenFile.open(prepare.prepare(str(folder), cache_dir=tmp_path / "cache").train)
    n = len(train.starts) - 1
    documents = [tuple(range(k, n, 3)) for k in range(3)]
    batches = ClientBatches(train, documents, seq_len=16, batch_size=4, seed=1)
    first = 0
    for client, own in enumerate(documents):
        spans = [train.tokens[int(train.starts[k]) : int(train.starts[k + 1])] for k in own]
        text = np.concatenate(spans).astype(np.int32)
        tickets = range(first, first := first + batches.tickets[client])
        rows = [
            (*x.tolist(), int(y[-1]))
            for batch in (batches.at(1, ticket) for ticket in tickets)
            for x, y in zip(batch.x, batch.y, strict=True)
        ]
        expected = [
            tuple(text[16 * i : 16 * i + 17].tolist()) for i in range((len(text) - 1) // 16)
        ]
        assert sorted(rows) == sorted(expected)
        assert rows != expected
    assert first == batches.n_tickets


def test_workers_train_their_clients_in_turn_and_go_on_when_there_are_others():
    tickets = (8,) * 5
    two = replace(strategy("avg_runs", 2), client_tickets=tickets)
    with new_arena(two, n_tickets=40) as arena:
        workers, claims = [worker(arena, slot, two) for slot in (1, 2)], []
        for one in workers * 4:
            lease = begin_step(one)
            (part,) = lease.parts
            claims.append(divmod(part.ticket, 8))
            end_step(one, lease)
        state = two.state(arena)
    assert claims[::2] == [(0, 0), (2, 0), (4, 0), (0, 1)]
    assert claims[1::2] == [(1, 0), (3, 0), (1, 1), (3, 1)]
    assert state["clients"] == [2, 2, 1, 2, 1]
    three = replace(strategy("avg_runs", 3), client_tickets=tickets)
    with new_arena(three, n_tickets=40) as arena:
        three.restore_state(arena, state)
        leases = [worker(arena, slot, three).claim() for slot in (1, 2, 3)]
        assert [lease.parts[0].ticket for lease in leases] == [0 + 2, 8 + 2, 16 + 1]
