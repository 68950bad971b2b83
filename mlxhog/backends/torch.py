"""PyTorch as a backend: "torch:cpu", and "torch:mps" as a device variant of it."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.arena import Slot
from mlxhog.backends import gpu_share
from mlxhog.backends.backend import (
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
from mlxhog.backends.gpu_share import GPUShare
from mlxhog.backends.one_token import OneToken
from mlxhog.data.batch import Batch
from mlxhog.errors import ConfigError, EnvironmentLacks
from mlxhog.files import mapped
from mlxhog.models import families, lm, lm_native
from mlxhog.models.families import ModelConfig
from mlxhog.models.ops.arrays import Array
from mlxhog.models.ops.kernels import Ops, choose, resolve
from mlxhog.models.sampled_head import SampledHead
from mlxhog.optim.gradients import Rows

try:
    import torch
except ImportError as error:
    raise EnvironmentLacks(
        "backend torch needs the package torch: python -m pip install -c constraints.txt torch"
    ) from error


class TorchBackend:
    """PyTorch on one device. On the CPU the inbox is the memory the model computes from."""

    def __init__(
        self, name: str, *, threads: int, kernels: str, share: GPUShare, narrow: bool = False
    ) -> None:
        """Choose the device and the thread count of this process.

        Args:
            name: "torch:cpu" or "torch:mps".
            threads: of torch and of the native operators.
            kernels: which operators.
            share: of the GPU, where this is one.
            narrow: compute the matrix products of gradients in bfloat16.

        Raises:
            EnvironmentLacks: the device is not there.
        """
        device = name.partition(":")[2]
        if device == "mps" and not torch.backends.mps.is_available():
            raise EnvironmentLacks(
                f"backend torch:mps needs an Apple GPU that torch sees; this is "
                f"{platform.system()} on {platform.machine()}; use torch:cpu"
            )
        self.name = name
        self.device = torch.device(device)
        self.kernels = self._asked = kernels
        self.narrow = narrow
        self._share = share
        self._threads = threads
        torch.set_num_threads(threads)

    def bind(
        self,
        model: ModelConfig,
        slots: Mapping[str, Slot],
        n_floats: int,
        live: Float32 | None,
        sampled: SampledHead | None = None,
    ) -> None:
        """Slice one flat tensor into leaf parameters; see `Backend.bind`."""
        if live is not None and self.device.type != "cpu":
            raise ConfigError(
                f"--read live: {self.name} cannot alias the arena; use --read snapshot"
            )
        self.model = model
        self._host = (
            torch.from_numpy(live) if live is not None else torch.zeros(n_floats)
        )  # float32 on the CPU
        self.inbox: Float32 = self._host.numpy()
        self._flat = self._host if self.device.type == "cpu" else self._host.to(self.device)
        self.params = {
            name: self._flat[slot.offset : slot.offset + slot.size].view(slot.shape).detach()
            for name, slot in slots.items()
        }
        spec = families.param_spec(model)
        self._trained = [name for name in self.params if spec[name].kind == "dense"]
        self._sampled = sampled
        if sampled is not None:
            self._trained.remove(families.head(model))  # its gradient is one row per candidate
        for name in self._trained:
            self.params[name].requires_grad_()
        self._one_token = self._native_step()

    def load(
        self, model: ModelConfig, tensors: Mapping[str, NDArray[Any]], *, weights: str = "float32"
    ) -> list[str]:
        """See `Backend.load`."""
        if weights not in WEIGHTS:
            raise ConfigError(
                f"weights are {weights!r}, which {self.name} cannot compute with; use an mlx "
                f"backend (--backend mlx:cpu, mlx:gpu), or weights of {' or '.join(WEIGHTS)}"
            )
        self.close()
        self.kernels = self._asked
        if weights != "float32":
            self.kernels = resolve("torch", self._asked, self.device.type, weights=weights)
        self.model = model
        not_finite = []
        narrow = families.narrowable(model)
        for name, tensor in tensors.items():
            dtype = WEIGHTS[weights if name in narrow else "float32"]
            host, finite = _held(tensor, dtype, where_it_lies=self.device.type == "cpu")
            self.params[name] = host.to(self.device)
            if not finite:
                not_finite.append(name)
        self._one_token = self._native_step()
        return not_finite

    def refresh(self) -> None:
        """Copy the inbox to the device; on the CPU they are the same memory."""
        if self._flat is not self._host:
            self._flat.copy_(self._host)

    def _ops(self) -> Ops[Array]:
        return choose("torch", self.kernels, self.device.type)

    def _tokens(self, tokens: Int32) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(tokens)).to(self.device).long()

    def _mask(self, mask: Float32) -> torch.Tensor:
        return torch.from_numpy(mask).to(self.device)

    def loss_and_grads(self, batch: Batch) -> tuple[float, Grads]:
        """See `Backend.loss_and_grads`."""
        check_batch(batch, self.model.vocab_size)
        model, ops, tokens = self.model, self._ops(), self._tokens(batch.x)
        x = lm.embed(model, self.params, tokens, ops.xp)
        names = list(self._trained)
        leaves = [self.params[name] for name in names]
        if not x.requires_grad:  # the embedding's gradient is one row per token
            names.append(families.embedding(model))
            leaves.append(x.requires_grad_())
        params, labels, log_inclusion = self.params, batch.y, None
        if self._sampled is not None:
            candidates = self._sampled.draw(batch.y, batch.seed)
            params, rows = self._of_candidates(candidates.ids)
            names.append(families.head(model))
            leaves.append(rows)
            labels = candidates.labels
            log_inclusion = torch.from_numpy(candidates.log_inclusion).to(self.device)
        masks = lm.dropout_masks(model, batch.x.shape, batch.seed)
        loss = lm.loss_from_embedding(
            model,
            lm.in_bfloat16(model, params, ops.xp) if self.narrow else params,
            x,
            self._tokens(labels),
            ops=ops,
            starts=lm.starts(model, tokens),
            masks=None if masks is None else {site: self._mask(m) for site, m in masks.items()},
            log_inclusion=log_inclusion,
        )
        found = [g.cpu().contiguous().numpy() for g in torch.autograd.grad(loss, leaves)]
        grads: Grads = dict(zip(names, found, strict=True))
        if self._sampled is not None:
            grads[names[-1]] = Rows(candidates.ids, found[-1])
        if families.embedding(model) not in self._trained:
            embedded = found[names.index(families.embedding(model))]
            grads[families.embedding(model)] = embedding_rows(batch.x, embedded)
        return float(loss.detach()), grads

    def _of_candidates(self, ids: Int32) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """The parameters with the head of some words alone, and its rows, a leaf (C, d)."""
        head, bias = families.head(self.model), families.head_bias(self.model)
        chosen = self._tokens(ids)
        rows = self.params[head][chosen].requires_grad_()
        params = {**self.params, head: rows}
        if bias is not None:
            params[bias] = self.params[bias][chosen]
        return params, rows

    def evaluate(self, batch: Batch) -> Evaluation:
        """See `Backend.evaluate`."""
        check_batch(batch, self.model.vocab_size)
        parts = (batch,) if self.device.type == "cpu" else gpu_share.rows(batch, self._share)
        nats = sum(self._nats(part) for part in parts)
        return Evaluation(nats=nats, targets=int((batch.y >= 0).sum()))

    def _nats(self, batch: Batch) -> float:
        """Summed loss of a batch, computed in one go."""
        with torch.inference_mode():
            ops, tokens = self._ops(), self._tokens(batch.x)
            nats = lm.sum_loss(
                self.model,
                self.params,
                lm.embed(self.model, self.params, tokens, ops.xp),
                self._tokens(batch.y),
                ops=ops,
                starts=lm.starts(self.model, tokens),
            )
        return float(nats)

    def predictions(self, tokens: Int32) -> Int32:
        """See `Backend.predictions`."""
        check_tokens(tokens, self.model.vocab_size)
        with torch.inference_mode():
            ops, ids = self._ops(), self._tokens(tokens)
            logits, _ = lm.forward(
                self.model,
                self.params,
                lm.embed(self.model, self.params, ids, ops.xp),
                ops=ops,
                starts=lm.starts(self.model, ids),
            )
            predicted: Int32 = logits.argmax(-1).cpu().numpy().astype(np.int32)
            return predicted

    def logits(self, tokens: Int32, state: State | None) -> tuple[Float32, State]:
        """See `Backend.logits`."""
        check_tokens(tokens, self.model.vocab_size)
        if self._one_token is not None:
            if tokens.shape[1] == 1:
                return self._one_token.logits(tokens, state)
            state = self._one_token.unpacked(state)
        if self.device.type == "cpu":
            return self._last_logits(tokens, state)
        for span in gpu_share.spans(tokens.shape, self._share):
            last, state = self._last_logits(tokens[:, span], state)
        return last, state

    def _last_logits(self, tokens: Int32, state: State | None) -> tuple[Float32, State]:
        """Logits after the last of `tokens` and the state, computed in one go."""
        with torch.inference_mode():
            ops, ids = self._ops(), self._tokens(tokens)
            logits, state = lm.forward(
                self.model,
                self.params,
                lm.embed(self.model, self.params, ids, ops.xp),
                state,
                ops=ops,
                starts=lm.starts(self.model, ids),
                last=True,
            )
        return logits[:, -1].float().cpu().contiguous().numpy(), state

    def stack_states(self, states: Sequence[State]) -> State:
        """See `Backend.stack_states`."""
        if self._one_token is not None:
            return self._one_token.stack_states(states)
        with torch.inference_mode():
            return lm.stack_states(states, self._ops().xp)

    def take_state(self, state: State, rows: Sequence[int]) -> State:
        """See `Backend.take_state`."""
        if self._one_token is not None:
            return self._one_token.take_state(state, rows)
        with torch.inference_mode():
            return lm.take_state(state, rows, self._ops().xp)

    def _native_step(self) -> OneToken | None:
        """The step without torch, where there is one."""
        if self.device.type != "cpu" or any(
            value.dtype != torch.float32 for value in self.params.values()
        ):
            return None
        decoder = lm_native.decoder(
            self.model,
            {name: value.detach().numpy() for name, value in self.params.items()},
            framework="torch",
            kernels=self.kernels,
            threads=self._threads,
        )
        return None if decoder is None else OneToken(decoder, torch.Tensor.numpy, torch.from_numpy)

    def close(self) -> None:
        """See `Backend.close`."""
        self._one_token = None
        self.params = {}
        self._trained = []
        self.inbox = np.empty(0, np.float32)
        self._flat = self._host = torch.empty(0)


def _held(
    tensor: NDArray[Any], dtype: np.dtype[Any], *, where_it_lies: bool
) -> tuple[torch.Tensor, bool]:
    """Return a tensor of the wanted type on the host, and whether every number is finite."""
    is_bfloat16 = dtype == mapped.BFLOAT16  # which NumPy and torch exchange as integers
    if where_it_lies and tensor.dtype == dtype and tensor.flags.c_contiguous:
        with warnings.catch_warnings():
            # The array may be read-only, and so is every use of these parameters.
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            held = torch.from_numpy(tensor.view(np.int16) if is_bfloat16 else tensor)
        finite = mapped.is_finite_in_place(tensor)
    else:
        # Not NumPy's memory: it asks for large pages, which took seconds to put together here.
        held = torch.empty(tensor.shape, dtype=torch.int16 if is_bfloat16 else torch.float32)
        finite = mapped.copy(tensor, held.numpy().view(dtype))
    return held.view(torch.bfloat16) if is_bfloat16 else held, finite
