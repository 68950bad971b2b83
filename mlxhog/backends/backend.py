"""A backend: one framework on one device, inside one worker process.

It owns the model's parameters as arrays of its framework. They are slices of one flat array with
the arena's layout, the `param_buffer`. The strategy fills the parameter buffer from the arena (a
snapshot, or a predicted read), calls `refresh`, and requests a gradient. With live reads the
parameter buffer is the arena itself, so the strategy neither fills nor refreshes it. Tables are not
copied: a gradient gathers the rows of its n-grams from memory that the strategy names.

`Backend` is what both frameworks have in common.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mlxhog.arena import Layout, Slot
from mlxhog.backends import polar as orthogonalisation
from mlxhog.backends import probes
from mlxhog.backends.reader import InferenceModel, State
from mlxhog.base.mapped import BFLOAT16
from mlxhog.data.batch import Batch
from mlxhog.models import families, lm, ngrams
from mlxhog.models.families import ModelConfig
from mlxhog.models.sampled_softmax import Candidates, SampledSoftmax
from mlxhog.optim import updates
from mlxhog.optim.gradients import Float32, Int32, Rows
from mlxhog.optim.rule import Coefficients, parameter

Grads = dict[str, "Float32 | Rows"]

WEIGHTS = {"float32": np.dtype(np.float32), "bfloat16": BFLOAT16}
"""Types of read-only parameters in a backend, and of matrix products."""

QUANTIZED_BITS = {"8bit": 8, "4bit": 4}
"""Bits of the elements of large matrices in MLX; all other parameters stay float32."""


class Inputs(NamedTuple):
    """The arguments of a loss, as arrays of the framework.

    The leaves of the gradient are dense parameters by name; by its name the embedded tokens, for an
    embedding with a gradient by rows, and the candidates' rows of a sampled head; and the rows of
    n-grams that were read, `ngrams.ROWS`.
    """

    leaves: dict[str, Any]
    fixed: tuple[Any, ...]  # the other arguments of `Backend._loss`, in their order
    tokens: Int32  # (B, S) of the positions, without a frozen context
    index: Any  # rows of the tables of n-grams, as `NgramTables.rows_of` returns them
    candidates: Candidates | None  # of a sampled head


class Backend(InferenceModel):
    """One framework on one device. Not thread-safe: one worker process owns it.

    `bind` lays the parameters over the param_buffer.
    """

    param_buffer: Float32  # the parameters before the tables, (n,) float32, as the arena has them
    forward_share: float | None = None
    """Of the newest gradient's time; None where both passes are one graph, which a wait would slow:
    on a GPU, and compiled."""
    compiled = False  # the gradient, for every shape of its inputs
    _flat: Any = None  # the array whose slices the parameters are
    _tables: Mapping[str, Slot] = {}  # places of the tables in the arena's layout

    # -- what a framework says --------------------------------------------------------------------

    @abstractmethod
    def _bound(
        self, slots: Mapping[str, Slot], n_floats: int, live: Float32 | None
    ) -> dict[str, Any]:
        """Make the parameter buffer and the flat array, and return its slices."""

    @abstractmethod
    def _constant(self, state: State) -> State:
        """Compute a state, and return it as a constant for a gradient."""

    # -- the model and its memory -----------------------------------------------------------------

    def bind(
        self,
        model: ModelConfig,
        layout: Layout,
        live: Float32 | None = None,
        sampled: SampledSoftmax | None = None,
    ) -> None:
        """Lay the model's parameters over one flat array; `take` gives them values.

        Parameters of the arena, (n_floats,) float32, that are `live` are aliased instead of copied.
        `sampled` draws the words of the loss of `loss_and_grads`; None is all words.

        Raises:
            ConfigError: `live` is not None, and this framework cannot alias host memory here.
        """
        self.params = self._bound(layout.dense, layout.n_dense, live)
        spec, self.model, self._sampled = families.param_spec(model), model, sampled
        self._trained = [name for name in self.params if spec[name].kind == "dense"]
        if sampled is not None:
            self._trained.remove(families.head(model))  # its gradient is one row per candidate
        self._embedded = families.embedding(model) in self._trained  # and not one row per token
        self._grams, self._tables = ngrams.of(model), layout.tables
        if live is not None:
            self.read_tables(live)
        self._decoder = self._native_decoder()

    def take(self, flat: Float32, threads: int = 1) -> None:
        """Copy parameters (n_floats,) float32, laid out as in the arena; tables are not copied."""
        updates.snapshot(self.param_buffer, flat[: self.param_buffer.size], threads=threads)
        self.read_tables(flat)
        self.refresh()

    def read_tables(self, flat: Float32) -> None:
        """Gather rows from the tables in this array from now on, at every gradient."""
        self.tables = {name: parameter(flat, slot) for name, slot in self._tables.items()}

    def refresh(self) -> None:  # noqa: B027
        """Copy the parameter buffer to the device; does nothing if they share memory."""

    def close(self) -> None:
        """Drop every reference to the parameter buffer."""
        super().close()
        self._trained = []
        self.param_buffer, self._flat = np.empty(0, np.float32), None

    def check_kernels(self, beat: Callable[[], object] = lambda: None) -> dict[str, str]:
        """Return the fault of each operator with Metal kernels that has one, see `probes`.

        The plain operator is used there from now on. Call it before `bind`. `beat` is called
        after each operator's check.
        """
        faults = probes.faults(
            self._framework, self._device, self._ops(), threads=self._threads, beat=beat
        )
        self._plain = frozenset(faults)
        return faults

    def polar(
        self, xs: Sequence[Float32], scales: Sequence[float], coefficients: Coefficients
    ) -> list[Float32]:
        """Orthogonalise matrices on this device; see `mlxhog.backends.polar`."""
        how: dict[str, Any] = {"from_host": self._from_host, "on_host": self._on_host}
        with self._without_gradient():
            return orthogonalisation.polar(xs, scales, coefficients, xp=self._ops().xp, **how)

    # -- the gradient -----------------------------------------------------------------------------

    @abstractmethod
    def loss_and_grads(self, batch: Batch) -> tuple[float, Grads]:
        """Mean cross entropy in nats, and its gradient.

        Gradients are C-contiguous float32 arrays in the parameters' shapes. The gradient of a
        sampled head is `Rows`, and so are those of tables of n-grams, and that of an embedding,
        unless it is tied to the head.
        No later call changes them: their steps may be added meanwhile.

        Raises:
            DataError: a token or a label is outside the vocabulary.
        """

    def _inputs(self, batch: Batch) -> Inputs:
        """Draw what is random of a batch's gradient, and gather the rows that it reads."""
        batch, state = self._behind_context(batch)
        tokens, leaves = self._tokens(batch.x), {name: self.params[name] for name in self._trained}
        if not self._embedded:
            embedded = lm.embed(self.model, self.params, tokens, self._ops().xp)
            leaves[families.embedding(self.model)] = embedded
        index = candidates = ids = log_inclusion = None
        if self._grams is not None:
            index = self._index(batch.x, state)
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
        self, leaves: Mapping[str, Any], tokens: Any, labels: Any, masks: Any, ids: Any,
        log_inclusion: Any, state: Any,
    ) -> Any:  # fmt: skip
        """The mean loss of `Inputs`."""
        model, ops, params = self.model, self._ops(), dict(leaves)
        if self._embedded:
            x = lm.embed(model, params, tokens, ops.xp)
        else:
            x = params.pop(families.embedding(model))
        read = params.pop(ngrams.ROWS, None)
        if ids is not None and (bias := families.head_bias(model)) is not None:
            params[bias] = params[bias][ids]
        if self.narrow:  # the products; what is between them, and the gradients, are in float32
            ops, params = ops.in_bfloat16(params, families.products(model) & params.keys())
        how: dict[str, Any] = {"masks": masks, "log_inclusion": log_inclusion, "state": state}
        return lm.mean_loss(model, params, tokens, labels, ops=ops, x=x, rows=read, **how)

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

    def _behind_context(self, batch: Batch) -> tuple[Batch, State | None]:
        """Return the part of a frozen batch after its contexts, and the states before it.

        The states are constants. They are computed row by row, since contexts differ in length.
        """
        if not batch.frozen:
            return batch, None
        rest, lengths = batch.behind_context()
        if not lengths.any():
            return rest, None
        with self._without_gradient():
            states = list[State]()
            for row, n in zip(batch.x, lengths.tolist(), strict=True):
                context: Int32 = row[None, :n]
                state: State = None
                for span in self._spans((1, n)) if n else ():
                    _, state = self._forward(context[:, span], state, last=True)
                if not n:
                    like = self.params[families.embedding(self.model)]
                    state = lm.init_state(self.model, 1, self._ops().xp, like)
                states.append(state)
            state = self.stack_states(states)
        return rest, self._constant(state)
