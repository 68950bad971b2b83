"""Token files: what is written is read, and damage is named."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxhog.data.tokenizers import ByteTokenizer
from mlxhog.data.tokens import TokenFile, TokenWriter
from mlxhog.errors import DataError
from tests.pairs import each_of, max_examples


def write(directory, documents, tokenizer=None):
    path = directory / "train.bin"
    with TokenWriter(path, tokenizer or ByteTokenizer(), split="train", source="test") as writer:
        for document in documents:
            writer.add(document)
    return path


@max_examples(50)
@given(documents=st.lists(st.binary(max_size=60), min_size=1, max_size=8))
def test_documents_come_back_from_the_file(tmp_path_factory, documents):
    file = TokenFile.open(write(tmp_path_factory.mktemp("tokens"), documents))
    starts = file.starts.astype(int).tolist()
    assert [
        file.tokens[a + 1 : b].astype(np.uint8).tobytes()
        for a, b in zip(starts[:-1], starts[1:], strict=True)
    ] == documents
    assert all(file.tokens[a] == file.bos for a in starts[:-1])
    assert file.header["bytes"] == sum(map(len, documents))


def test_sequences_overlap_by_one_token_and_the_tail_is_left_out(tmp_path):
    file = TokenFile.open(write(tmp_path, [b"abcdefgh"]))  # BOS and 8 letters
    assert file.n_sequences(4) == 2
    assert file.n_sequences(3) == 2
    batch = file.batch(np.array([1, 0]), 4)
    assert batch.x.tolist() == [list(b"defg"), [256, *b"abc"]]
    assert batch.y.tolist() == [list(b"efgh"), list(b"abcd")]
    assert batch.x.dtype == batch.y.dtype == np.int32
    assert batch.x.flags.c_contiguous
    assert batch.y.flags.c_contiguous
    assert batch.n_bytes == 8


def test_large_vocabularies_take_four_bytes_a_token(tmp_path):
    class Wide(ByteTokenizer):
        vocab_size = 65_600

    path = write(tmp_path, [b"abc"], Wide())
    assert path.stat().st_size == 16
    assert TokenFile.open(path).tokens.tolist() == [256, 97, 98, 99]


@each_of(
    ("suffix", "content", "message"),
    [
        (".bin", b"abc", r"train.bin cannot be read: 3 bytes, expected 11 items of 2"),
        (".bin", b"\xff" * 22, r"token 65535 is outside the vocabulary of 320"),
        (".bin", b"\0" * 20 + b"\xff\xff", r"token 65535 is outside the vocabulary of 320"),
        (".idx", b"\0" * 8, r"8 bytes, expected 2 items of 8"),
        (".len", b"", r"train.len cannot be read: 0 bytes"),
        (".json", b"{", r"train.json is not the header"),
        (".json", b"[]", r"not the header of a token file of format 1"),
        (".json", b'{"format": 1}', r"not the header .*: 'tokens'"),
        *(
            (suffix, None, rf"train{suffix} (cannot be read|is not the header)")
            for suffix in (".bin", ".idx", ".json")
        ),
    ],
)
def test_a_damaged_file_is_named(tmp_path, suffix, content, message):
    path = write(tmp_path, [b"abcdefghij"])
    if content is None:
        path.with_suffix(suffix).unlink()
    else:
        path.with_suffix(suffix).write_bytes(content)
    with pytest.raises(DataError, match=rf"{message}.*prepare the corpus again"):
        TokenFile.open(path)
