"""Engines, which compute a model on NumPy arrays, and all results of a subject.

`NumPyEngine` runs the float64 reference of models. `FrameworkEngine` is a backend as workers and
generation use it.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from mlxhog import arena, backends
from mlxhog.backends import probes
from mlxhog.conformance.subject import Array, ParitySubject, state_names
from mlxhog.data.batch import Batch
from mlxhog.models import families, lm_float64
from mlxhog.models.families import ModelConfig
from mlxhog.models.ops.kernels import choose
from mlxhog.optim.gradients import dense

State = Any  # recurrent state of the backend, for its next call or `state_arrays`

NamedArrays = Iterator[tuple[str, Array]]


class FrameworkEngine:
    """A worker's backend, such as "torch:cpu", with one model at a time."""

    def __init__(self, name: str, kernels: str, threads: int = 1, dtype: str = "float32") -> None:
        framework, _, device = name.partition(":")
        self.backend = backends.create(name, threads=threads, kernels=kernels, dtype=dtype)
        self._device = probes.Device(framework, device, threads)
        self.ops = choose(framework, kernels, device)
        self._cfg: ModelConfig | None = None

    def load(self, cfg: ModelConfig, params: Mapping[str, Array]) -> None:
        """Copy a model's float32 parameters, by mlxhog's names."""
        if cfg != self._cfg:
            self._layout = arena.plan(families.trainable_spec(cfg), max_workers=1, n_tickets=1)
            if cfg.adapter is not None:
                self.backend.load_frozen(cfg, params)
            self.backend.bind(cfg, self._layout)
            self._cfg = cfg
        flat = np.zeros(self._layout.n_floats, np.float32)
        for name, slot in self._layout.slots.items():
            flat[slot.offset : slot.offset + slot.size] = params[name].reshape(-1)
        self.backend.copy_in(flat)

    def differentiate(self, tokens: Array, targets: Array) -> tuple[float, dict[str, Array]]:
        """Return the mean loss in nats, and its gradient by parameter, each in its full shape."""
        assert self._cfg is not None, "load a model first"
        batch = Batch(tokens.copy(), targets.copy(), targets.size)
        loss, grads = self.backend.loss_and_grads(batch)
        slots = self._layout.slots
        return loss, {name: dense(grad, slots[name].shape) for name, grad in grads.items()}

    def probes(self) -> NamedArrays:
        """Compute the probes of `mlxhog.backends.probes`."""
        return probes.probed(self._device, self.ops)


class NumPyEngine:
    """The float64 reference of models, with the methods of `FrameworkEngine` and its backend.

    With `rounded`, every intermediate result of a gradient is rounded to float32; with `bf16` those
    of mixed precision to bfloat16.
    """

    def __init__(self, *, rounded: bool = False, bf16: bool = False) -> None:
        self._how: dict[str, Any] = {"rounded": rounded, "bf16": bf16}
        self.backend = self

    def load(self, cfg: ModelConfig, params: Mapping[str, Array]) -> None:
        """Use a model's parameters, without a copy; they are not written."""
        self._cfg, self._params = cfg, params

    def all_logits(
        self, tokens: Array, state: State, hidden: list[Array] | None = None
    ) -> tuple[Array, State]:
        """Return the logits of every token, and the next state."""
        return lm_float64.logits(self._cfg, self._params, tokens, state, hidden=hidden)

    def logits(self, tokens: Array, state: State) -> tuple[Array, State]:
        """Return the logits of one token per sequence, and the next state."""
        logits, state = self.all_logits(tokens, state)
        return logits[:, -1], state

    def differentiate(self, tokens: Array, targets: Array) -> tuple[float, dict[str, Array]]:
        """Return the mean loss in nats, and its gradient by parameter."""
        return lm_float64.differentiate(self._cfg, self._params, tokens, targets, **self._how)

    def state_arrays(self, state: State) -> list[list[Array]]:
        """Return a state as arrays, a list per block."""
        return [list(block) for block in state[-len(self._cfg.layout.blocks) :]]


ModelEngine = FrameworkEngine | NumPyEngine  # computes a model in the process that made it


def results(
    engine: ModelEngine,
    subject: ParitySubject,
    params: Mapping[str, Array],
    steps: Callable[..., Any],
    *,
    tokenwise: bool = True,
) -> NamedArrays:
    """Compute all results of a subject with other parameters, in the order of the computation.

    `steps` is `optimizers.native_steps` or `optimizers.float64_steps`.
    """
    cfg, tokens, targets = subject.cfg, subject.fixed["tokens"], subject.fixed.get("targets")
    engine.load(cfg, params)
    reader, hidden = engine.backend, list[Array]()
    logits, state = reader.all_logits(tokens, None, hidden)
    for number, x in enumerate(hidden):
        yield f"hidden/{'out_norm' if number > len(cfg.layout.blocks) else number}", x
    yield "logits", logits
    yield from _state(cfg, "state", reader.state_arrays(state))
    grads: dict[str, Array] = {}
    if targets is not None:
        loss, grads = engine.differentiate(tokens, targets)
        yield "loss", np.array(loss, logits.dtype)
        for name in families.trainable_spec(cfg):
            if name in grads:
                yield f"grad/{name}", grads[name]
    if tokenwise and families.is_language_model(cfg):
        state, parts = None, []
        for t in range(tokens.shape[1]):
            one, state = reader.logits(tokens[:, t : t + 1], state)
            parts.append(one)
        yield "stepwise/logits", np.stack(parts, 1)
        yield from _state(cfg, "stepwise/state", reader.state_arrays(state))
    if targets is None or not subject.steps:
        return

    def gradient(now: Mapping[str, Array], step: int) -> Mapping[str, Array]:
        every = grads
        if step > 1:
            engine.load(cfg, {**params, **now})
            every = engine.differentiate(tokens, targets)[1]
        moved = {k for k, one in families.trainable_spec(cfg).items() if one.kind != "table"}
        return {k: x for k, x in every.items() if k in moved & params.keys()}

    for rule, values, deviation in steps(cfg, params, gradient, subject.steps):
        yield from ((f"after/{rule}/{name}", value) for name, value in values.items())
        yield from ((f"step/{rule}/{name}", value) for name, value in deviation.items())


def _state(cfg: ModelConfig, prefix: str, blocks: list[list[Array]]) -> NamedArrays:
    """Name the parts of every block's state."""
    for number, (block, parts) in enumerate(zip(cfg.layout.blocks, blocks, strict=True)):
        names = state_names(block[0].layer, block[0].d)
        yield from ((f"{prefix}/{number}/{n}", x) for n, x in zip(names, parts, strict=True))
