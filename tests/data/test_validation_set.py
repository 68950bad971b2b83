"""Validation text: which it is, and how it is evaluated."""

import gzip
import json
import lzma
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxhog.baselines import compressors
from mlxhog.data import conversations, validation_set
from mlxhog.data.batch import IGNORED
from mlxhog.data.prepare import prepare
from mlxhog.data.records import Example
from mlxhog.data.tokenizers import ByteTokenizer, build
from mlxhog.errors import DataError
from tests.data.token_files import token_file
from tests.pairs import max_examples


def test_evaluation_counts_every_byte_once_and_no_separator(tmp_path):
    documents = [b"first text", b"second", b"the third one"]
    file = token_file(tmp_path, documents)
    batches = list(validation_set.batches(file, seq_len=4, batch_size=3))
    assert all(b.x.shape == b.y.shape == (3, 4) for b in batches)
    labels = np.concatenate([b.y.ravel() for b in batches])
    assert labels[labels != IGNORED].astype(np.uint8).tobytes() == b"".join(documents)
    assert sum(b.n_bytes for b in batches) == sum(map(len, documents))
    inputs = np.concatenate([b.x.ravel() for b in batches])
    assert np.array_equal(inputs[: file.n_tokens - 1], file.tokens[:-1])
    assert (inputs[file.n_tokens - 1 :] == file.bos).all()


def test_evaluation_of_a_part_is_spread_over_the_file_and_may_begin_anywhere(tmp_path):
    file = token_file(tmp_path, [bytes(range(100)) * 10])
    options = {"seq_len": 10, "batch_size": 2, "val_subset_tokens": 45}
    whole = list(validation_set.batches(file, **options))
    assert len(whole) == validation_set.n_batches(file, **options) == 3
    assert sum(int((b.y != IGNORED).any(axis=1).sum()) for b in whole) == 5
    assert [b.y[0, 0] for b in whole] == [file.tokens[1 + 10 * i] for i in (0, 40, 80)]
    for first in range(3):
        part = list(validation_set.batches(file, **options, first=first, count=2))
        assert [b.y.tolist() for b in part] == [b.y.tolist() for b in whole[first : first + 2]]


def test_a_word_that_is_no_rule_is_refused_also_where_data_bring_their_validation_text(tmp_path):
    for name in ("train", "valid"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": f"{name} " * 50}))
    with pytest.raises(DataError, match="no validation split 'tial'.*; did you mean 'tail'"):
        prepare(str(tmp_path), val="tial")
    assert prepare(str(tmp_path), val="tail").rule == "given"


def test_samples_begin_as_a_validation_document_does(tmp_path):
    talk = [b"User: hi\nAssistant:", b" yo", b"\nUser: why\nAssistant:", b" so"]
    greeting = [b"Assistant:", b" Hi, ask me!", b"\n" + talk[0], *talk[1:]]
    greeted = "Assistant: Hi, ask me!\nUser: hi\nAssistant:"
    for k, (kind, prompt, *documents) in enumerate(
        [
            ("plain text", "Soup", b"# Soup\n\nWater and salt, then "),
            ("plain text", "one two, three four five", b"...", b"- one two, three four five sixth"),
            ("plain text", "\u6625\u7720" * 12, "\u6625\u7720".encode() * 99),
            ("plain text", "The", b"!"),
            ("conversations", "User: hi\nAssistant:", Example(*talk)),
            ("conversations", "User: hi\nAssistant:", b"".join(talk)),
            ("conversations", "User: Hello\nAssistant:", Example(b"User: " + b"x" * 400, b" y")),
            ("conversations", greeted, Example(*greeting), Example(b"2+2=", b"4")),
            ("conversations", greeted, b"".join(greeting)),
            (
                "conversations",
                "Tool: 9\nUser: hi\nAssistant:",
                Example(b"Tool: 9\n" + talk[0], b""),
            ),
            ("conversations", "System: s\nAssistant:", Example(b"System: s\nAssistant:", b" a")),
            ("prompts and answers", "2+2=\n", Example(b"x" * 400, b"y"), Example(b"2+2=", b"4")),
        ]
    ):
        file = token_file(tmp_path / str(k), documents)
        assert validation_set.beginning(file, ByteTokenizer()) == (kind, prompt)
    assert conversations.question("System: s\nUser: a\nb\nAssistant:") == "a\nb"
    assert conversations.question("User: a") is None


def test_marks_are_those_of_the_validation_bytes_whatever_the_tokenizer(tmp_path):
    words = np.random.default_rng(0).choice(["lock", "free", "adds", "never", "wait"], 4000)
    (tmp_path / "train.jsonl").write_text(json.dumps({"text": " ".join(words[:2000])}))
    validation = " ".join(words[2000:]).encode()
    (tmp_path / "valid.jsonl").write_text(json.dumps({"text": validation.decode()}))
    baselines = compressors.bits_per_byte(validation)
    assert baselines["gzip"] == round(8 * len(gzip.compress(validation, 9)) / len(validation), 3)
    packed = lzma.compress(validation, preset=9 | lzma.PRESET_EXTREME)
    assert baselines["xz"] == round(8 * len(packed) / len(validation), 3)
    for tokenizer in ("bytes", "bpe:300", "bytes"):  # and again from the cache
        assert prepare(str(tmp_path), tokenizer).baselines == baselines


def beginnings(file, tokenizer=None):
    """The text of every document of a file."""
    ids, made_by = np.asarray(file.tokens, np.int32), tokenizer or ByteTokenizer()
    spans = pairwise(file.starts.astype(int).tolist())
    return [made_by.decode(ids[begin + 1 : end]) for begin, end in spans]


def holds(larger, smaller):
    """Whether each text of the one begins a text of the other; documents differ in their heads."""
    return all(any(one.startswith(part) for one in larger) for part in smaller)


@max_examples(50)
@given(
    st.lists(st.integers(0, 3000), min_size=1, max_size=40),
    st.lists(st.integers(1, 40_000), min_size=2, max_size=4),
)
def test_of_two_parts_the_larger_holds_the_smaller(tmp_path_factory, lengths, sizes):
    documents = [b"%02d" % k + b"x" * n for k, n in enumerate(lengths)]
    file = token_file(tmp_path_factory.mktemp("file"), documents)
    parts = [validation_set.subset(file, n) for n in sorted(sizes)]
    for n, part in zip(sorted(sizes), parts, strict=True):
        assert holds(documents, beginnings(part))
        assert part.header["bytes"] == min(-(-n // 16) * 16, file.header["bytes"])
    for smaller, larger in pairwise(parts):
        assert holds(beginnings(larger), beginnings(smaller))


def test_a_part_is_of_sixteen_documents_or_more_and_the_same_again(tmp_path):
    file = token_file(tmp_path, [b"%02d" % k * 5000 for k in range(40)])
    part = validation_set.subset(file, 8000)
    assert [len(text) for text in beginnings(part)] == [500] * 16
    assert part.digest == validation_set.subset(file, 8000).digest
    chosen = [int(text[:2]) for text in beginnings(part)]
    assert chosen == sorted(chosen)
    assert chosen != list(range(16))


def test_a_part_of_text_that_the_tokenizer_shortens_is_all_of_it_if_there_is_no_more(tmp_path):
    file = token_file(tmp_path, documents := [b"a" * 50_000, *[b"b" * 1000] * 10])
    file.header["bytes"] += 10_000  # of the text before the tokenizer changed it
    assert beginnings(validation_set.subset(file, 65_536)) == documents


def test_tokenizers_cut_the_same_documents_at_the_same_bytes(tmp_path):
    documents = [f"{k:02d} never wait, add without a lock. ".encode() * 40 for k in range(30)]
    words = build("bpe:300", lambda: iter(documents))
    letters = beginnings(validation_set.subset(token_file(tmp_path, documents), 4000))
    longer = token_file(tmp_path / "words", documents, words)
    for ours, theirs in zip(
        letters, beginnings(validation_set.subset(longer, 4000), words), strict=True
    ):
        assert ours.startswith(theirs)
        assert len(ours) - len(theirs) < 32  # bytes of a token


def test_an_example_is_never_cut(tmp_path):
    documents = [Example(b"q%02d: " % k * 20, b"answer %02d" % k) for k in range(30)]
    file = token_file(tmp_path, [bytes(3000), *documents])
    part = validation_set.subset(file, 500)
    texts = beginnings(part)
    assert part.prompts is not None
    assert len(texts) < 10
    assert set(texts) <= {bytes(3000), *map(bytes, documents)}
    rows = [batch.n_bytes for batch in validation_set.batches(part, seq_len=200, batch_size=2)]
    assert sum(rows) == sum(len(t) - 100 if t.startswith(b"q") else len(t) for t in texts)
