"""The part of the held-out text that is scored: fixed by the text, nested, of a given size."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mlxhog.data import heldout, subset
from mlxhog.data.examples import Example
from mlxhog.data.tokenizers import ByteTokenizer, build
from tests.data.token_files import token_file
from tests.pairs import max_examples


def beginnings(file, tokenizer=None):
    """The text of every document of a file."""
    made_by = tokenizer or ByteTokenizer()
    places = file.starts.astype(int).tolist()
    return [
        made_by.decode(np.asarray(file.tokens[begin + 1 : end], np.int32))
        for begin, end in zip(places, places[1:], strict=False)
    ]


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
    parts = [subset.of(file, n) for n in sorted(sizes)]
    for n, part in zip(sorted(sizes), parts, strict=True):
        assert holds(documents, beginnings(part))
        assert part.header["bytes"] == min(-(-n // 16) * 16, file.header["bytes"])
    for smaller, larger in zip(parts, parts[1:], strict=False):
        assert holds(beginnings(larger), beginnings(smaller))


def test_a_part_is_of_sixteen_documents_or_more_and_the_same_again(tmp_path):
    file = token_file(tmp_path, [b"%02d" % k * 5000 for k in range(40)])
    part = subset.of(file, 8000)
    assert [len(text) for text in beginnings(part)] == [500] * 16
    assert part.digest == subset.of(file, 8000).digest
    chosen = [int(text[:2]) for text in beginnings(part)]
    assert chosen == sorted(chosen)
    assert chosen != list(range(16))


def test_tokenizers_cut_the_same_documents_at_the_same_bytes(tmp_path):
    documents = [f"{k:02d} never wait, add without a lock. ".encode() * 40 for k in range(30)]
    words = build("bpe:300", lambda: iter(documents))
    (tmp_path / "words").mkdir()
    letters = beginnings(subset.of(token_file(tmp_path, documents), 4000))
    longer = token_file(tmp_path / "words", documents, words)
    for ours, theirs in zip(letters, beginnings(subset.of(longer, 4000), words), strict=True):
        assert ours.startswith(theirs)
        assert len(ours) - len(theirs) < 32  # bytes of a token


def test_an_example_is_never_cut(tmp_path):
    documents = [Example(b"q%02d: " % k * 20, b"answer %02d" % k) for k in range(30)]
    file = token_file(tmp_path, [bytes(3000), *documents])
    part = subset.of(file, 500)
    texts = beginnings(part)
    assert part.prompts is not None
    assert len(texts) < 10
    assert set(texts) <= {bytes(3000), *map(bytes, documents)}
    rows = [batch.n_bytes for batch in heldout.batches(part, seq_len=200, batch_size=2)]
    assert sum(rows) == sum(len(t) - 100 if t.startswith(b"q") else len(t) for t in texts)
