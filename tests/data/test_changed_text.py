"""Tokenizers that change a text: noted, and bits per byte are of the original bytes."""

import json

import numpy as np
import pytest

from mlxhog.data import heldout, subset
from mlxhog.data.bpe import BpeTokenizer, train_bpe
from mlxhog.data.prepare import prepare
from mlxhog.data.tokens import TokenFile
from tests.data.token_files import token_file
from tests.pairs import each_of

TEXT = "The naïve cafe\u0301: ﬁne, 한국어 İstanbul, and a tab\t.\n\n"


def tokenizer(*, white_space=False, add_prefix_space=False, **fields):
    """A tokenizer of bytes and some pairs of them, with further steps."""
    plain = train_bpe([TEXT.encode() * 3, TEXT.lower().encode() * 3], 300)
    description = json.loads(plain.files()["tokenizer.json"])
    description["pre_tokenizer"]["add_prefix_space"] = add_prefix_space
    if white_space:
        both = [{"type": "WhitespaceSplit"}, description["pre_tokenizer"]]
        description["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": both}
    return BpeTokenizer(json.dumps(description | fields).encode(), plain.bos_token, "test")


@each_of(
    "step",
    [
        {},
        {"normalizer": {"type": "Lowercase"}},
        {"normalizer": {"type": "NFC"}},
        {"normalizer": {"type": "Strip", "strip_left": True, "strip_right": True}},
        {"add_prefix_space": True},
        {"white_space": True},
    ],
)
def test_that_a_text_is_changed_is_seen(step):
    one = tokenizer(**step)
    for text in (TEXT.encode(), b"caf\xe9 au lait"):
        ids = one.encode(text)
        assert one.changes_text(text, ids) == (one.decode(ids) != text)


@pytest.mark.parametrize("fields", [{"normalizer": {"type": "NFD"}}, {}], ids=["NFD", "plain"])
def test_every_count_of_bytes_is_of_the_original_text(tmp_path, fields):
    documents = [b"plain text", *["é한 ".encode() * (5 + i) for i in range(20)], b"caf\xe9 again"]
    file = token_file(tmp_path, documents, tokenizer(**fields))
    n_bytes = sum(map(len, documents))
    assert (file.header["bytes"], file.header["changed"]) == (n_bytes, 21 if fields else 1)
    batches = list(heldout.batches(file, seq_len=16, batch_size=4))
    assert sum(batch.n_bytes for batch in batches) == pytest.approx(n_bytes, abs=len(batches))
    n = file.n_sequences(16)
    share = file.bytes_at(slice(1, 16 * n + 1)).sum() / file.bytes_at(slice(None)).sum()
    assert file.batch(np.arange(n), 16).n_bytes == round(share * n_bytes)
    part = subset.of(file, 160)
    assert part.n_bytes(slice(None)) == part.header["bytes"] < 200


def test_a_tokenizer_that_changes_the_text_is_noted(tmp_path):
    (tmp_path / "text").mkdir()
    for i in range(12):
        word = "The" if i % 2 else "the"
        (tmp_path / "text" / f"{i:02}.txt").write_text(f"{word} text {i}\n" * 9)
    for name, content in tokenizer(normalizer={"type": "Lowercase"}).files().items():
        (tmp_path / name).write_bytes(content)
    spec = str(tmp_path / "tokenizer.json")
    prepared = prepare(str(tmp_path / "text"), spec, cache_dir=tmp_path / "cache")
    assert "the tokenizer changes the text of 6 of 12 documents" in prepared.notes[0]
    assert TokenFile.open(prepared.train).header["changed"] == 5  # and document 5 is held out
