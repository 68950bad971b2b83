"""The cells and the convolution by their Metal kernels, and their gradients; float32.

The functions launch kernels: their arrays are arrays of the engine, row-major and float32, with the
stated exceptions. `MetalCells` converts from and to a framework's arrays; `ops_mlx.py` and
`ops_torch.py` make it differentiable.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from mlxhog.metal.engine import Engine
from mlxhog.metal.kernels import conv as conv_kernels
from mlxhog.metal.kernels.mlstm import LONGEST_CHUNK, backward_launches, forward_launches
from mlxhog.metal.kernels.slstm import slstm_backward, slstm_forward
from mlxhog.models.ops.arrays import Array
from mlxhog.models.ops.reference.plain import PlainForm

MLSTM_INPUTS = ("q", "k", "v", "i", "f", "C0", "n0", "m0")
"""Inputs of the mLSTM cell, in order; the last three are the state before the first position."""

MLSTM_RESULTS = ("h", "C", "n", "m", "b", "den", "M")
"""Results of `mlstm`: the output, the states around every chunk, and arrays for the gradient."""

MLSTM_SAVED = ("q", "k", "v", "i", *MLSTM_RESULTS, "dh", "dC_last", "dn_last")
"""Arguments of `mlstm_grad`: inputs, results, and the gradients of h and of the last C and n."""

MLSTM_GRADIENTS = ("dq", "dk", "dv", "di", "db", "dC", "dn", "dM")
"""Results of `mlstm_grad`; `mlstm_gradients` combines them."""

SLSTM_INPUTS = ("G", "R_T", "bias", "h0", "c0", "n0", "m0", "starts")
"""Inputs of the sLSTM cell, in order; starts is int32; layouts as in `slstm_forward`."""

SLSTM_RESULTS = ("h", "c", "n", "m", "pre")
"""Results of `slstm`: the state after every position, (B, S, NH, DH), and the gates for the
gradient."""

SLSTM_SAVED = (
    *("R", "c0", "n0", "m0", "starts", *SLSTM_RESULTS[1:]),
    *("dh", "dc_last", "dn_last", "dm_last"),
)
"""Arguments of `slstm_grad`: inputs, results, and the gradients of every h and the last c, n, m."""

SLSTM_GRADIENTS = ("dG", "dh0", "dc0", "dn0", "dm0")
"""Results of `slstm_grad`; the caller computes those of R and bias, `metal/kernels/slstm.py`."""


def conv(engine: Engine, inputs: Any, w: Any, bias: Any, back: Any, *, silu: bool) -> Any:
    """Convolve; arguments as in `conv_forward`.

    `inputs` is the state, then x; the state has no outputs. `back` limits how far back each
    position sees, so that it does not see other documents.

    Returns:
        y (B, S, CH).
    """
    return engine.run(conv_kernels.conv_forward(inputs, w, bias, back, silu=silu))["y"]


def conv_grad(
    engine: Engine, inputs: Any, w: Any, bias: Any, back: Any, dy: Any, *, silu: bool
) -> tuple[Any, Any, Any]:
    """Differentiate `conv`.

    Returns:
        The gradients of inputs (B, P + S, CH), w and bias.
    """
    S = dy.shape[1]
    if silu:
        dpre = engine.run(conv_kernels.conv_bwd_pre(inputs, w, bias, back, dy))["dpre"]
    else:
        dpre = dy
    dx = engine.run(conv_kernels.conv_bwd_input(w, back, dpre, P=inputs.shape[1] - S))["dx"]
    part = engine.run(conv_kernels.conv_bwd_partial(inputs, back, dpre, K=w.shape[-1]))["part"]
    sums = engine.run(conv_kernels.conv_bwd_final(part, S=S))
    return dx, sums["dw"], sums["dbias"]


def chunk_of(chunk_size: int, S: int) -> int:
    """Return the length of a chunk: `chunk_size`, limited by the sequence and by the kernels."""
    return min(chunk_size, S, LONGEST_CHUNK)


def mlstm(engine: Engine, inputs: Mapping[str, Any], *, chunk: int, eps: float) -> tuple[Any, ...]:
    """Run the mLSTM cell over a sequence.

    Args:
        engine: engine of all arrays.
        inputs: `MLSTM_INPUTS` by name; layouts as in `models/ops/operators.py`.
        chunk: from `chunk_of`.
        eps: added to the denominator.

    Returns:
        `MLSTM_RESULTS`, the shapes as in `metal/kernels/mlstm.py`.
    """
    x = dict(inputs)
    for launch in forward_launches(x, chunk=chunk, eps=eps):
        x |= engine.run(launch)
    return tuple(x[name] for name in MLSTM_RESULTS)


def mlstm_grad(
    engine: Engine, saved: Mapping[str, Any], *, chunk: int, eps: float
) -> tuple[Any, ...]:
    """Differentiate `mlstm` with the stabilisers held constant, and h by its stabiliser M.

    Args:
        engine: as in `mlstm`.
        saved: `MLSTM_SAVED` by name.
        chunk: as in `mlstm`.
        eps: as in `mlstm`.

    Returns:
        `MLSTM_GRADIENTS`: those of q, k, v, i; db (B, NH, S), of the sums of logsig(f) from the
        start of each chunk, as far as h depends on them; dC and dn of the states around every
        chunk; dM (B, NH, S). Through its last sum a chunk also has <C', dC'> + n'.dn' of the state
        after it.

        A state is the true one times exp(-m). So at fixed true states the last m has the gradient
        dm - <C, dC> - n.dn, which joins dM of the last position, and the first m has <C, dC> + n.dn
        on top of its gradient through M_t = max(logsig(f_t) + M_t-1, i_t).
    """
    x = dict(saved)
    for launch in backward_launches(x, chunk=chunk, eps=eps):
        x |= engine.run(launch)
    return tuple(x[name] for name in MLSTM_GRADIENTS)


def slstm(engine: Engine, inputs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Run the sLSTM cell over a sequence: `SLSTM_INPUTS` by name -> `SLSTM_RESULTS`.

    A head has a group of threads, so at most `MOST_UNITS` units.

    Raises:
        ShapeError: shapes differ, or a head is too wide.
    """
    results = engine.run(slstm_forward(inputs))
    return tuple(results[name] for name in SLSTM_RESULTS)


def slstm_grad(engine: Engine, saved: Mapping[str, Any]) -> tuple[Any, ...]:
    """Differentiate `slstm`: `SLSTM_SAVED` by name -> `SLSTM_GRADIENTS`."""
    grads = engine.run(slstm_backward(saved))
    return tuple(grads[name] for name in SLSTM_GRADIENTS)


class MetalCells(PlainForm):
    """The operators on one engine; those without a Metal kernel are the framework's plain ones.

    Args:
        engine: runs the kernels.
        plain: names of operators that are the plain ones, too.
    """

    def __init__(self, engine: Engine, plain: frozenset[str] = frozenset()) -> None:
        self.engine = engine
        for name in plain:
            setattr(self, name, getattr(super(), name))

    @abstractmethod
    def enter(self, arrays: Sequence[Array]) -> list[Any]:
        """Convert arrays of the framework to arrays of the engine."""

    @abstractmethod
    def leave(self, arrays: Sequence[Any]) -> tuple[Array, ...]:
        """Convert arrays of the engine to arrays of the framework."""

    @abstractmethod
    def conv(self, silu: bool, *inputs: Array) -> Array:
        """Return `conv_result`, differentiable."""

    @abstractmethod
    def mlstm(self, chunk: int, eps: float, *inputs: Array) -> tuple[Array, ...]:
        """Return h and the last C, n and m of `mlstm_results`, differentiable."""

    @abstractmethod
    def slstm(self, *inputs: Array) -> tuple[Array, ...]:
        """Return every h and the last c, n and m of `slstm_results`, differentiable."""

    def causal_conv(
        self, x: Array, w: Array, b: Array, *, state: Array | None, starts: Array | None, silu: bool
    ) -> tuple[Array, Array]:
        xp, (B, S, _), K = self.xp, x.shape, w.shape[-1]
        inputs = xp.float32(x)
        if state is not None:
            inputs = xp.concatenate([xp.float32(state), inputs], 1)
        if starts is None:
            back = xp.full((B, S), K - 1, "int32", like=x)
        else:
            back = self.positions_back(starts, K)
        y = self.conv(silu, inputs, xp.float32(w), xp.float32(b), back)
        padded = xp.pad(inputs, [(0, 0), (max(0, K - 1 - inputs.shape[1]), 0), (0, 0)])
        last = self.last_inputs(padded[:, padded.shape[1] - (K - 1) :], starts)
        return xp.astype(y, x), last

    def conv_result(self, silu: bool, *inputs: Array) -> Array:
        """Return the y of `conv`."""
        (y,) = self.leave([conv(self.engine, *self.enter(inputs), silu=silu)])
        return y

    def conv_gradients(self, silu: bool, inputs: Sequence[Array], dy: Array) -> tuple[Array, ...]:
        """Return those of the inputs of `conv`, w and bias."""
        return self.leave(conv_grad(self.engine, *self.enter((*inputs, dy)), silu=silu))

    def mlstm_cell(
        self, *x: Array, chunk_size: int, eps: float, state: Sequence[Array] | None
    ) -> tuple[Array, tuple[Array, Array, Array]]:
        q, _, v, *_ = x = tuple(self.xp.float32(y) for y in x)
        state = self.zero_state(q, v) if state is None else state
        chunk = chunk_of(chunk_size, q.shape[1])
        h, C, n, m = self.mlstm(chunk, eps, *x, *state)
        return h, (C, n, m)

    def mlstm_results(self, chunk: int, eps: float, inputs: Sequence[Array]) -> tuple[Array, ...]:
        """`MLSTM_INPUTS` -> `MLSTM_RESULTS`."""
        inputs_by_name = dict(zip(MLSTM_INPUTS, self.enter(inputs), strict=True))
        return self.leave(mlstm(self.engine, inputs_by_name, chunk=chunk, eps=eps))

    def mlstm_gradients(
        self,
        chunk: int,
        eps: float,
        inputs: Sequence[Array],
        results: Sequence[Array],
        d_results: Sequence[Array],
    ) -> tuple[Array, ...]:
        """Return those of `MLSTM_INPUTS`; d_results are of h and the last C, n and m."""
        xp = self.xp
        q, k, v, i, f, *_ = inputs
        _, C, n, m, _, _, M = results
        *d_saved, dm = d_results
        saved = dict(zip(MLSTM_SAVED, self.enter((q, k, v, i, *results, *d_saved)), strict=True))
        grads = mlstm_grad(self.engine, saved, chunk=chunk, eps=eps)
        dq, dk, dv, di, db, dC, dn, dM = self.leave(grads)
        states = (C * dC).sum((-2, -1)) + (n * dn).sum(-1)  # (B, NH, NC + 1)
        last = dM[..., -1] + (dm - states[..., -1])
        dM = xp.concatenate([dM[..., :-1], last[..., None]], -1)
        lf = xp.log_sigmoid(f).swapaxes(1, 2)
        di_M, dlf_M, dm = self._through_stabilisers(i.swapaxes(1, 2), lf, m[..., 0], M, dM)
        dlf = self._through_sums(db, states[..., 1:], chunk) + dlf_M
        df = xp.sigmoid(-f) * dlf.swapaxes(1, 2)
        di = di + di_M.swapaxes(1, 2)
        return dq, dk, dv, di, df, dC[:, :, 0], dn[:, :, 0], dm + states[..., 0]

    def _through_sums(self, db: Array, at_end: Array, chunk: int) -> Array:
        """Gradient of logsig(f) (B, NH, S): of all sums b from there to the end of the chunk."""
        B, NH, S = db.shape
        db = self.xp.pad(db, [(0, 0), (0, 0), (0, -S % chunk)]).reshape(B, NH, -1, chunk)
        later = self.xp.cumsum(db, -1, reverse=True) + at_end[..., None]
        return later.flatten(-2)[..., :S]

    def _through_stabilisers(
        self, i: Array, lf: Array, m0: Array, M: Array, dM: Array
    ) -> tuple[Array, Array, Array]:
        """Gradients of i, lf and m0 through M_t = max(lf_t + M_t-1, i_t).

        All are (B, NH, S), m0 (B, NH). From a position dM goes back through lf to the one where i
        was larger, or else to m0.
        """
        xp, S = self.xp, i.shape[-1]
        one_more = [(0, 0), (0, 0), (0, 1)]
        opened = i >= lf + xp.concatenate([m0[..., None], M[..., :-1]], -1)
        position = xp.where(opened, xp.arange(0, S, like=i), S)
        next_opened = xp.pad(xp.cummin(position, -1, reverse=True)[..., 1:], one_more, S)
        later = xp.pad(xp.cumsum(dM, -1, reverse=True), one_more)
        dM = later[..., :-1] - xp.take_along_axis(later, next_opened, -1)
        dlf = xp.where(opened, 0.0, dM)
        return xp.where(opened, dM, 0.0), dlf, dlf[..., 0]

    def slstm_cell(
        self, *x: Array, state: Sequence[Array] | None, starts: Array | None
    ) -> tuple[Array, tuple[Array, Array, Array, Array]]:
        xp, (*ifzo, R, b) = self.xp, x
        B, S, NH, DH = ifzo[0].shape
        G = xp.stack([xp.float32(gate) for gate in ifzo], 2)
        R, b = xp.float32(R).reshape(NH, 4, DH, DH), xp.float32(b).reshape(4, NH, DH)
        state = [xp.zeros((B, NH, DH), like=G)] * 4 if state is None else state
        documents = xp.zeros((B, S), "int32", like=G) if starts is None else xp.int32(starts)
        h, c, n, m = self.slstm(G, R, b, *state, documents)
        return h, (h[:, -1], c, n, m)

    def slstm_results(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        """`SLSTM_INPUTS`, with R in place of R_T -> `SLSTM_RESULTS`."""
        G, R, *others = inputs
        entered = self.enter((G, R.swapaxes(2, 3), *others))
        inputs_by_name = dict(zip(SLSTM_INPUTS, entered, strict=True))
        return self.leave(slstm(self.engine, inputs_by_name))

    def slstm_gradients(
        self, inputs: Sequence[Array], results: Sequence[Array], d_results: Sequence[Array]
    ) -> tuple[Array, ...]:
        """Return those of G, R, bias, h0, c0, n0 and m0.

        Args:
            inputs: R, h0, c0, n0, m0 and starts.
            results: `SLSTM_RESULTS`.
            d_results: gradients of h and of the last c, n, m.
        """
        R, h0, *others = inputs
        h, *kept = results
        entered = self.enter((R, *others, *kept, *d_results))
        dG, *d_state = self.leave(
            slstm_grad(self.engine, dict(zip(SLSTM_SAVED, entered, strict=True)))
        )
        dR, db = self._parameter_gradients(dG, h0, h, others[-1])
        return dG, dR, db, *d_state

    def _parameter_gradients(
        self, dG: Array, h0: Array, h: Array, starts: Array
    ) -> tuple[Array, Array]:
        """Gradients of R (NH, 4, DH, DH) and of the biases (4, NH, DH), over all positions."""
        xp, (B, S, _, NH, DH) = self.xp, dG.shape
        before = xp.concatenate([h0[:, None], h[:, :-1]], 1)
        before = xp.where(starts[:, :, None, None] != 0, 0.0, before)
        rows = xp.permute(dG, (3, 2, 4, 0, 1)).reshape(NH, 4 * DH, B * S)
        columns = xp.permute(before, (2, 0, 1, 3)).reshape(NH, B * S, DH)
        dR = self.sum_of_products(rows, columns)
        return dR.reshape(NH, 4, DH, DH), dG.sum((0, 1))
