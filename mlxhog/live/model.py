"""A checkpoint's model on a backend, ready to write text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlxhog import arena, backends, checkpoint, machine, mix
from mlxhog.data.tokenizers import Tokenizer
from mlxhog.decoding.generate import generate, stream_text
from mlxhog.decoding.sampling import Sampler
from mlxhog.decoding.stepper import BackendStepper
from mlxhog.models import families


@dataclass(frozen=True)
class Model:
    """A model that writes text.

    Attributes:
        stepper: its recurrent form.
        tokenizer: what made its training tokens.
        checkpoint: where its parameters come from.
    """

    stepper: BackendStepper
    tokenizer: Tokenizer
    checkpoint: Path

    def write(self, prompt: str, *, sampler: Sampler, max_new_tokens: int) -> Iterator[str]:
        """Return the text after a prompt, piece by piece.

        Raises:
            ConfigError: `max_new_tokens` is negative.
            Diverged: the model's logits are not finite.
        """
        tokens = generate(
            self.stepper,
            self.tokenizer.encode(prompt.encode()),
            tokenizer=self.tokenizer,
            sampler=sampler,
            max_new_tokens=max_new_tokens,
        )
        return stream_text(self.tokenizer, tokens)


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
    return Model(BackendStepper(loaded), found.tokenizer, path)
