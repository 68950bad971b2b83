"""A checkpoint's model on a backend, ready to write text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlxhog import arena, backends, checkpoint, machine, mix
from mlxhog.data.tokenizers import Tokenizer
from mlxhog.decoding import generate
from mlxhog.decoding.generate import Said
from mlxhog.decoding.sampling import Sampler
from mlxhog.models import families


@dataclass(frozen=True)
class Model:
    """A model that writes text.

    Attributes:
        backend: what computes it.
        tokenizer: what made its training tokens.
        checkpoint: where its parameters come from.
    """

    backend: backends.Backend
    tokenizer: Tokenizer
    checkpoint: Path

    def write(
        self,
        prompt: str,
        *,
        sampler: Sampler,
        max_new_tokens: int,
        stop: Sequence[str] = (),
    ) -> Iterator[str]:
        """Return the text after a prompt, piece by piece; arguments and errors as `answer`."""
        said = self.answer([prompt], sampler=sampler, max_new_tokens=max_new_tokens, stop=stop)
        return (one.text for one in said if one.text)

    def answer(
        self,
        prompts: Sequence[str],
        *,
        sampler: Sampler,
        max_new_tokens: int,
        stop: Sequence[str] = (),
        batch_size: int = generate.BATCH_SIZE,
        prefill_chunk: int = generate.PREFILL_CHUNK,
    ) -> Iterator[Said]:
        """Answer prompts together, token by token; see `mlxhog.decoding.generate.answer`.

        Raises:
            ConfigError: a number is out of its range, or a stop string is empty.
            Diverged: the model's logits are not finite.
        """
        return generate.answer(
            self.backend,
            [self.tokenizer.encode(prompt.encode()) for prompt in prompts],
            tokenizer=self.tokenizer,
            sampler=sampler,
            max_new_tokens=max_new_tokens,
            stop=stop,
            batch_size=batch_size,
            prefill_chunk=prefill_chunk,
        )


def open_model(spec: str, *, root: Path, backend: str) -> Model:
    """Load the model that `spec` names.

    Args:
        spec: a run (a path, a name below `root`, or `latest`), or the path of a checkpoint.
        root: the folder of runs.
        backend: what computes, such as "torch:cpu".

    Raises:
        RunError: there is no such run.
        CheckpointError: there is no checkpoint yet, or it is damaged.
        EnvironmentLacks: the backend is not there.
    """
    path = checkpoint.locate(spec, root)
    (worker,) = mix.resolve(backend, machine=machine.here()).workers
    found = checkpoint.load(path)
    config = families.read(found.config)
    parameters = families.param_spec(config)
    checkpoint.check_shapes(
        found.params, {name: spec.shape for name, spec in parameters.items()}, path
    )
    layout = arena.plan(parameters, max_workers=1, n_tickets=1)
    loaded = backends.create(backend, threads=worker.threads, kernels="auto", cpu_blas="auto")
    loaded.bind(config, layout.slots, layout.n_floats, None)
    for name, slot in layout.slots.items():
        loaded.inbox[slot.offset : slot.offset + slot.size] = found.params[name].ravel()
    loaded.refresh()
    return Model(loaded, found.tokenizer, path)
