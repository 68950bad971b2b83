"""The part of a backend that is written once: losses, predictions, decoding token by token.

Both frameworks use the functions of `lm`, and differentiate one loss; on a CPU a native decoder
computes single tokens without the framework.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlxhog.backends import gpu_share, self_check
from mlxhog.backends import polar as orthogonalisation
from mlxhog.backends.backend import (
    Evaluation,
    Float32,
    Grads,
    Int32,
    State,
    check_batch,
    check_tokens,
)
from mlxhog.backends.gpu_share import GPUShare
from mlxhog.data.batch import Batch
from mlxhog.models import families, lm, lm_native, ngrams
from mlxhog.models.families import ModelConfig
from mlxhog.models.lm_native import Decoder
from mlxhog.models.ngrams import Carried
from mlxhog.models.ops.kernels import choose
from mlxhog.models.ops.operators import Ops
from mlxhog.models.sampled_head import Candidates, SampledHead
from mlxhog.optim.gradients import Rows
from mlxhog.optim.rule import Coefficients


class Inputs(NamedTuple):
    """The arguments of a loss, as arrays of the framework.

    Attributes:
        leaves: arrays of the gradient: dense parameters by name; by its name the embedded tokens,
            for an embedding with a gradient by rows, and the candidates' rows of a sampled head;
            and the rows of n-grams that were read, `ngrams.ROWS`.
        fixed: the other arguments of `Inference._loss`, in their order.
        tokens: (B, S) of the positions, without a frozen context.
        index: rows of the tables of n-grams, as `NgramTables.rows_of` returns them.
        candidates: of a sampled head.
    """

    leaves: dict[str, Any]
    fixed: tuple[Any, ...]
    tokens: Int32
    index: Any
    candidates: Candidates | None


class Inference:
    """The common part of backends, for one framework on one device.

    Args:
        framework: "torch" or "mlx".
        device: "cpu", "mps" or "gpu".
        kernels: operators of the model.
        threads: threads of the native operators.
        share: this worker's share of the GPU, if the device is a GPU.
        narrow: compute the matrix products of gradients in bfloat16.
    """

    model: ModelConfig
    params: dict[str, Any]
    forward_share: float | None = None
    tables: Mapping[str, Float32]
    compiled = False  # the gradient, for every shape of its inputs

    def __init__(
        self,
        framework: str,
        device: str,
        kernels: str,
        threads: int,
        share: GPUShare,
        narrow: bool = False,
    ) -> None:
        self.name = f"{framework}:{device}"
        self.on_gpu = device != "cpu"
        self.kernels = self._kernels_option = kernels
        self._plain = frozenset[str]()  # operators whose Metal kernels failed their check
        self._framework, self._device = framework, device
        self._threads, self._share, self.narrow = threads, share, narrow
        self._one_token: OneToken | None = None

    @abstractmethod
    def _tokens(self, tokens: Int32) -> Any:
        """Return ids as an array of the framework, in its type of row indices."""

    @abstractmethod
    def _on_host(self, array: Any) -> NDArray[Any]:
        """Return an array of the framework, computed, as a C-contiguous NumPy array."""

    @abstractmethod
    def _from_host(self, array: Float32) -> Any:
        """Return a NumPy array as an array of the framework on the device."""

    @abstractmethod
    def _after_last(self, logits: Any, state: State) -> tuple[Float32, State]:
        """Compute logits (B, 1, V) and a state; return logits (B, V), a copy, and the state."""

    @abstractmethod
    def _without_gradient(self) -> AbstractContextManager[Any]:
        """Record nothing for gradients during the block."""

    @abstractmethod
    def _constant(self, state: State) -> State:
        """Compute a state, and return it as a constant for a gradient."""

    def _computed(self, state: State) -> State:
        """Compute a state that is lazy, so that another thread may use it, and return it."""
        return state

    def _ops(self) -> Ops:
        return choose(self._framework, self.kernels, self._device, plain=self._plain)

    def check_kernels(self) -> dict[str, str]:
        """Check the Metal kernels, and use only those without a fault; see `Backend`."""
        faults = self_check.faults(
            self._framework, self._device, self._ops(), threads=self._threads
        )
        self._plain = frozenset(faults)
        return faults

    def polar(
        self, xs: Sequence[Float32], scales: Sequence[float], coefficients: Coefficients
    ) -> list[Float32]:
        """Orthogonalise matrices on this device; see `Backend.polar`."""
        with self._without_gradient():
            return orthogonalisation.polar(
                xs,
                scales,
                coefficients,
                xp=self._ops().xp,
                from_host=self._from_host,
                on_host=self._on_host,
            )

    # -- tables of n-grams, which stay in NumPy ---------------------------------------------------

    def _take_tables(self, model: ModelConfig, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Read the tables of a model from these arrays from now on; nothing for another model."""
        self._grams = ngrams.of(model)
        specs = {} if self._grams is None else self._grams.specs
        self.tables = {name: tensors[name] for name in specs}

    def _parted(self, state: State | None, B: int) -> tuple[Int32 | None, State | None]:
        """The ids before, and the state of the blocks, of a state that callers keep."""
        if self._grams is None:
            return None, state
        return (self._grams.nothing_before(B), None) if state is None else state

    def _next(self, tokens: Int32, before: Int32 | None) -> Int32 | None:
        """The ids before the next tokens."""
        return None if before is None else ngrams.last_of(tokens, before)

    def _rows(self, tokens: Int32, before: Int32 | None) -> Float32 | None:
        """The rows of the n-grams that end in each of `tokens`; None without tables."""
        if self._grams is None:
            return None
        return self._grams.gather(self.tables, self._grams.rows_of(tokens, before))

    def _device_rows(self, tokens: Int32, before: Int32 | None) -> Any:
        """These rows as an array of the framework; None without tables."""
        rows = self._rows(tokens, before)
        return None if rows is None else self._from_host(rows)

    # -- the gradient -----------------------------------------------------------------------------

    def _train(
        self, model: ModelConfig, sampled: SampledHead | None, tables: Mapping[str, Float32]
    ) -> None:
        """Take over a model whose parameters are bound: which have a dense gradient, and tables."""
        spec, self.model, self._sampled = families.param_spec(model), model, sampled
        self._trained = [name for name in self.params if spec[name].kind == "dense"]
        if sampled is not None:
            self._trained.remove(families.head(model))  # its gradient is one row per candidate
        self._embedded = families.embedding(model) in self._trained  # and not one row per token
        self._take_tables(model, tables)
        self._one_token = self._native_step()

    def _inputs(self, batch: Batch) -> Inputs:
        """Draw what is random of a batch's gradient, and gather the rows that it reads."""
        batch, state = self._behind_context(batch)
        tokens, leaves = self._tokens(batch.x), {name: self.params[name] for name in self._trained}
        if not self._embedded:
            embedded = lm.embed(self.model, self.params, tokens, self._ops().xp)
            leaves[families.embedding(self.model)] = embedded
        before, state = self._parted(state, len(batch.x))
        index = candidates = ids = log_inclusion = None
        if self._grams is not None:
            index = self._grams.rows_of(batch.x, before)
            leaves[ngrams.ROWS] = self._from_host(self._grams.gather(self.tables, index))
        labels = batch.y
        if self._sampled is not None:
            candidates = self._sampled.draw(batch.y, batch.seed)
            if self.compiled:  # then their number has to depend on the shape alone
                most = min(self._sampled.negatives + batch.y.size, self.model.vocab_size)
                candidates = candidates.padded(most)
            ids, labels = self._tokens(candidates.ids), candidates.labels
            leaves[families.head(self.model)] = self.params[families.head(self.model)][ids]
            log_inclusion = self._from_host(candidates.log_inclusion)
        masks = lm.dropout_masks(self.model, batch.x.shape, batch.seed)
        masks = masks and {site: self._from_host(mask) for site, mask in masks.items()}
        fixed = (tokens, self._tokens(labels), masks, ids, log_inclusion, state)
        return Inputs(leaves, fixed, batch.x, index, candidates)

    def _loss(
        self,
        leaves: Mapping[str, Any],
        tokens: Any,
        labels: Any,
        masks: Any,
        ids: Any,
        log_inclusion: Any,
        state: Any,
    ) -> Any:
        """The mean loss of `Inputs`."""
        model, ops, params = self.model, self._ops(), dict(leaves)
        if self._embedded:
            x = lm.embed(model, params, tokens, ops.xp)
        else:
            x = params.pop(families.embedding(model))
        if self._grams is not None:
            read = params.pop(ngrams.ROWS)
            x = lm.add_ngrams(params, x, read, ops)
        if ids is not None and (bias := families.head_bias(model)) is not None:
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
            state=state,
        )

    def _by_rows(self, inputs: Inputs, grads: dict[str, Any]) -> Grads:
        """The gradients of `Inputs.leaves`, those of rows as `Rows` of their parameters."""
        head, embedding = families.head(self.model), families.embedding(self.model)
        if (candidates := inputs.candidates) is not None:
            n = candidates.count
            grads[head] = Rows(candidates.ids[:n], grads[head][:n])
        if self._grams is not None:
            read = grads.pop(ngrams.ROWS)
            parts = self._grams.parts(inputs.index, read)
            grads |= {name: Rows(index, rows).coalesced() for name, index, rows in parts}
        if not self._embedded:
            dx = grads[embedding]  # of the tokens: each row of the embedding once
            rows = Rows(inputs.tokens.reshape(-1), dx.reshape(-1, dx.shape[-1]))
            grads[embedding] = rows.coalesced()
        return grads

    # -- losses and logits ------------------------------------------------------------------------

    def evaluate(self, batch: Batch) -> Evaluation:
        """Loss of a batch at the inbox's parameters, in pieces that fit the device."""
        check_batch(batch, self.model.vocab_size)
        parts = gpu_share.rows(batch, self._share) if self.on_gpu else (batch,)
        nats = sum(self._nats(part) for part in parts)
        return Evaluation(nats=nats, targets=int((batch.y >= 0).sum()))

    def _nats(self, batch: Batch) -> float:
        """Summed loss of a batch, computed as one piece."""
        with self._without_gradient():
            nats = lm.sum_loss(
                self.model,
                self.params,
                self._tokens(batch.x),
                self._tokens(batch.y),
                ops=self._ops(),
                rows=self._device_rows(batch.x, None),
            )
            return float(self._on_host(nats).item())

    def predictions(self, tokens: Int32) -> Int32:
        """The most likely id at every position of `tokens` (B, S): (B, S)."""
        check_tokens(tokens, self.model.vocab_size)
        with self._without_gradient():
            logits, _ = self._forward(tokens, None, None)
            return self._on_host(logits.argmax(-1)).astype(np.int32)

    def _forward(
        self, tokens: Int32, before: Int32 | None, state: State | None, *, last: bool = False
    ) -> Any:
        return lm.logits(
            self.model,
            self.params,
            self._tokens(tokens),
            state,
            ops=self._ops(),
            rows=self._device_rows(tokens, before),
            last=last,
        )

    def _behind_context(self, batch: Batch) -> tuple[Batch, State | None]:
        """Return the part of a frozen batch after its contexts, and the states at their ends.

        The states are constants. They are computed row by row, since contexts differ in length.
        """
        if not batch.frozen:
            return batch, None
        rest, lengths = batch.behind_context()
        if not lengths.any():
            return rest, None
        with self._without_gradient():
            xp, states, befores = self._ops().xp, [], list[Int32]()
            for row, n in zip(batch.x, lengths.tolist(), strict=True):
                before: Int32 | None
                state: Any
                before, state = self._parted(None, 1)
                if n == 0:
                    state = lm.init_state(self.model, 1, xp)
                for span in self._spans((1, n)) if n else ():
                    part = row[None, :n][:, span]
                    _, state = self._forward(part, before, state, last=True)
                    before = self._next(part, before)
                states.append(state)
                if before is not None:
                    befores.append(before)
            stacked = lm.stack_states(states, xp)
        constant = self._constant(stacked)
        return rest, Carried(np.concatenate(befores), constant) if befores else constant

    def _spans(self, shape: tuple[int, ...]) -> Iterable[slice]:
        """Ranges of positions that are computed at a time: all of them on a CPU."""
        return gpu_share.spans(shape, self._share) if self.on_gpu else (slice(None),)

    def logits(self, tokens: Int32, state: State | None) -> tuple[Float32, State]:
        """Logits (B, V) after the last of `tokens` (B, S), and the new state."""
        check_tokens(tokens, self.model.vocab_size)
        before, state = self._parted(state, len(tokens))
        if self._one_token is not None:
            if tokens.shape[1] == 1:
                last, state = self._one_token.logits(tokens, state, self._rows(tokens, before))
                return last, self._carried(self._next(tokens, before), state)
            state = self._one_token.unpacked(state)
        for span in self._spans(tokens.shape):
            with self._without_gradient():  # one piece
                logits, state = self._forward(tokens[:, span], before, state, last=True)
                last, state = self._after_last(logits, state)
            before = self._next(tokens[:, span], before)
        return last, self._carried(before, state)

    def every_logits(self, tokens: Int32, state: State | None) -> tuple[Float32, State]:
        """Logits (B, S, V) after each of `tokens` (B, S), and the new state."""
        check_tokens(tokens, self.model.vocab_size)
        before, state = self._parted(state, len(tokens))
        if self._one_token is not None:
            state = self._one_token.unpacked(state)
        parts = []
        for span in self._spans(tokens.shape):
            with self._without_gradient():
                logits, state = self._forward(tokens[:, span], before, state)
                parts.append(self._on_host(self._ops().xp.float32(logits)))
            before = self._next(tokens[:, span], before)
        return np.concatenate(parts, axis=1), self._carried(before, self._computed(state))

    def stack_states(self, states: Sequence[State]) -> State:
        """Concatenate the rows of the states of several batches."""
        if self._grams is None:
            return self._stacked(states)
        befores, inner = zip(*states, strict=True)
        return Carried(np.concatenate(befores), self._stacked(inner))

    def _stacked(self, states: Sequence[State]) -> State:
        if self._one_token is not None:
            return self._one_token.stack_states(states)
        with self._without_gradient():
            return self._computed(lm.stack_states(states, self._ops().xp))

    def take_state(self, state: State, rows: Sequence[int]) -> State:
        """Return the state of some rows of a batch, in the order of `rows`."""
        if self._grams is None:
            return self._taken(state, rows)
        return Carried(state.before[list(rows)], self._taken(state.state, rows))

    def _taken(self, state: State, rows: Sequence[int]) -> State:
        if self._one_token is not None:
            return self._one_token.take_state(state, rows)
        with self._without_gradient():
            return self._computed(lm.take_state(state, rows, self._ops().xp))

    def _carried(self, before: Int32 | None, state: State) -> State:
        """The state that callers keep."""
        return state if before is None else Carried(before, state)

    def _native_step(self) -> OneToken | None:
        """The native decoder for single tokens; only for float32 parameters on a CPU, else None."""
        if self.on_gpu or any("float32" not in str(x.dtype) for x in self.params.values()):
            return None
        decoder = lm_native.decoder(
            self.model,
            {name: self._on_host(value) for name, value in self.params.items()},
            framework=self._framework,
            kernels=self.kernels,
            threads=self._threads,
        )
        return None if decoder is None else OneToken(decoder, self._on_host, self._from_host)


class OneToken:
    """Steps of a native decoder, which may alternate with steps of `lm`.

    A state is either that of `lm`, a tuple of arrays per block, or that of the decoder, one NumPy
    array. It is converted when the other one computes the next step.

    Args:
        decoder: the native decoder.
        to_host: converts an array of the framework to NumPy.
        to_framework: converts a NumPy array to the framework.
    """

    def __init__(
        self,
        decoder: Decoder,
        to_host: Callable[[Any], Float32],
        to_framework: Callable[[Float32], Any],
    ) -> None:
        """See the class."""
        self._decoder, self._to_host, self._to_framework = decoder, to_host, to_framework

    def logits(self, tokens: Int32, state: Any, rows: Float32 | None) -> tuple[Float32, Float32]:
        """Return the logits (B, V) after tokens (B, 1), and the state of the decoder.

        `rows` (B, 1, width) are those of the tokens' n-grams, if the model has tables.
        """
        before = self._decoder.init_state(len(tokens)) if state is None else self.packed(state)
        return self._decoder.step(tokens[:, 0], before, None if rows is None else rows[:, 0])

    def packed(self, state: Any) -> Float32:
        """Return a state of either kind as a state of the decoder."""
        if isinstance(state, np.ndarray):
            return state
        return self._decoder.pack([[self._to_host(part) for part in block] for block in state])

    def unpacked(self, state: Any) -> Any:
        """Return a state of either kind as a state of `lm`."""
        if not isinstance(state, np.ndarray):
            return state
        blocks = self._decoder.unpack(state)
        return [tuple(self._to_framework(part) for part in block) for block in blocks]

    def stack_states(self, states: Sequence[Any]) -> Float32:
        """Concatenate the rows of states of either kind, as a state of the decoder."""
        return np.concatenate([self.packed(state) for state in states])

    def take_state(self, state: Any, rows: Sequence[int]) -> Float32:
        """Return the state of some rows, as a state of the decoder."""
        return self.packed(state)[list(rows)]
