"""Text comes in whole characters, and a stop string never comes, however tokens cut it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxhog.data import bpe
from mlxhog.data.tokenizers import ByteTokenizer, Tokenizer
from mlxhog.decoding.text import TextStream, stream_text
from mlxhog.errors import ConfigError

BYTES = ByteTokenizer()


def read(text: bytes, *stop: str, tokenizer: Tokenizer = BYTES) -> tuple[list[str], bool]:
    """The pieces of a text, and whether a stop string ended it."""
    stream = TextStream(tokenizer, stop)
    pieces = []
    for token in tokenizer.encode(text).tolist():
        pieces.append(stream.read(token))
        if stream.stopped:
            return pieces, True
    return [*pieces, stream.end()], stream.stopped


def test_a_character_is_held_back_until_it_is_whole() -> None:
    pieces = list(stream_text(BYTES, "a\u2019é".encode()))
    assert pieces == ["a", "\u2019", "é"]


def test_bytes_that_are_no_character_become_the_replacement_mark() -> None:
    assert "".join(stream_text(BYTES, b"a\xff\xe2\x80")) == "a\ufffd\ufffd"
    assert list(stream_text(BYTES, [104, 256, 105])) == ["h", "i"]


def test_the_beginning_of_a_stop_string_is_held_back_until_it_is_none() -> None:
    assert read(b"aSTOx", "STOP") == (["a", "", "", "", "STOx", ""], False)
    assert read(b"aSTO", "STOP") == (["a", "", "", "", "STO"], False)
    assert read(b"aSTOPb", "STOP") == (["a", "", "", "", ""], True)


def test_a_stop_string_may_begin_inside_its_own_beginning() -> None:
    assert read(b"aaab", "aab") == (["", "", "a", ""], True)


def test_the_first_of_several_stop_strings_ends_the_text() -> None:
    pieces, stopped = read("über die Brücke".encode(), "ücke", "Brü")
    assert ("".join(pieces), stopped) == ("über die ", True)


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ConfigError, match="a stop string is empty"):
        TextStream(BYTES, ["a", ""])


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=60))
def test_streamed_pieces_are_the_decoded_text(text: bytes) -> None:
    assert "".join(stream_text(BYTES, text)) == text.decode(errors="replace")


@settings(deadline=None, max_examples=200)
@given(
    text=st.text("ab’", max_size=12),
    stop=st.lists(st.text("ab’", min_size=1, max_size=4), max_size=3),
)
def test_the_text_ends_at_the_first_stop_string_that_is_whole(text: str, stop: list[str]) -> None:
    pieces, stopped = read(text.encode(), *stop)
    ends = [text.index(one) + len(one) for one in stop if one in text]
    assert stopped == bool(ends)
    seen = text[: min(ends)] if ends else text
    begins = [seen.index(one) for one in stop if one in seen]
    assert "".join(pieces) == (seen[: min(begins)] if begins else text)


def test_a_bpe_tokenizer_streams_the_same_text_and_the_same_stops() -> None:
    text = "the state of the “Union” is naïve. " * 5
    tokenizer = bpe.train([text.encode()], 270)
    ids = tokenizer.encode(text.encode()).tolist()
    assert "".join(stream_text(tokenizer, ids)) == text
    pieces, stopped = read(text.encode(), "n” is n", tokenizer=tokenizer)
    assert ("".join(pieces), stopped) == ("the state of the “Unio", True)
