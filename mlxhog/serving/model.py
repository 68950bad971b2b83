"""Load a trained model that generates and scores text: `mlxhog.load`."""

import os
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from mlxhog import backends
from mlxhog.backends.backend import Backend
from mlxhog.backends.inference import check_tokens
from mlxhog.base.processes import environment
from mlxhog.checkpoint import hub
from mlxhog.checkpoint.run import Run, is_run, run_of
from mlxhog.config import plugins
from mlxhog.config.sources import of_keywords, resolve
from mlxhog.data.tokenizers import Tokenizer
from mlxhog.decoding.engine import Piece, answer
from mlxhog.decoding.options import Sampling, stop_strings
from mlxhog.decoding.scoring import score_document
from mlxhog.display.views import Tell
from mlxhog.errors import ConfigError, DataError, shown
from mlxhog.models import families, lm_native
from mlxhog.models.families import ModelConfig
from mlxhog.serving import BACKEND, READ_MODES, WAIT_S, LoadOptions
from mlxhog.serving.opening import open_source
from mlxhog.serving.source import WeightFollower, WeightSource


class LoadedModel:
    """A model with the weights of a checkpoint, or of a run while it trains.

    With a run that trains, each call begins with the newest weights, and loads newer ones between
    two tokens as its read mode allows.

    Attributes:
        config: the architecture: `vocab_size`, `hidden_size`, ..., all of them in `to_dict()`.
        tokenizer: `encode(bytes)` gives ids, `decode(ids)` gives bytes; `bos` begins a document.
        backend: its name, such as "torch:cpu".
        checkpoint: path of the parameters, a checkpoint or the folder of a run.
        follower: loads newer weights, and names the loaded ones.

    Concurrency: for one thread at a time.
    """

    def __init__(
        self,
        backend: Backend,
        source: WeightSource,
        config: ModelConfig,
        tokenizer: Tokenizer,
        checkpoint: Path,
    ) -> None:
        """Load the weights of a source into a backend; see `load`."""
        self.config, self.tokenizer, self.checkpoint = config, tokenizer, checkpoint
        self.num_parameters = families.param_count(config)
        self._n_unfinished = 0  # answers that have begun
        self.backend = backend.name
        self.follower = follower = WeightFollower(source, backend)
        self._closed = weakref.finalize(self, lambda: follower.source.close())

    @property
    def name(self) -> str:
        """Name for clients: that of its run, on the hub, or of its folder."""
        return self.run.name if self.run else hub.title(self.checkpoint) or self.checkpoint.name

    @property
    def run(self) -> Run | None:
        """The run of the weights; None for a checkpoint outside of runs."""
        return Run(self.checkpoint) if is_run(self.checkpoint) else run_of(self.checkpoint)

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end an answer: BOS, and the EOS tokens of the config."""
        eos = self.config.to_dict().get("eos_token_id")
        tokens = [self.tokenizer.bos, *(eos if isinstance(eos, list) else [eos])]
        return frozenset(token for token in tokens if token is not None)

    @property
    def source_name(self) -> str:
        """Name of the run or checkpoint of the weights, for people."""
        return self.follower.source.name

    def __repr__(self) -> str:
        return (
            f"<LoadedModel: {self.source_name}, {self.num_parameters:,} parameters, {self.backend}>"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the weights and the run; without this call, that happens with the object."""
        self._closed()
        self.follower.backend.close()

    def generate(
        self, prompt: str = "", *, stop: str | Sequence[str] = (), **options: object
    ) -> str:
        """Return the text after a prompt, without the prompt.

        Args:
            prompt: text to continue; an empty one begins a document.
            stop: texts that end the answer and are not part of it.
            options: other fields of `Sampling` in `mlxhog/decoding/options.py`, as for `mlxhog
                generate`: `max_new_tokens`, `temperature`, `seed`, ...

        Raises:
            ConfigError: an option does not exist or has an illegal value, the tokens are more than
                the model has positions for, or the model was closed.
            DataError: the prompt is not a Unicode text.
            Diverged: the model's logits are not finite.
        """
        return "".join(self.stream(prompt, stop=stop, **options))

    def stream(
        self, prompt: str = "", *, stop: str | Sequence[str] = (), **options: object
    ) -> Iterator[str]:
        """Yield the text of `generate` in parts, each as soon as it is final.

        Arguments and errors are those of `generate`; the iterator raises `Diverged`, and
        `ConfigError` if the model was closed meanwhile. In mode `pinned_per_sequence` no other call
        loads newer weights until the iterator has ended or is gone.
        """
        sampling = resolve(Sampling, [of_keywords("generate()", options)])
        texts = tuple(_text("stop string", one) for one in stop_strings(stop, "generate(): stop"))
        pieces = self.answer([prompt], replace(sampling, stop=texts))
        return (piece.text for piece in pieces if piece.text)

    def answer(self, prompts: Sequence[str], sampling: Sampling) -> Iterator[Piece]:
        """Yield the tokens of the answers to several prompts, decoded together.

        Raises:
            ConfigError: prompt and answer have more tokens than the model has positions for, or the
                model was closed.
            DataError: a prompt is not a Unicode text.
            Diverged: the model's logits are not finite.
        """
        self._refresh()
        ids = [self.tokenizer.encode(_text("prompt", one).encode()) for one in prompts]
        most = max((len(tokens) for tokens in ids), default=0)
        families.check_length(self.config, most + sampling.max_new_tokens)
        pieces = answer(
            self.follower.backend,
            ids,
            tokenizer=self.tokenizer,
            sampling=sampling,
            stop_ids=self.stop_ids,
            before_step=partial(self._refresh, in_sequence=True),
        )
        return self._counted(pieces)

    def _counted(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        """Count an answer as unfinished from its first step on, until its iterator is gone."""
        self._n_unfinished += 1
        try:
            yield from pieces
        finally:
            self._n_unfinished -= 1

    def logits(self, ids: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Return the logits of the next token at each position.

        Training documents begin with `tokenizer.bos`, which this method does not add.

        Args:
            ids: (S,), or (B, S) for several sequences of one length; integers from 0 to V - 1.

        Returns:
            (S, V) or (B, S, V) float32, where V is `config.vocab_size`: `[..., t, :]` predicts the
            token after `ids[..., :t + 1]`. Entries from `tokenizer.n_ids` on are padding of the
            vocabulary and have no meaning.

        Raises:
            DataError: `ids` is empty, not of integers, or has an id outside the vocabulary.
            ConfigError: the ids are more than the model has positions for.
        """
        try:
            tokens = np.asarray(ids)
        except ValueError as error:
            raise DataError(f"ids are sequences of different lengths: {error}") from error
        if tokens.dtype.kind not in "iu" or tokens.ndim not in (1, 2):
            raise DataError(
                f"ids have shape {tokens.shape} and type {tokens.dtype}, expected (S,) or (B, S) "
                "integers, such as model.tokenizer.encode(b'The')"
            )
        rows = np.atleast_2d(tokens).astype(np.int64)
        check_tokens(rows, self.config.vocab_size)
        families.check_length(self.config, rows.shape[1])
        self._refresh()
        logits, _ = self.follower.backend.all_logits(rows.astype(np.int32), None)
        return logits if tokens.ndim == 2 else logits[0]

    def score(self, text: str) -> float:
        """Return the model's bits per byte on a text; a uniform guess has 8.

        The text is one document, read with one state. The evaluation of a run is less favorable: it
        cuts its text into sequences of `seq_len` tokens.

        Raises:
            DataError: the text is empty.
            ConfigError: the text has more tokens than the model has positions for.
            Diverged: the model's logits are not finite.
        """
        encoded = _text("text", text)
        if not encoded:
            raise DataError("the text to score is empty; give at least one character")
        self._refresh()
        scored = score_document(self.follower.backend, self.config, self.tokenizer, encoded)
        bits = scored.bits_per_byte
        assert bits is not None
        return bits

    def _refresh(self, *, in_sequence: bool = False) -> None:
        """Load newer weights if they are due; ConfigError if the model was closed.

        A call between two steps of an answer is in its sequence.
        """
        if not self._closed.alive:
            raise ConfigError("this model was closed; load it again with mlxhog.load")
        self.follower.refresh(in_sequence=in_sequence or self._n_unfinished > 0)


def load(
    model: str | Path = "latest",
    *,
    backend: str = BACKEND,
    weights: str = "float32",
    mode: str = READ_MODES[0],
    runs_dir: str | Path = "runs",
    wait: float = WAIT_S,
    say: Tell = lambda message: None,
    plugin: str | Path | None = None,
    pause: Callable[[float], object] = time.sleep,
) -> LoadedModel:
    """Load a model that generates and scores text.

    Args:
        model: a run (its name or a part of it, `latest`, or its folder), one of its checkpoints, or
            a checkpoint of transformers or of the xlstm package, or hf:OWNER/NAME on the Hugging
            Face hub, of which up to 1 GB is downloaded. A run that trains is read with its newest
            weights, another run with its newest checkpoint, or its best if it ended worse.
        backend: "torch", "mlx", a device such as "mlx:cpu", or "auto": MLX on a Mac, torch
            elsewhere, or the one that is installed. MLX is the GPU if there is one, but the CPU for
            models that its native decoder runs faster (`mlxhog doctor` measures it).
        weights: format in the backend: "float32", "bfloat16", "8bit" or "4bit"; for
            float32 a run with an adapter has the format of its base in training.
        mode: which weights of a run that trains are read, one of `mlxhog.serving.MODES`.
        runs_dir: the folder of the runs.
        wait: seconds to wait for a run that is starting.
        say: called with a message when the wait begins.
        plugin: a Python file with your own layers, or several with commas; not needed for a run
            whose file is unchanged.
        pause: waits for some seconds; it may raise an error to end the wait.

    Raises:
        RunError: no run has this name, or the run did not begin within `wait` seconds.
        CheckpointError: there is no checkpoint yet, or it is damaged or of an unknown family.
        ConfigError: no such backend, weights or mode, or the model is not a language model.
        DataError: the model has no tokenizer, or one that does not fit.
        EnvironmentLacks: the backend is not installed.
        ArenaError: the run that trains cannot be read, for example because of another version.
    """
    plugins.load_all(plugin)
    own = resolve(LoadOptions, [of_keywords("load()", {"wait": wait, "runs_dir": runs_dir})])
    how: dict[str, Any] = {"weights": weights, "mode": mode, "wait_s": own.wait}
    spec = spec_of("load()", model)
    opened = open_source(spec, Path(own.runs_dir), **how, say=say, pause=pause)
    # If torch's thread pool spins between its jobs, the native operators lack its cores.
    policy = {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE")}
    try:
        with environment(policy):
            is_native = opened[0].weights == "float32" and lm_native.can_decode(opened[1])
            native_params = families.param_count(opened[1]) if is_native else None
            return LoadedModel(backends.create_alone(backend, native_params), *opened)
    except BaseException:
        opened[0].close()
        raise


def spec_of(call: str, model: object) -> str:
    """Return what names a run or a checkpoint; ConfigError for an object of another type."""
    if not isinstance(model, str | os.PathLike):
        raise ConfigError(
            f"{call}: {shown(model)} is no name of a run or a checkpoint; give its name or path, "
            "such as result.run"
        )
    return str(os.fspath(model))


def _text(name: str, value: str) -> str:
    """Return a str; DataError for another type, or half a character (a surrogate)."""
    try:
        value.encode()
    except (AttributeError, UnicodeEncodeError) as error:
        raise DataError(f"the {name} is not a Unicode text ({error}); give a str") from error
    return value
