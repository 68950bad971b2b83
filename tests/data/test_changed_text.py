"""Tokenizers that change a text: noted, and bits per byte are of the original bytes."""

import json

import numpy as np
import pytest

from mlxhog.data import heldout
from mlxhog.data.bpe import BpeTokenizer, train_bpe
from mlxhog.data.clients import ClientBatches
from mlxhog.data.prepare import prepare
from mlxhog.data.tokens import TokenFile, TokenWriter
from tests.pairs import each_of

STEPS = {
    "lower case": {"normalizer": {"type": "Lowercase"}},
    "NFC": {"normalizer": {"type": "NFC"}},
    "NFD": {"normalizer": {"type": "NFD"}},
    "NFKC": {"normalizer": {"type": "NFKC"}},
    "strip": {"normalizer": {"type": "Strip", "strip_left": True, "strip_right": True}},
    "prefix": {"normalizer": {"type": "Prepend", "prepend": "prefix "}},
    "replace": {"normalizer": {"type": "Replace", "pattern": {"String": "a"}, "content": "bbb"}},
    "prefix blank": {"add_prefix_space": True},
    "white space": {"white_space": True},
}
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


@each_of("step", STEPS)
def test_the_tokens_of_a_changed_text_stand_for_all_its_bytes(step):
    one, text = tokenizer(**STEPS[step]), TEXT.encode()
    ids = one.encode(text)
    assert one.decode(ids) != text
    lengths = one.changed_lengths(text, ids)
    assert lengths is not None
    assert (len(lengths), lengths.sum(), lengths.min() >= 0) == (len(ids), len(text), True)
    assert bool(one.changes) == (step != "white space")


def test_each_token_of_a_changed_text_stands_for_its_own_characters():
    one = tokenizer(normalizer={"type": "Replace", "pattern": {"String": "x"}, "content": "yyyyyy"})
    text = "ab x 한 x".encode()
    ids = one.encode(text)
    lengths = one.changed_lengths(text, ids)
    assert lengths is not None
    ends = {one.decode(ids[: k + 1]): int(end) for k, end in enumerate(np.cumsum(lengths))}
    assert ends[b"ab yyyyyy"] == len("ab x")
    assert ends["ab yyyyyy 한 yyyyyy".encode()] == len(text)
    assert ends["ab yyyyyy 한".encode()] == len("ab x 한".encode())


INVALID = (b"caf\xe9 au lait", b"\xe2\x82 cut \xf0\x9f\x98", b"\xff" * 5, "é".encode() + b"\xc3")


@each_of("text", INVALID)
def test_a_byte_that_is_not_utf8_counts_once_and_not_as_its_replacement(text):
    one = train_bpe([b"cafe au lait"], 260)
    ids = one.encode(text)
    lengths = one.changed_lengths(text, ids)
    assert lengths is not None
    assert lengths.sum() == len(text) < len(one.decode(ids))


def write(path, documents, one):
    with TokenWriter(path, one, split="val", source="test") as writer:
        for document in documents:
            writer.add(document)
    return TokenFile.open(path)


DOCUMENTS = [
    b"plain text and more of it", *["é한 ".encode() * (5 + i) for i in range(20)], b"plain again"
]  # fmt: skip


@pytest.fixture
def files(tmp_path):
    """The same documents, once by a tokenizer that makes each é and 한 longer, once by bytes."""
    longer = tokenizer(normalizer={"type": "NFD"})
    return write(tmp_path / "nfd.bin", DOCUMENTS, longer), write(
        tmp_path / "plain.bin", DOCUMENTS, tokenizer()
    )


def test_every_count_of_bytes_is_of_the_original_text(files):
    n_bytes = sum(map(len, DOCUMENTS))
    for file, changed in zip(files, (20, 0), strict=True):
        assert (file.header["bytes"], file.header["changed"]) == (n_bytes, changed)
        assert int(file.bytes_at(slice(None)).sum()) == n_bytes
        batches = heldout.batches(file, seq_len=16, batch_size=4)
        assert sum(batch.n_bytes for batch in batches) == n_bytes
        n = file.n_sequences(16)
        in_rows = int(file.bytes_at(slice(1, 16 * n + 1)).sum())
        assert file.batch(np.arange(n), 16).n_bytes == in_rows
        of_clients = ClientBatches(file, [range(22)], seq_len=16, batch_size=n, seed=0)
        assert of_clients.at(0, 0).n_bytes == in_rows


def test_a_tokenizer_that_changes_the_text_is_noted(tmp_path):
    (tmp_path / "text").mkdir()
    for i in range(12):
        (tmp_path / "text" / f"{i:02}.txt").write_text(
            f"{'The' if i % 2 else 'the'} text {i}\n" * 9
        )
    steps = [{"type": "NFC"}, {"type": "Lowercase"}]
    changing = tokenizer(normalizer={"type": "Sequence", "normalizers": steps})
    for name, content in changing.files().items():
        (tmp_path / name).write_bytes(content)
    prepared = prepare(
        str(tmp_path / "text"), str(tmp_path / "tokenizer.json"), cache_dir=tmp_path / "cache"
    )
    (note,) = prepared.notes
    assert note == (
        "the tokenizer changes the text (NFC, Lowercase): the model learns and writes the changed "
        "text of 6 of 12 documents; bits per byte are of the original bytes"
    )
    assert TokenFile.open(prepared.train).header["changed"] == 5  # and document 5 is held out
