"""A model and its tokenizer on a backend, which weights make ready to write text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxhog import backends
from mlxhog.backends.backend import Backend
from mlxhog.data.tokenizers import Tokenizer
from mlxhog.decoding import generate
from mlxhog.decoding.engine import BATCH_SIZE, PREFILL_CHUNK, Piece, RecurrentModel
from mlxhog.decoding.sampling import Sampler
from mlxhog.models import families
from mlxhog.models.families import ModelConfig


@dataclass(frozen=True)
class Model:
    """A model that writes text.

    Attributes:
        backend: what computes it.
        config: the model.
        tokenizer: what made its training tokens.
        checkpoint: where its parameters come from.
        end_tokens: what ends a text beside the tokenizer's BOS: the EOS that the config names.
    """

    backend: Backend
    config: ModelConfig
    tokenizer: Tokenizer
    checkpoint: Path
    end_tokens: frozenset[int] = frozenset()

    @classmethod
    def without_weights(
        cls,
        backend: str,
        config: ModelConfig,
        tokenizer: Tokenizer,
        checkpoint: Path,
        end_tokens: frozenset[int] = frozenset(),
    ) -> Model:
        """A model whose backend, one of `BACKEND_WORDS`, is started and yet to be filled.

        Raises:
            ConfigError: no such backend.
            EnvironmentLacks: it is not there.
        """
        started = backends.create_alone(backend)
        return cls(started, config, tokenizer, checkpoint, end_tokens)

    def answer(
        self,
        prompts: Sequence[str],
        *,
        sampler: Sampler,
        max_new_tokens: int,
        stop: Sequence[str] = (),
        batch_size: int = BATCH_SIZE,
        prefill_chunk: int = PREFILL_CHUNK,
        by: RecurrentModel[Any] | None = None,
    ) -> Iterator[Piece]:
        """Answer prompts together, token by token; arguments as `mlxhog.decoding.generate.answer`.

        `by` computes in the backend's place, if it is given.

        Raises:
            ConfigError: a number is out of its range, a stop string is empty, or prompt and answer
                have more tokens than the model has positions.
            Diverged: the model's logits are not finite.
        """
        ids = [self.tokenizer.encode(prompt.encode()) for prompt in prompts]
        most = max((len(tokens) for tokens in ids), default=0)
        families.check_length(self.config, most + max_new_tokens)
        return generate.answer(
            self.backend if by is None else by,
            ids,
            tokenizer=self.tokenizer,
            sampler=sampler,
            max_new_tokens=max_new_tokens,
            stop=stop,
            end_tokens=self.end_tokens,
            batch_size=batch_size,
            prefill_chunk=prefill_chunk,
        )


def end_tokens(config: ModelConfig) -> frozenset[int]:
    """The config's EOS: none, one, or a list."""
    eos = config.to_dict().get("eos_token_id")
    return frozenset(
        token for token in (eos if isinstance(eos, list) else [eos]) if token is not None
    )
