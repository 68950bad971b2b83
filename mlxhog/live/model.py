"""`mlxhog.load`: a trained model in Python, which writes and scores text."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self, overload

import numpy as np
from numpy.typing import NDArray

from mlxhog.backends.backend import check_tokens
from mlxhog.config.sources import from_keywords
from mlxhog.decoding.engine import BATCH_SIZE, PREFILL_CHUNK, Piece
from mlxhog.decoding.model import Model
from mlxhog.decoding.sampling import Sampler
from mlxhog.decoding.scoring import score_document
from mlxhog.errors import ConfigError, DataError
from mlxhog.live import READ_MODES, WAIT_S, Generation
from mlxhog.live.opening import open_newest
from mlxhog.live.source import Follower, WeightSource
from mlxhog.models import families
from mlxhog.models.mad.extensions import load_named


class LanguageModel:
    """A model with its weights: those of a checkpoint, or of a run while it trains.

    Of a run that trains, each call begins with the newest weights, and an answer takes newer ones
    between two tokens, as the mode says with which it was loaded.

    Attributes:
        config: the architecture: `vocab_size`, `hidden_size`, ..., all of them in `to_dict()`.
        tokenizer: `encode(bytes)` gives ids, `decode(ids)` gives bytes; `bos` begins a document.
        num_parameters: how many numbers the model has.
        backend: what computes it, such as "torch:cpu".
        follower: takes newer weights, and says which there are.

    Concurrency: for one thread at a time.
    """

    def __init__(self, source: WeightSource, model: Model) -> None:
        """Load the weights of an opened model; see `load`."""
        self._model = model
        self.follower = Follower(source, model.backend)
        self.config, self.tokenizer = model.config, model.tokenizer
        self.num_parameters = families.param_count(model.config)
        self.backend = model.backend.name
        self._closed = weakref.finalize(self, source.close)

    @property
    def whose(self) -> str:
        """Whose weights they are, in words."""
        return self.follower.source.whose

    def __repr__(self) -> str:
        """Name weights, size and backend."""
        return f"<LanguageModel: {self.whose}, {self.num_parameters:,} parameters, {self.backend}>"

    def __enter__(self) -> Self:
        """Use the model until the block ends."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Let go of the weights, and of a run that trains; else that is done with the object."""
        self._closed()
        self._model.backend.close()

    @overload
    def generate(
        self,
        prompt: str = ...,
        *,
        stop: str | Sequence[str] = ...,
        stream: Literal[False] = ...,
        **options: object,
    ) -> str: ...

    @overload
    def generate(
        self,
        prompt: str = ...,
        *,
        stop: str | Sequence[str] = ...,
        stream: Literal[True],
        **options: object,
    ) -> Iterator[str]: ...

    def generate(
        self,
        prompt: str = "",
        *,
        stop: str | Sequence[str] = (),
        stream: bool = False,
        **options: object,
    ) -> str | Iterator[str]:
        """Return the text after a prompt, without the prompt.

        Args:
            prompt: may be empty, which begins a document.
            stop: texts that end the answer and are no part of it.
            stream: returns the iterator of `stream` instead.
            options: those of `mlxhog generate`, with the same defaults: `max_new_tokens` (200),
                `temperature` (0.8; 0 takes the likeliest token), `top_p`, `top_k`, `min_p`,
                `repetition_penalty`, and `seed`, with which the same text comes again.

        Raises:
            ConfigError: an option does not exist or has no legal value, a stop string is empty,
                there are more tokens than the model has positions for, or the model was closed.
            DataError: the prompt is no text.
            Diverged: the model's logits are not finite.
        """
        pieces = self.stream(prompt, stop=stop, **options)
        return pieces if stream else "".join(pieces)

    def stream(
        self, prompt: str = "", *, stop: str | Sequence[str] = (), **options: object
    ) -> Iterator[str]:
        """Return the text of `generate` piece by piece, each as soon as it is certain.

        Args:
            prompt: may be empty, which begins a document.
            stop: texts that end the answer and are no part of it.
            options: as for `generate`.

        Raises:
            ConfigError, DataError: as `generate`, before the first piece is asked for.
            Diverged: the model's logits are not finite, when a piece is asked for.
        """
        generation = from_keywords(Generation, "generate()", options)
        if not isinstance(stop, str | Sequence):
            raise ConfigError(f"stop is a {type(stop).__name__}, expected a str or several")
        words = [_text("stop string", one) for one in ([stop] if isinstance(stop, str) else stop)]
        pieces = self.answer([_text("prompt", prompt)], generation, stop=words)
        return (piece.text for piece in pieces if piece.text)

    def answer(
        self,
        prompts: Sequence[str],
        options: Generation,
        *,
        stop: Sequence[str] = (),
        batch_size: int = BATCH_SIZE,
        prefill_chunk: int = PREFILL_CHUNK,
    ) -> Iterator[Piece]:
        """Answer prompts together, token by token; see `mlxhog.decoding.generate.answer`.

        Raises:
            ConfigError, Diverged: as `generate`.
        """
        self._take_newest()
        sampler = Sampler(
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            min_p=options.min_p,
            repetition_penalty=options.repetition_penalty,
            seed=options.seed,
        )
        return self._model.answer(
            prompts,
            sampler=sampler,
            max_new_tokens=options.max_new_tokens,
            stop=stop,
            batch_size=batch_size,
            prefill_chunk=prefill_chunk,
            by=self.follower,
        )

    def logits(self, ids: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Return the logits of the token after each position.

        Models are trained on documents that begin with `tokenizer.bos`; it is not added here.

        Args:
            ids: (S,), or (B, S) for several sequences of one length; integers from 0 to V - 1.

        Returns:
            (S, V) or (B, S, V) float32, V being `config.vocab_size`: `[..., t, :]` follows
            `ids[..., :t + 1]`. Rows from `tokenizer.n_ids` on pad the vocabulary and have no
            meaning.

        Raises:
            DataError: there are no ids, they are no integers, or one is outside the vocabulary.
            ConfigError: they are more than the model has positions for.
        """
        try:
            tokens = np.asarray(ids)
        except ValueError as error:
            raise DataError(f"ids are sequences of several lengths: {error}") from error
        if tokens.dtype.kind not in "iu" or tokens.ndim not in (1, 2):
            raise DataError(
                f"ids have shape {tokens.shape} and type {tokens.dtype}, expected (S,) or (B, S) "
                "integers, such as model.tokenizer.encode(b'The ')"
            )
        rows = np.atleast_2d(tokens).astype(np.int64)
        check_tokens(rows, self.config.vocab_size)
        families.check_length(self.config, rows.shape[1])
        self._take_newest()
        logits, _ = self._model.backend.every_logits(rows.astype(np.int32), None)
        return logits if tokens.ndim == 2 else logits[0]

    def score(self, text: str) -> float:
        """Return how well the model predicts a text, in bits per byte; 8 is no prediction at all.

        The text is one document, read from its beginning to its end with one state. The held-out
        evaluation of a run cuts its text into pieces of `seq_len`, which have less before them.

        Raises:
            DataError: the text is empty.
            ConfigError: it has more tokens than the model has positions for.
            Diverged: the model's logits are not finite.
        """
        encoded = _text("text", text)
        if not encoded:
            raise DataError("the text to score is empty; give at least one character")
        self._take_newest()
        bits = score_document(self._model, encoded).bits_per_byte
        assert bits is not None
        return bits

    def _take_newest(self) -> None:
        """Take the newest weights for what comes next.

        Raises:
            ConfigError: the model was closed.
        """
        if not self._closed.alive:
            raise ConfigError("this model was closed; load it again with mlxhog.load")
        self.follower.refresh(in_sequence=False)


def load(
    model: str | Path = "latest",
    *,
    backend: str = "auto",
    weights: str = "float32",
    mode: str = READ_MODES[0],
    out: str | Path = "runs",
    wait: float = WAIT_S,
    say: Callable[[str], object] = lambda message: None,
    layers_from: str | Path | None = None,
) -> LanguageModel:
    """Load a model that writes and scores text.

    Args:
        model: a run (its name or a part of it, `latest`, or its folder), one of its checkpoints, or
            a checkpoint of transformers or of the xlstm package. Of a run that trains the weights
            are the newest there are, of another one those of its newest checkpoint.
        backend: "torch", "mlx" (its GPU where there is one), a device of one, such as "mlx:cpu", or
            "auto": MLX on Apple's GPU, torch elsewhere, the other where one is missing.
        weights: what the backend holds: "float32" or "bfloat16"; of MLX also "8bit" and "4bit".
        mode: which weights of a run that trains, one of `MODES` in `mlxhog/live`.
        out: the folder that holds the runs.
        wait: seconds to wait for a run that is being started.
        say: told what is waited for.
        layers_from: a Python file with layers of your own that the model has; several with commas.
            What a run remembers needs none, while the file is as it was.

    Raises:
        RunError: there is no such run, and the message names those that there are; or it has not
            begun in that time.
        CheckpointError: there is no checkpoint yet, it is damaged or of another family of models.
        ConfigError: no such backend, weights or mode, or the model is no language model.
        DataError: it has no tokenizer, or one that does not fit the model.
        EnvironmentLacks: the backend is not there.
        ArenaError: the run that trains cannot be read, such as one of another version.
    """
    for name, path in (("model", model), ("out", out)):
        if not isinstance(path, str | os.PathLike):
            raise ConfigError(f"{name} is a {type(path).__name__}, expected a str or a path")
    for name, word in (("backend", backend), ("weights", weights), ("mode", mode)):
        if not isinstance(word, str):
            raise ConfigError(f"{name} is a {type(word).__name__}, expected a str")
    if layers_from is not None:
        load_named(layers_from)
    source, opened = open_newest(
        os.fspath(model),
        root=Path(out),
        backend=backend,
        weights=weights,
        mode=mode,
        wait_s=wait,
        say=say,
    )
    try:
        return LanguageModel(source, opened)
    except BaseException:
        source.close()
        raise


def _text(what: str, value: str) -> str:
    """Return a text that can be encoded.

    Raises:
        DataError: it is none, or holds halves of characters.
    """
    if not isinstance(value, str):
        raise DataError(f"the {what} is a {type(value).__name__}, expected a str")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"the {what} holds half a character at position {error.start}, which is no Unicode "
            "text; decode its bytes with errors='replace'"
        ) from error
    return value
