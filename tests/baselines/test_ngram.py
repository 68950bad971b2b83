"""Counted n-grams against a dictionary, in which every occurrence is counted by itself."""

import json
from collections import Counter
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from mlxhog.baselines import ngram
from mlxhog.data import validation_set
from mlxhog.data.prepare import prepare
from mlxhog.data.tokens import TokenFile
from mlxhog.errors import DataError
from tests.data.token_files import written
from tests.pairs import each_of


def text_of(ids, vocab):
    """A token file of one document, in memory; an id stands for a byte."""
    header = {"documents": 0, "bytes": len(ids), "vocab": vocab, "bos": 0}
    starts = np.array([0, len(ids)], np.uint64)
    return TokenFile(Path("text.bin"), ids.astype(np.uint16), starts, np.ones(vocab, int), header)


def drawn(symbols, n, seed=0):
    """A text in which few contexts are frequent and most are rare."""
    random = np.random.default_rng(seed)
    words = [(random.random(6) ** 3 * symbols).astype(int) for _ in range(30)]
    ids = np.concatenate([words[int(k)] for k in random.random(n // 6) ** 2 * 30])
    return np.concatenate([np.arange(symbols), ids])  # each occurs


def by_hand(runs, vocab, orders, text, at):
    """The definition: occurrences of (context, next id), ids before it, and the mixture."""
    found = [
        (tuple(run[place - orders : place]), run[place])
        for run in runs
        for place in range(orders, len(run))
    ]
    counted = [Counter(found)]
    for _ in range(orders):  # ids before a shorter context and its next id, each once
        counted.append(Counter((context[1:], own) for context, own in counted[-1]))
    p = 1 / vocab
    for k in range(min(at, orders) + 1):
        own = {i: n for (c, i), n in counted[orders - k].items() if c == tuple(text[at - k : at])}
        if not own:
            break
        rest = ngram.DISCOUNT * len(own) * p
        p = (max(own.get(text[at], 0) - ngram.DISCOUNT, 0) + rest) / sum(own.values())
    return p


@each_of(
    ("symbols", "n", "orders"),
    # Distinct ids, length, and the ids of context for which a key of 64 bits has room.
    [(3, 400, 7), (200, 500, 7), (300, 700, 6), (5000, 5600, 3)],
)
def test_every_probability_is_that_of_a_dictionary(monkeypatch, symbols, n, orders):
    ids, vocab = drawn(symbols, n), symbols + 9
    other = [*ids[-60:-50].tolist(), *drawn(symbols, 120, seed=1)[-6:].tolist(), symbols + 8, 0]
    other, blocks = np.array(other, np.int32), list[int]()
    whole = validation_set.ngram_probabilities(text_of(ids, vocab), other)
    with monkeypatch.context() as patch:
        patch.setattr(ngram, "BLOCK", n // 5)
        ours = validation_set.ngram_probabilities(
            text_of(ids, vocab), other, lambda: blocks.append(n)
        )
    assert np.array_equal(ours, whole)
    assert len(blocks) > 2
    other = other.tolist()
    expected = [by_hand([ids.tolist()], vocab, orders, other, at) for at in range(len(other))]
    np.testing.assert_allclose(ours, expected, rtol=1e-9)


def test_of_a_long_text_evenly_spaced_runs_are_counted(monkeypatch):
    monkeypatch.setattr(validation_set, "NGRAM_SAMPLE", 400)
    monkeypatch.setattr(validation_set, "_NGRAM_RUN", 100)
    ids = np.arange(1000) // 2 % 50
    ours = validation_set.ngram_probabilities(text_of(ids, 50), ids[:18].astype(np.int32))
    runs = [ids[begin : begin + 100].tolist() for begin in (0, 300, 600, 900)]
    assert ours[17] == pytest.approx(by_hand(runs, 50, 7, ids[:18].tolist(), 17))


def test_the_score_is_of_the_validation_part_and_is_kept_until_a_text_changes(
    tmp_path, monkeypatch
):
    words = np.random.default_rng(0).choice(["lock", "free", "adds", "never", "wait"], 3000)
    text = prepare(str(written(tmp_path / "a", {"a.txt": " ".join(words)})))
    part = validation_set.subset(text.val, 512)
    ids = part.tokens.astype(np.int32)
    p = validation_set.ngram_probabilities(text.train, ids)[1:]
    bits = validation_set.ngram_score(text.train, text.val, 512)
    assert bits == pytest.approx(-np.log2(p).sum() / part.header["bytes"])
    assert bits < 1.1  # five words

    monkeypatch.setattr(ngram, "probabilities", Mock(side_effect=DataError("counted again")))
    assert validation_set.ngram_score(text.train, text.val, 512) == bits
    stored = text.val.path.with_name("counts.json")
    for damaged in ({"of": {}, "bits": 1}, []):
        stored.write_text(json.dumps(damaged))
        with pytest.raises(DataError, match="counted again"):
            validation_set.ngram_score(text.train, text.val, 512)


def test_prompts_and_completions_have_no_score(tmp_path):
    lines = [json.dumps({"prompt": f"{k}: ", "completion": "wait"}) for k in range(24)]
    text = prepare(str(written(tmp_path / "a", {"a.jsonl": "\n".join(lines)})))
    assert validation_set.ngram_score(text.train, text.val, 512) is None
