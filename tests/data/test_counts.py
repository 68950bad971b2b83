"""Counted n-grams against a dictionary, in which every occurrence is counted by itself."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mlxhog.data import counts, subset
from mlxhog.data.counts import Counts
from mlxhog.data.prepare import prepare
from mlxhog.data.tokens import TokenFile
from mlxhog.errors import DataError
from tests.pairs import each_of

Context = tuple[int, ...]


def text_of(ids, vocab, n_bytes=None):
    """A token file of one document, in memory; by default an id stands for a byte."""
    header = {"documents": 0, "bytes": n_bytes or len(ids), "vocab": vocab, "bos": 0}
    starts = np.array([0, len(ids)], np.uint64)
    return TokenFile(Path("text.bin"), ids.astype(np.uint16), starts, np.ones(vocab, int), header)


def drawn(symbols, n, seed=0):
    """A text in which few contexts are frequent and most are rare."""
    random = np.random.default_rng(seed)
    words = [(random.random(6) ** 3 * symbols).astype(int) for _ in range(30)]
    ids = np.concatenate([words[int(k)] for k in random.random(n // 6) ** 2 * 30])
    return np.concatenate([np.arange(symbols), ids])  # each occurs


class Dictionary:
    """The definition: occurrences of (context, next id), and the mixture, one id after another."""

    def __init__(self, ids, table, runs=1):
        self.table, self.ids = table, ids.tolist()
        self.pairs = Counter()
        length = len(ids) // runs
        for begin in range(0, length * runs, length):
            for at in range(begin + table.orders, begin + length):
                self.pairs.update(self.keys(at))

    def keys(self, at):
        return [(tuple(self.ids[at - k : at]), self.ids[at]) for k in range(self.table.orders + 1)]

    def without(self, at):
        """The counts of the text in which this occurrence was left out."""
        rest = self.pairs.copy()
        rest.subtract(self.keys(at))
        return +rest

    def distribution(self, context, pairs=None):
        p = np.full(len(self.table.ranks), 1 / len(self.table.ranks))
        for k in range(min(len(context), self.table.orders) + 1):
            own = context[len(context) - k :]
            found = {i: n for (c, i), n in (pairs or self.pairs).items() if c == own}
            if not found:
                break
            total = sum(found.values())
            place = 8 * (min(total.bit_length(), 12) - 1) + min(len(found).bit_length(), 8) - 1
            ml, w = np.zeros(len(self.table.ranks)), float(self.table.weights[k, place])
            ml[list(found)] = np.array(list(found.values())) / total
            p = w * ml + (1 - w) * p
        return p


TEXTS = [(3, 400, 7), (200, 500, 7), (300, 700, 6), (5000, 5600, 3)]
"""Distinct ids, length, and the ids of context for which a key of 64 bits has room."""


@pytest.mark.slow
@each_of("symbols, n, orders", TEXTS)
def test_every_probability_is_that_of_a_dictionary(symbols, n, orders):
    ids = drawn(symbols, n)
    table = Counts.of(text_of(ids, symbols + 9))
    assert table.orders == orders
    assert ((table.weights > 0) & (table.weights < 1)).all()
    by_hand = Dictionary(ids, table)
    other = np.concatenate([ids[-60:-30], drawn(symbols, 120, seed=1)[-30:], [symbols + 8]])
    positions = np.arange(len(other))
    expected = [
        by_hand.distribution(tuple(other[max(0, at - orders) : at].tolist()))[other[at]]
        for at in positions.tolist()
    ]
    ours = table.probabilities(other.astype(np.int32), positions)
    np.testing.assert_allclose(ours, expected, rtol=1e-6)


@each_of("symbols, n, orders", TEXTS[:3])
def test_without_itself_is_a_count_of_the_text_without_this_occurrence(symbols, n, orders):
    ids = drawn(symbols, n)
    table = Counts.of(text_of(ids, symbols))
    by_hand = Dictionary(ids, table)
    positions = np.arange(orders, len(ids), 23)
    expected = [
        by_hand.distribution(tuple(ids[at - orders : at].tolist()), by_hand.without(at))[ids[at]]
        for at in positions.tolist()
    ]
    ours = table.probabilities(ids.astype(np.int32), positions, without_itself=True)
    np.testing.assert_allclose(ours, expected, rtol=1e-6)
    with pytest.raises(ValueError, match="was not counted"):
        table.probabilities(ids.astype(np.int32), np.array([orders - 1]), without_itself=True)


def test_the_weights_are_those_under_which_the_text_without_each_occurrence_is_likeliest():
    ids = drawn(20, 3000)
    table = Counts.of(text_of(ids, 20))
    positions = np.arange(table.orders, len(ids))

    def nats(weights):
        other = replace(table, weights=weights)
        p = other.probabilities(ids.astype(np.int32), positions, without_itself=True)
        return float(-np.log(p).mean())

    best = nats(table.weights)
    for change in (0.9, 1.1):
        for order in range(table.orders + 1):
            weights = table.weights.copy()
            weights[order] = (weights[order] * change).clip(0.01, 0.99)
            assert nats(weights) > best - 1e-3
    assert nats(np.full_like(table.weights, 0.5)) > best + 0.02


def test_of_a_long_text_evenly_spaced_runs_are_counted(monkeypatch):
    monkeypatch.setattr(counts, "SAMPLE", 400)
    monkeypatch.setattr(counts, "_RUN", 100)
    ids = np.arange(1000) // 2 % 50
    table = Counts.of(text_of(ids, 50))
    sample = np.concatenate([ids[begin : begin + 100] for begin in (0, 300, 600, 900)])
    assert table.levels[0].times.sum() == 4 * (100 - table.orders)  # no context spans two runs
    by_hand = Dictionary(sample, table, runs=4)
    expected = by_hand.distribution(tuple(ids[10:17].tolist()))[ids[17]]
    ours = table.probabilities(ids[:18].astype(np.int32), np.array([17]))
    assert ours[0] == pytest.approx(expected, rel=1e-6)


def prepared(folder, text, name="a.txt"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return prepare(str(folder / name))


def test_the_score_is_of_the_held_out_part_and_is_stored_beside_it_until_a_text_changes(
    tmp_path, monkeypatch
):
    words = np.random.default_rng(0).choice(["lock", "free", "adds", "never", "wait"], 3000)
    text = prepared(tmp_path / "a", " ".join(words))
    table, part = Counts.of(TokenFile.open(text.train)), subset.of(TokenFile.open(text.val), 512)
    ids = part.tokens.astype(np.int32)
    p = [table.probabilities(ids, np.array([at]))[0] for at in range(1, len(ids))]
    bits = counts.score(text.train, text.val, 512)
    assert bits == pytest.approx(-np.log2(p).sum() / part.header["bytes"])
    assert bits < 1  # five words

    def recount(file):
        raise DataError("counted again")

    monkeypatch.setattr(Counts, "of", recount)
    assert counts.score(text.train, text.val, 512) == bits
    monkeypatch.undo()
    assert counts.score(text.train, text.val, 256) != bits  # which is stored now
    monkeypatch.setattr(Counts, "of", recount)
    stored = text.val.with_name("counts.json")
    for damaged in ({**json.loads(stored.read_text()), "bits": -1}, []):
        stored.write_text(json.dumps(damaged))
        with pytest.raises(DataError, match="counted again"):
            counts.score(text.train, text.val, 256)


def test_prompts_and_completions_have_no_score(tmp_path):
    lines = [json.dumps({"prompt": f"{k}: ", "completion": "wait"}) for k in range(24)]
    text = prepared(tmp_path, "\n".join(lines), "a.jsonl")
    assert counts.score(text.train, text.val, 512) is None
