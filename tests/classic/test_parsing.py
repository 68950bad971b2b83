"""Blocks that NumPy parses at once mean what their lines mean one by one, whatever they hold."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxhog.classic.loaders import text as tables
from mlxhog.classic.loaders.rows import parse_block, parse_lines, without_comments
from mlxhog.classic.loaders.text import TextBlock
from mlxhog.errors import DataError
from tests.pairs import max_examples

NUMBERS = st.sampled_from(
    ["1", "-1", "+1", "0", "2.5", "-3e2", ".5", "7.", "nan", "inf", "1e39", "1e400", "x", "", "1_0",
     "0x1p3", "١", "1e", "--1", "3000000000", "9007199254740993"]
)  # fmt: skip
SPACE = st.sampled_from([" ", "  ", "\t", " \r", ""])
PAIRS = st.builds(
    lambda feature, colon, value: f"{feature}{colon}{value}",
    st.one_of(st.integers(-1, 12).map(str), NUMBERS),
    st.sampled_from([":", ":", ":", "::", " :", ": ", ""]),
    NUMBERS,
)
NOTES = st.sampled_from(["", "", "", "# 1:2", "qid:3", "qid:x", "%"])


def lines_of(words: st.SearchStrategy[str]) -> st.SearchStrategy[bytes]:
    line = st.builds(
        lambda parts, space, note: space.join(parts) + space + note,
        st.lists(words, max_size=6),
        SPACE,
        NOTES,
    )
    return st.lists(line, min_size=1, max_size=5).map(lambda all: ("\n".join(all) + "\n").encode())


@max_examples(300)
@given(text=lines_of(st.one_of(PAIRS, NUMBERS)))
def test_svmlight_blocks_mean_what_their_lines_mean(text):
    at_once = parse_block(without_comments(text))
    if at_once is None:
        return  # then the lines are read, and nothing else
    one_by_one = parse_lines(TextBlock(Path("rows.svm"), 1, text))
    for name in ("labels", "lengths", "features", "values"):
        np.testing.assert_array_equal(getattr(at_once, name), getattr(one_by_one, name))


@max_examples(300)
@given(
    rows=st.lists(
        st.dictionaries(
            st.integers(1, 90),
            st.floats(width=32, allow_nan=False, allow_infinity=False),
            min_size=1,
            max_size=8,
        ),
        min_size=1,
        max_size=6,
    )
)
def test_well_formed_svmlight_is_always_parsed_at_once(rows):
    text = "".join(
        "+1 " + " ".join(f"{feature}:{row[feature]!r}" for feature in sorted(row)) + "\n"
        for row in rows
    )
    parsed = parse_block(text.encode())
    assert parsed is not None
    assert parsed.lengths.tolist() == [len(row) for row in rows]
    assert parsed.features.tolist() == [feature for row in rows for feature in sorted(row)]
    assert parsed.values.tolist() == [row[feature] for row in rows for feature in sorted(row)]


@max_examples(300)
@given(text=lines_of(NUMBERS), separator=st.sampled_from([b" ", b",", b"\t", b"::"]))
def test_tables_mean_what_their_lines_mean(text, separator):
    text = text.replace(b" ", separator)
    block = TextBlock(Path("table"), 2, text)
    at_once = tables._parse_table(text, None)
    if at_once is None or at_once.shape[1] < 2 or not np.isfinite(at_once).all():
        return
    np.testing.assert_array_equal(
        at_once, tables._parse_table_lines(block, 2, at_once.shape[1], None)
    )


@pytest.mark.parametrize("text", ["1 2\n3 4\n", "1,2\n3,4\n", "# a\n1\t2\n\n3\t4\n"])
def test_well_formed_tables_are_parsed_at_once(text, monkeypatch):
    monkeypatch.setattr(tables, "_parse_table_lines", None)  # calling it would raise
    ((_, rows),) = tables.read_table([TextBlock(Path("table"), 1, text.encode())], 2, 2)
    assert rows.tolist() == [[1, 2], [3, 4]]


def test_a_block_of_comments_holds_no_rows():
    assert not list(tables.read_table([TextBlock(Path("table"), 1, b"# a\n% b\n")], 2, 2))
    with pytest.raises(DataError, match="table:1: 'x'"):
        list(tables.read_table([TextBlock(Path("table"), 1, b"x 2\n")], 2, 2))
