"""Generation: the recurrent state is carried, the text is whole, bad prompts are refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mlxhog.data import bpe
from mlxhog.data.tokenizers import ByteTokenizer
from mlxhog.decoding.generate import Stepper, generate, stream_text
from mlxhog.decoding.sampling import Sampler
from mlxhog.errors import ConfigError, DataError
from mlxhog.live import generate as module

History = tuple[int, ...]
BYTES = ByteTokenizer()


class MarkovModel:
    """Logits that depend on the last two tokens; its state is what it has read, for the tests."""

    def __init__(self, vocab_size: int = 320, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.first = random.standard_normal((vocab_size, vocab_size)).astype(np.float32)
        self.second = random.standard_normal((vocab_size, vocab_size)).astype(np.float32)
        self.calls: list[int] = []
        self.read: History = ()

    def init(self, batch: int) -> History:
        assert batch == 1
        return ()

    def step(
        self, tokens: NDArray[np.int32], state: History
    ) -> tuple[NDArray[np.float32], History]:
        assert tokens.dtype == np.int32
        assert tokens.ndim == 2
        self.calls.append(tokens.shape[1])
        self.read = (*state, *tokens[0].tolist())
        before = self.read[-2] if len(self.read) > 1 else 0
        return 3 * (self.first[self.read[-1]] + self.second[before])[None], self.read


class Countdown:
    """Says a fixed sequence of tokens, one after another."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens

    def init(self, batch: int) -> int:
        return 0

    def step(self, tokens: NDArray[np.int32], state: int) -> tuple[NDArray[np.float32], int]:
        logits = np.zeros((1, 320), np.float32)
        logits[0, 319] = 50.0  # a padding row, the most likely of all
        logits[0, self.tokens[state]] = 40.0
        return logits, state + 1


def run(
    stepper: Stepper[History], prompt: list[int], n: int = 20, *, stop: bool = False, seed: int = 0
) -> list[int]:
    return list(
        generate(
            stepper,
            prompt,
            tokenizer=BYTES,
            sampler=Sampler(seed=seed),
            max_new_tokens=n,
            stop_at_document_end=stop,
        )
    )


def test_the_same_seed_gives_the_same_text_twice() -> None:
    first, again, other = (run(MarkovModel(), [84, 104], seed=s) for s in (1, 1, 2))
    assert len(first) == 20
    assert first == again
    assert first != other


def test_the_model_reads_bos_the_prompt_and_every_token_but_the_last() -> None:
    model = MarkovModel()
    text = run(model, [84, 104], n=4)
    assert model.read == (256, 84, 104, *text[:-1])
    assert model.calls == [3, 1, 1, 1]


@pytest.mark.parametrize("prompt", [[], [256]])
def test_bos_is_there_once(prompt: list[int]) -> None:
    model = MarkovModel()
    run(model, prompt, n=1)
    assert model.read == (256,)


def test_a_long_prompt_is_read_in_pieces_with_the_same_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prompt = [i % 256 for i in range(1300)]
    whole, pieces = MarkovModel(), MarkovModel()
    monkeypatch.setattr(module, "_PREFILL", 10_000)
    expected = run(whole, prompt)
    monkeypatch.undo()
    assert run(pieces, prompt) == expected
    assert pieces.calls[:4] == [512, 512, 277, 1]


def test_padding_rows_of_the_vocabulary_are_never_drawn() -> None:
    tokens = list(
        generate(
            Countdown([104, 105]),
            [],
            tokenizer=BYTES,
            sampler=Sampler(temperature=0.0),
            max_new_tokens=2,
        )
    )
    assert tokens == [104, 105]


@pytest.mark.parametrize(("stop", "expected"), [(True, [104]), (False, [104, 256, 105])])
def test_a_drawn_bos_ends_the_document(stop: bool, expected: list[int]) -> None:
    tokens = generate(
        Countdown([104, 256, 105]),
        [],
        tokenizer=BYTES,
        sampler=Sampler(temperature=0.0),
        max_new_tokens=3,
        stop_at_document_end=stop,
    )
    assert list(tokens) == expected


def test_no_new_tokens_ask_nothing_of_the_model() -> None:
    model = MarkovModel()
    assert run(model, [1], n=0) == []
    assert model.calls == []


@pytest.mark.parametrize("token", [257, 319, 70_000, -1])
def test_a_prompt_outside_the_vocabulary_is_refused_at_once(token: int) -> None:
    with pytest.raises(DataError, match=rf"token {token} at position 1 is outside .* 257 ids"):
        generate(MarkovModel(), [1, token], tokenizer=BYTES, sampler=Sampler(), max_new_tokens=1)


def test_a_negative_number_of_tokens_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_new_tokens is -1"):
        generate(MarkovModel(), [], tokenizer=BYTES, sampler=Sampler(), max_new_tokens=-1)


def test_a_character_is_held_back_until_it_is_whole() -> None:
    pieces = list(stream_text(BYTES, "a\u2019é".encode()))
    assert pieces == ["a", "\u2019", "é"]


def test_bytes_that_are_no_character_become_the_replacement_mark() -> None:
    assert "".join(stream_text(BYTES, b"a\xff\xe2\x80")) == "a\ufffd\ufffd"
    assert list(stream_text(BYTES, [104, 256, 105])) == ["h", "i"]


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=60))
def test_streamed_pieces_are_the_decoded_text(text: bytes) -> None:
    assert "".join(stream_text(BYTES, text)) == text.decode(errors="replace")


def test_a_bpe_tokenizer_streams_the_same_text() -> None:
    text = "the state of the “Union” is naïve. " * 5
    tokenizer = bpe.train([text.encode()], 270)
    assert "".join(stream_text(tokenizer, tokenizer.encode(text.encode()).tolist())) == text
