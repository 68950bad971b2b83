"""MLX as a backend: "mlx:cpu", and "mlx:gpu" as a device variant of it."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.arena import Slot
from mlxhog.arena.importing import whole
from mlxhog.backends import blas, gpu_share
from mlxhog.backends.backend import (
    QUANTIZED_BITS,
    WEIGHTS,
    Evaluation,
    Float32,
    Grads,
    Int32,
    State,
    check_batch,
    check_tokens,
    embedding_rows,
)
from mlxhog.backends.gpu_share import GPUShare, limit_mlx
from mlxhog.backends.one_token import OneToken
from mlxhog.data.batch import Batch
from mlxhog.errors import ConfigError, EnvironmentLacks
from mlxhog.files import mapped
from mlxhog.models import families, lm, lm_native
from mlxhog.models.families import ModelConfig
from mlxhog.models.ops.arrays import Array
from mlxhog.models.ops.kernels import Ops, choose, resolve
from mlxhog.models.sampled_head import Candidates, SampledHead
from mlxhog.optim.gradients import Rows

_MOST_FORMS = 16


class Signatures:
    """The shapes that a compiled function was called with; the worker's log names each."""

    def __init__(self) -> None:
        """None yet."""
        self._seen: set[tuple[int, ...]] = set()

    def __len__(self) -> int:
        """Number of compiled forms."""
        return len(self._seen)

    def call(self, shape: tuple[int, ...]) -> None:
        """Note a call with inputs of this shape."""
        if shape in self._seen:
            return
        self._seen.add(shape)
        print(f"gradient compiled for {shape[0]} x {shape[1]} tokens, form {len(self)}", flush=True)
        if len(self) == _MOST_FORMS + 1:
            print(
                f"warning: more than {_MOST_FORMS} compiled forms; each holds GPU memory for ever, "
                "so keep seq_len and batch_size fixed in a run",
                flush=True,
            )


class MLXBackend:
    """MLX on one device. The inbox is a NumPy view of the flat array the parameters are slices of.

    MLX shares host memory with its arrays on both devices, so writing the inbox between two
    evaluations is all a refresh takes. Holding the flat array keeps MLX from donating its buffer.

    MLX binds its streams to threads: the thread that made a backend is the only one to call it.
    """

    def __init__(
        self,
        name: str,
        *,
        threads: int,
        kernels: str,
        cpu_blas: str,
        share: GPUShare,
        compiled: bool | None = None,
        narrow: bool = False,
    ) -> None:
        """Import MLX, with a fast BLAS where that is possible, and choose the device.

        Args:
            name: "mlx:cpu" or "mlx:gpu".
            threads: of the native operators.
            kernels: which operators; native and emulated ones cannot be compiled.
            cpu_blas: see `backends.create`.
            share: of the GPU, where this is one.
            compiled: whether `mx.compile` joins the operations of a gradient; by default on a GPU.
            narrow: compute the matrix products of gradients in bfloat16.

        Raises:
            EnvironmentLacks: MLX is missing, has no such device or too little memory, or
                `MLX_METAL_FAST_SYNCH` is set.
        """
        if os.environ.get("MLX_METAL_FAST_SYNCH"):
            raise EnvironmentLacks(
                "MLX_METAL_FAST_SYNCH is set: its GPU spins can lock the machine (mlx issue 3830); "
                "unset it"
            )
        # The native operators bring a matrix product of their own; the plain ones use MLX's.
        if kernels == "reference" and cpu_blas == "auto" and name == "mlx:cpu":
            print(f"matrix products of MLX: {blas.preload(threads)}", flush=True)
        try:
            import mlx.core as mx
        except ImportError as error:
            raise EnvironmentLacks(
                "backend mlx needs the package mlx: python -m pip install 'mlx[cpu]' on Linux, "
                "python -m pip install mlx on a Mac"
            ) from error
        from mlxhog.models.ops.native import adapter_mlx as native_mlx

        native_mlx.set_threads(threads)
        if name == "mlx:gpu" and not mx.metal.is_available():
            raise EnvironmentLacks(
                f"backend mlx:gpu needs Metal; this is {platform.system()} on "
                f"{platform.machine()}; use mlx:cpu"
            )
        self.on_gpu = name == "mlx:gpu"
        if self.on_gpu:
            limit_mlx(mx, share)
        mx.set_default_device(mx.gpu if self.on_gpu else mx.cpu)
        self.name = name
        lazy = self.on_gpu and kernels != "metal-emulated"  # which computes when it is called
        self.compiled = lazy if compiled is None else compiled
        self.signatures = Signatures()
        self._share = share
        self._threads = threads
        self.kernels = self._asked = kernels
        self.narrow = narrow
        self._mx = mx

    def bind(
        self,
        model: ModelConfig,
        slots: Mapping[str, Slot],
        n_floats: int,
        live: Float32 | None,
        sampled: SampledHead | None = None,
    ) -> None:
        """Slice one flat array into parameters; see `Backend.bind`."""
        mx = self._mx
        if live is not None:
            if not mx.metal.is_available():
                raise ConfigError(
                    f"--read live: {self.name} can only copy host memory without Metal; "
                    "use --read snapshot, or torch:cpu workers"
                )
            from mlxhog.metal.engine_mlx import adopt

            self._flat = adopt(whole(live))
        else:
            self._flat = mx.zeros(n_floats)
            mx.eval(self._flat)
        self.model = model
        self.inbox: Float32 = np.array(self._flat, copy=False) if live is None else live
        self.params: dict[str, Any] = {
            name: self._flat[slot.offset : slot.offset + slot.size].reshape(slot.shape)
            for name, slot in slots.items()
        }
        mx.eval(list(self.params.values()))
        spec = families.param_spec(model)
        self._trained = [name for name in self.params if spec[name].kind == "dense"]
        self._sampled = sampled
        if sampled is not None:
            self._trained.remove(families.head(model))  # its gradient is one row per candidate
        self._embedded = families.embedding(model) in self._trained  # and not one row per token
        gradient = mx.value_and_grad(self._loss, argnums=(0, 1, 2))
        # Parameters are inputs: a captured array would be compiled in.
        self._value_and_grad = mx.compile(gradient) if self.compiled else gradient
        self._one_token = self._native_step()

    def load(
        self, model: ModelConfig, tensors: Mapping[str, NDArray[Any]], *, weights: str = "float32"
    ) -> list[str]:
        """See `Backend.load`; MLX copies host memory always."""
        from mlxhog.models.ops.reference.quantized_mlx import Quantized, suits

        mx, bits = self._mx, QUANTIZED_BITS.get(weights)
        self.close()
        self.kernels = self._asked
        if weights == "bfloat16":
            device = "gpu" if self.on_gpu else "cpu"
            self.kernels = resolve("mlx", self._asked, device, weights=weights)
        self.model = model
        not_finite = []
        narrow = families.narrowable(model)
        for name, tensor in tensors.items():
            half = weights == "bfloat16" and name in narrow
            # The buffer protocol has no bfloat16, so its bits travel as integers.
            array = mx.zeros(tensor.shape, mx.uint16 if half else mx.float32)
            mx.eval(array)
            dtype = WEIGHTS["bfloat16" if half else "float32"]
            if not mapped.copy(tensor, np.array(array, copy=False).view(dtype)):
                not_finite.append(name)
            if bits and name in narrow and suits(tensor.shape):
                self.params[name] = Quantized.of(array, bits)
            else:
                self.params[name] = array.view(mx.bfloat16) if half else array
        self._one_token = self._native_step()
        return not_finite

    def _loss(
        self,
        trained: Any,
        x: Any,
        head: Any,
        tokens: Any,
        labels: Any,
        masks: Any,
        ids: Any,
        log_inclusion: Any,
    ) -> Any:
        model, ops = self.model, self._ops()
        params = dict(zip(self._trained, trained, strict=True))
        if self._embedded:
            x = lm.embed(model, params, tokens, ops.xp)
        if ids is not None:  # a sampled head: only the rows of its candidates
            params[families.head(model)] = head
            if (bias := families.head_bias(model)) is not None:
                params[bias] = params[bias][ids]
        return lm.loss_from_embedding(
            model,
            lm.in_bfloat16(model, params, ops.xp) if self.narrow else params,
            x,
            labels,
            ops=ops,
            starts=lm.starts(model, tokens),
            masks=masks,
            log_inclusion=log_inclusion,
        )

    def _ops(self) -> Ops[Array]:
        return choose("mlx", self.kernels, "gpu" if self.on_gpu else "cpu")

    def refresh(self) -> None:
        """Nothing to do: the inbox is the memory of the flat array, and nothing is pending."""

    def loss_and_grads(self, batch: Batch) -> tuple[float, Grads]:
        """See `Backend.loss_and_grads`."""
        check_batch(batch, self.model.vocab_size)
        mx = self._mx
        if self.compiled:
            self.signatures.call(batch.x.shape)
        xp, tokens = self._ops().xp, mx.array(batch.x)
        trained = [self.params[name] for name in self._trained]
        x = mx.zeros(1) if self._embedded else lm.embed(self.model, self.params, tokens, xp)
        drawn = lm.dropout_masks(self.model, batch.x.shape, batch.seed)
        masks = None if drawn is None else {site: mx.array(mask) for site, mask in drawn.items()}
        head, ids, log_inclusion, labels = mx.zeros(1), None, None, batch.y
        candidates = self._candidates(batch)
        if candidates is not None:
            ids, labels = mx.array(candidates.ids), candidates.labels
            head = self.params[families.head(self.model)][ids]
            log_inclusion = mx.array(candidates.log_inclusion)
        loss, (found, dx, d_head) = self._value_and_grad(
            trained, x, head, tokens, mx.array(labels), masks, ids, log_inclusion
        )
        mx.eval(loss, found, dx, d_head)
        grads: Grads = {name: _host(grad) for name, grad in zip(self._trained, found, strict=True)}
        if candidates is not None:
            rows = candidates.ids[: candidates.count]
            grads[families.head(self.model)] = Rows(rows, _host(d_head)[: candidates.count])
        if not self._embedded:
            grads[families.embedding(self.model)] = embedding_rows(batch.x, _host(dx))
        return _host(loss).item(), grads

    def _candidates(self, batch: Batch) -> Candidates | None:
        """The words of a sampled loss; as many for every batch of a size where it is compiled."""
        if self._sampled is None:
            return None
        found = self._sampled.draw(batch.y, batch.seed)
        most = min(self._sampled.negatives + batch.y.size, self.model.vocab_size)
        return found.padded(most) if self.compiled else found

    def evaluate(self, batch: Batch) -> Evaluation:
        """See `Backend.evaluate`."""
        check_batch(batch, self.model.vocab_size)
        parts = gpu_share.rows(batch, self._share) if self.on_gpu else (batch,)
        nats = sum(self._nats(part) for part in parts)
        return Evaluation(nats=nats, targets=int((batch.y >= 0).sum()))

    def _nats(self, batch: Batch) -> float:
        """Summed loss of a batch, computed in one go."""
        ops, tokens = self._ops(), self._mx.array(batch.x)
        nats = lm.sum_loss(
            self.model,
            self.params,
            lm.embed(self.model, self.params, tokens, ops.xp),
            self._mx.array(batch.y),
            ops=ops,
            starts=lm.starts(self.model, tokens),
        )
        return float(_host(nats).item())

    def predictions(self, tokens: Int32) -> Int32:
        """See `Backend.predictions`."""
        check_tokens(tokens, self.model.vocab_size)
        ops, ids = self._ops(), self._mx.array(tokens)
        logits, _ = lm.forward(
            self.model,
            self.params,
            lm.embed(self.model, self.params, ids, ops.xp),
            ops=ops,
            starts=lm.starts(self.model, ids),
        )
        found = self._mx.argmax(logits, axis=-1)
        self._mx.eval(found)
        return np.array(found).astype(np.int32)

    def logits(self, tokens: Int32, state: State | None) -> tuple[Float32, State]:
        """See `Backend.logits`."""
        check_tokens(tokens, self.model.vocab_size)
        if self._one_token is not None:
            if tokens.shape[1] == 1:
                return self._one_token.logits(tokens, state)
            state = self._one_token.unpacked(state)
        if not self.on_gpu:
            return self._last_logits(tokens, state)
        for span in gpu_share.spans(tokens.shape, self._share):
            last, state = self._last_logits(tokens[:, span], state)
        return last, state

    def _last_logits(self, tokens: Int32, state: State | None) -> tuple[Float32, State]:
        """Logits after the last of `tokens` and the state, computed in one go."""
        mx = self._mx
        ops, ids = self._ops(), mx.array(tokens)
        logits, state = lm.forward(
            self.model,
            self.params,
            lm.embed(self.model, self.params, ids, ops.xp),
            state,
            ops=ops,
            starts=lm.starts(self.model, ids),
            last=True,
        )
        last = mx.contiguous(logits[:, -1].astype(mx.float32))
        mx.eval(last, state)
        return _host(last).copy(), state

    def stack_states(self, states: Sequence[State]) -> State:
        """See `Backend.stack_states`."""
        if self._one_token is not None:
            return self._one_token.stack_states(states)
        return lm.stack_states(states, self._ops().xp)

    def take_state(self, state: State, rows: Sequence[int]) -> State:
        """See `Backend.take_state`."""
        if self._one_token is not None:
            return self._one_token.take_state(state, rows)
        return lm.take_state(state, rows, self._ops().xp)

    def _native_step(self) -> OneToken | None:
        """The step without MLX, where there is one."""
        if self.on_gpu or any(value.dtype != self._mx.float32 for value in self.params.values()):
            return None
        decoder = lm_native.decoder(
            self.model,
            {name: np.array(value, copy=False) for name, value in self.params.items()},
            framework="mlx",
            kernels=self.kernels,
            threads=self._threads,
        )
        return None if decoder is None else OneToken(decoder, _host, self._mx.array)

    def close(self) -> None:
        """See `Backend.close`."""
        self._one_token = None
        self.params = {}
        self._trained = []
        self.inbox = np.empty(0, np.float32)
        self._flat = self._mx.zeros(1)


def _host(array: Any) -> Float32:
    """A NumPy view of an evaluated MLX array; a copy only where it is not row-contiguous."""
    return np.ascontiguousarray(np.array(array, copy=False))
