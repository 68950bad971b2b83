"""What bits per byte are worth on a text, found out once."""

import gzip
import json
import lzma

import numpy as np

from mlxhog.data import heldout
from mlxhog.data.prepare import prepare


def test_marks_are_those_of_the_held_out_bytes_whatever_the_tokenizer(tmp_path):
    words = np.random.default_rng(0).choice(["lock", "free", "adds", "never", "wait"], 4000)
    (tmp_path / "train.jsonl").write_text(json.dumps({"text": " ".join(words[:2000])}))
    held_out = " ".join(words[2000:]).encode()
    (tmp_path / "valid.jsonl").write_text(json.dumps({"text": held_out.decode()}))
    of_text = heldout.marks_of_text(held_out)
    assert of_text["gzip"] == round(8 * len(gzip.compress(held_out, 9)) / len(held_out), 3)
    packed = lzma.compress(held_out, preset=9 | lzma.PRESET_EXTREME)
    assert of_text["xz"] == round(8 * len(packed) / len(held_out), 3)
    for tokenizer in ("bytes", "bpe:300"):
        prepared = prepare(str(tmp_path), tokenizer)
        assert heldout.marks_of(prepared.val, prepared.tokenizer) == of_text


def test_marks_are_remembered_beside_the_tokens_until_they_are_of_another_text(
    tmp_path, monkeypatch
):
    (tmp_path / "a.txt").write_text("never wait, add without a lock. " * 100)
    prepared = prepare(str(tmp_path / "a.txt"))
    first = heldout.marks_of(prepared.val, prepared.tokenizer)
    file = prepared.val.with_name("marks.json")
    monkeypatch.setattr(heldout, "marks_of_text", lambda text: {"computed": 1.0})
    assert heldout.marks_of(prepared.val, prepared.tokenizer) == first
    whole = json.loads(file.read_text())
    for damaged in (
        {**whole, "of": "other"},
        {**whole, "value": {"xz": 1}},
        {**whole, "value": {**first, "xz": -1}},
        [],
    ):
        file.write_text(json.dumps(damaged))
        assert heldout.marks_of(prepared.val, prepared.tokenizer) == {"computed": 1.0}
