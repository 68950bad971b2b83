"""A model and its tokenizer on a backend; with weights it can write text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mlxhog.backends.backend import Backend
from mlxhog.checkpoint.run import run_of
from mlxhog.data.tokenizers import Tokenizer
from mlxhog.decoding import generate
from mlxhog.decoding.engine import Piece
from mlxhog.decoding.options import Sampling
from mlxhog.models import families
from mlxhog.models.families import ModelConfig


@dataclass(frozen=True)
class Model:
    """A model that writes text."""

    backend: Backend  # the backend that computes it
    config: ModelConfig  # its architecture
    tokenizer: Tokenizer  # the tokenizer of its training text
    checkpoint: Path  # path of its parameters

    @cached_property
    def name(self) -> str:
        """Name for clients: that of its run, or of its folder."""
        run = run_of(self.checkpoint)
        return self.checkpoint.name if run is None else run.name

    @property
    def end_tokens(self) -> frozenset[int]:
        """Tokens that end a text besides BOS: the EOS of the config, none, one or several."""
        eos = self.config.to_dict().get("eos_token_id")
        tokens = eos if isinstance(eos, list) else [eos]
        return frozenset(token for token in tokens if token is not None)

    def answer(self, prompts: Sequence[str], sampling: Sampling, **how: Any) -> Iterator[Piece]:
        """Answer texts together, token by token.

        `how` is `batch_size`, `prefill_chunk` and `before_step` of `generate.answer`.

        Raises:
            ConfigError: a number is out of its range, or prompt and answer have more tokens than
                the model has positions.
            Diverged: the model's logits are not finite.
        """
        ids = [self.tokenizer.encode(prompt.encode()) for prompt in prompts]
        most = max((len(tokens) for tokens in ids), default=0)
        families.check_length(self.config, most + sampling.max_new_tokens)
        return generate.answer(
            self.backend,
            ids,
            tokenizer=self.tokenizer,
            sampling=sampling,
            end_tokens=self.end_tokens,
            **how,
        )
