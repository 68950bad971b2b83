"""A backend: one framework on one device, inside one worker process.

It owns the model's parameters as arrays of its framework. They are slices of one flat array with
the arena's layout, the `param_buffer`. The strategy fills the parameter buffer from the arena (a
snapshot, or a predicted read), calls `refresh`, and requests a gradient. With live reads the
parameter buffer is the arena itself, so the strategy neither fills nor refreshes it. Tables are not
copied: a gradient gathers the rows of its n-grams from memory that the strategy names.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlxhog.arena import Layout, Slot
from mlxhog.backends import newton_schulz, probes
from mlxhog.backends.cell_times import measure
from mlxhog.backends.inference import InferenceModel, State
from mlxhog.base.capabilities import CellShape, CellTimes
from mlxhog.data.batch import Batch
from mlxhog.models import families, lm, ngrams
from mlxhog.models.cells import cells
from mlxhog.models.families import ModelConfig
from mlxhog.models.sampled_softmax import Candidates, SampledSoftmax
from mlxhog.optim import updates
from mlxhog.optim.gradients import Float32, Int32, Rows
from mlxhog.optim.rule import Coefficients, parameter

Grads = dict[str, "Float32 | Rows"]


class Inputs(NamedTuple):
    """The arguments of a loss, as arrays of the framework.

    The leaves of the gradient are the dense parameters by name; under their parameters' names, the
    embedded tokens (for an embedding with a gradient by rows) and the candidates' rows of the head
    (sampled softmax); and the rows of the n-gram tables that were read, `ngrams.ROWS`.
    """

    leaves: dict[str, Any]
    fixed: tuple[Any, ...]  # the other arguments of `Backend._loss`, in their order
    tokens: Int32  # (B, S) of the positions, without a frozen context
    index: Any  # rows of the n-gram tables, as `NgramTables.rows_of` returns them
    candidates: Candidates | None  # of sampled softmax


class Backend(InferenceModel):
    """One framework on one device. Not thread-safe: one worker process owns it.

    `bind` makes the parameters views of the param_buffer.
    """

    param_buffer: Float32  # the parameters before the tables, (n,) float32, as the arena has them
    forward_share: float | None = None
    """Forward share of the last step's time; None where forward and backward pass are one graph
    (on a GPU, or compiled), since measuring would force a sync."""
    recompute = False  # whether the backward pass computes each block again
    compiled = False  # whether the gradient is compiled, for every shape of its inputs
    _flat: Any = None  # the array whose slices the parameters are
    _frozen: Mapping[str, Any] = {}  # the parameters beside an adapter
    _tables: Mapping[str, Slot] = {}  # slots of the tables in the arena's layout

    # -- implemented by a framework ---------------------------------------------------------------

    @abstractmethod
    def _bind_params(
        self, slots: Mapping[str, Slot], n_floats: int, live: Float32 | None
    ) -> dict[str, Any]:
        """Make the parameter buffer and the flat array, and return its slices."""

    @abstractmethod
    def _as_constant(self, state: State) -> State:
        """Evaluate a state, and return it as a constant for a gradient."""

    # -- the model and its memory -----------------------------------------------------------------

    def load_frozen(
        self, model: ModelConfig, tensors: Mapping[str, NDArray[Any]], *, weights: str = "float32"
    ) -> list[str]:
        """Load the parameters that are not trained; arguments and result as of `load`.

        Arrays of the requested format stay where they are, also in mapped files, see `frozen.py`.
        On a CPU, and with MLX on a Mac, the processes of a machine so share them; torch:mps, and
        mlx:cpu with eager kernels elsewhere, copy them. Mapped ones are not searched for NaN.
        """
        return self._load(model, tensors, families.frozen_names(model), weights, is_base=True)

    def bind(
        self,
        model: ModelConfig,
        layout: Layout,
        live: Float32 | None = None,
        sampled: SampledSoftmax | None = None,
        *,
        recompute: bool = False,
    ) -> None:
        """Make the trained parameters slices of one flat array; `copy_in` gives them values.

        The others, those beside an adapter, must have been loaded by `load_frozen`.

        `live` parameters of the arena, (n_floats,) float32, are aliased instead of copied.
        `sampled` draws the negatives of `loss_and_grads`; None is the full softmax. With
        `recompute` it keeps the inputs of each block, and computes the rest again when needed.

        Raises:
            ConfigError: `live` is not None, and this framework cannot alias host memory here.
        """
        self.recompute = recompute
        frozen = [name for name in families.frozen_names(model) if name not in self.tables]
        self._frozen = {name: self.params[name] for name in frozen}
        own = self._bind_params(layout.dense, layout.n_dense, live)
        self.params = self._frozen | own
        spec, self.model, self._sampled = families.param_spec(model), model, sampled
        head, embedding = families.head(model), families.embedding(model)
        self._trained = [name for name in own if spec[name].kind == "dense"]
        self._by_candidates = sampled is not None and head in self._trained
        if self._by_candidates:
            self._trained.remove(head)  # its gradient is one row per candidate
        self._by_tokens = embedding in own and embedding not in self._trained
        self._grams, self._tables = ngrams.of(model), layout.tables
        if live is not None:
            self.read_tables(live)
        self._decoder = self._native_decoder()

    def copy_in(self, flat: Float32, threads: int = 1) -> None:
        """Copy parameters (n_floats,) float32, laid out as in the arena; tables are not copied."""
        updates.snapshot(self.param_buffer, flat[: self.param_buffer.size], threads=threads)
        self.read_tables(flat)
        self.refresh()

    def read_tables(self, flat: Float32) -> None:
        """Let gradients gather rows from the tables in this array from now on."""
        own = {name: parameter(flat, slot) for name, slot in self._tables.items()}
        self.tables = {**self.tables, **own}

    def refresh(self) -> None:  # noqa: B027
        """Copy the parameter buffer to the device; does nothing if they share memory."""

    def close(self) -> None:
        """Drop every reference to the parameter buffer."""
        super().close()
        self._trained, self._frozen = [], {}
        self.param_buffer, self._flat = np.empty(0, np.float32), None

    def check_kernels(
        self, beat: Callable[[], object] = lambda: None, model: ModelConfig | None = None
    ) -> dict[str, str]:
        """Return the fault of each operator whose Metal kernels have one, see `probes`.

        The eager operator replaces it from now on. Call it before `bind`. `beat` is called after
        each operator's check. The sizes are also those of a model's cells.
        """
        how: dict[str, Any] = {"cells": () if model is None else cells(model), "beat": beat}
        how["bf16"] = self.bf16_matmuls
        faults = probes.faults(
            self._framework, self._device, self._ops(), threads=self._threads, **how
        )
        self._eager = frozenset(faults)
        return faults

    def measure_cells(
        self, cells: Iterable[CellShape], beat: Callable[[], object] = lambda: None
    ) -> list[CellTimes]:
        """Return the times of cells by eager operators and by this backend's, see `cell_times`."""
        return list(measure(self.name, self._ops(), cells, threads=self._threads, beat=beat))

    def make_eager(self, operators: Iterable[str]) -> None:
        """Let eager operators replace those with Metal kernels, from now on."""
        self._eager |= frozenset(operators)

    def orthogonalize(
        self, xs: Sequence[Float32], scales: Sequence[float], coefficients: Coefficients
    ) -> list[Float32]:
        """Orthogonalize matrices on this device; see `mlxhog.backends.newton_schulz`."""
        how: dict[str, Any] = {"from_host": self._from_host, "on_host": self._on_host}
        with self._no_grad():
            return newton_schulz.orthogonalize(xs, scales, coefficients, xp=self._ops().xp, **how)

    # -- the gradient -----------------------------------------------------------------------------

    @abstractmethod
    def loss_and_grads(self, batch: Batch) -> tuple[float, Grads]:
        """Return the mean cross entropy in nats, and its gradient.

        Gradients are C-contiguous float32 arrays in the parameters' shapes. Those of the head with
        sampled softmax, of n-gram tables, and of an embedding that is not tied to the head are
        `Rows`. No later call changes them: updates may be applied meanwhile.

        Raises:
            DataError: a token or a label is outside the vocabulary.
        """

    def _inputs(self, batch: Batch) -> Inputs:
        """Draw negatives and dropout masks of a batch, and gather the rows that it reads."""
        batch, state = self._after_context(batch)
        tokens, leaves = self._tokens(batch.x), {name: self.params[name] for name in self._trained}
        if self._by_tokens:
            embedded = lm.embed(self.model, self.params, tokens, self._ops().xp)
            leaves[families.embedding(self.model)] = embedded
        index = candidates = ids = log_inclusion = None
        if self._grams is not None:
            index = self._index(batch.x, state)
            leaves[ngrams.ROWS] = self._from_host(self._grams.gather(self.tables, index))
        labels = batch.y
        if self._sampled is not None:
            candidates = self._sampled.draw(batch.y, batch.seed)
            if self.compiled:  # their number may depend on the batch's shape alone
                n_max = min(self._sampled.negatives + batch.y.size, self.model.vocab_size)
                candidates = candidates.padded(n_max)
            ids, labels = self._tokens(candidates.ids), candidates.labels
            if self._by_candidates:
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
        """Return the mean loss of `Inputs`."""
        model, ops, params = self.model, self._ops(), {**self._frozen, **leaves}
        embedding, head = families.embedding(model), families.head(model)
        x = params.pop(embedding) if self._by_tokens else lm.embed(model, params, tokens, ops.xp)
        read = params.pop(ngrams.ROWS, None)
        if ids is not None and head in self._frozen:
            params[head] = params[head][ids]
        if ids is not None and (bias := families.head_bias(model)) is not None:
            params[bias] = params[bias][ids]
        if self.bf16_matmuls:  # all else, and the gradients, are float32
            ops, params = ops.autocast(params, families.matmul_weights(model) & params.keys())
        how: dict[str, Any] = {"masks": masks, "log_inclusion": log_inclusion, "state": state}
        how |= {"x": x, "rows": read, "recompute": self.recompute}
        return lm.mean_loss(model, params, tokens, labels, ops=ops, **how)

    def _by_rows(self, inputs: Inputs, grads: dict[str, Any]) -> Grads:
        """Return the gradients of `Inputs.leaves`, sparse ones as `Rows` of their parameters."""
        head, embedding = families.head(self.model), families.embedding(self.model)
        if self._by_candidates and (candidates := inputs.candidates) is not None:
            n = candidates.count
            grads[head] = Rows(candidates.ids[:n], grads[head][:n])
        if self._grams is not None:
            read = grads.pop(ngrams.ROWS)
            parts = self._grams.parts(inputs.index, read) if self._tables else ()
            grads |= {name: Rows(index, rows).coalesced() for name, index, rows in parts}
        if self._by_tokens:
            dx = grads[embedding]  # of every token; `coalesced` sums those of one row
            rows = Rows(inputs.tokens.reshape(-1), dx.reshape(-1, dx.shape[-1]))
            grads[embedding] = rows.coalesced()
        return grads

    def _after_context(self, batch: Batch) -> tuple[Batch, State | None]:
        """Return the part of a frozen batch after its contexts, and the states before it.

        The states are constants, computed row by row, since contexts differ in length.
        """
        if not batch.frozen:
            return batch, None
        rest, lengths = batch.behind_context()
        if not lengths.any():
            return rest, None
        with self._no_grad():
            states = list[State]()
            for row, n in zip(batch.x, lengths.tolist(), strict=True):
                context: Int32 = row[None, :n]
                state: State = None
                for span in self._spans((1, n)) if n else ():
                    _, state = self._forward(context[:, span], state, last=True)
                if not n:
                    like = self._from_host(np.zeros(1, np.float32))
                    state = lm.init_state(self.model, 1, self._ops().xp, like)
                states.append(state)
            state = self.stack_states(states)
        return rest, self._as_constant(state)
