"""The cells and the convolution as Metal kernels, with their backward passes.

Arrays of the engine are row-major and float32 with the stated exceptions; of operators in
`TAKES_BF16` x, or q, k and v, the result and their gradients may be bfloat16. Each operator is a
custom op: forward(*inputs, saves=) returns the results and what is saved for backward, nothing
where no gradient may follow; backward(saved, d_results) returns the gradients of the leading
inputs. On the engine `mlx` an operator is as lazy as any; an emulated engine evaluates its inputs
when it is called, so keep that out of `mx.compile`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from mlxhog.metal.engine import MetalEngine
from mlxhog.metal.kernel import MetalKernel
from mlxhog.metal.kernels import conv, mlstm, slstm
from mlxhog.models.ops.arrays import Array
from mlxhog.models.ops.mlstm import Documents, initial_state, to_chunks
from mlxhog.models.ops.operators import Ops

Arrays = Sequence[Array]
_MLSTM_INPUTS = "q k v i f C0 n0 m0 starts".split()
_SAVED = [*_MLSTM_INPUTS, *"b since y decay m h den M".split()]

TAKES_BF16 = frozenset({"causal_conv", "mlstm_cell"})
"""Operators whose kernels take bfloat16; `MixedOps` casts the inputs of the others to float32."""


class MetalCells(Ops):
    """The operators on one engine; without a Metal kernel, or named in `eager`, they are eager."""

    def __init__(self, engine: MetalEngine, eager: frozenset[str] = frozenset()) -> None:
        self.engine, self.evaluates = engine, engine.emulated
        self.takes_bf16 = TAKES_BF16 - eager
        for name in eager:
            setattr(self, name, getattr(super(), name))

    def _custom_op(
        self, forward: Callable[..., Any], backward: Callable[..., Arrays], *inputs: Array,
        **how: Any,
    ) -> Arrays:  # fmt: skip
        """Return the results of a custom op; see the module."""
        xp, shapes = self.xp, list[tuple[int, ...]]()
        saves = xp.needs_gradient(inputs)

        def run(*inputs: Array) -> tuple[Arrays, Arrays]:
            results, saved = forward(*inputs, saves=saves, **how)
            shapes[:] = (x.shape for x in results)
            return results, saved

        def gradients(saved: Arrays, d_results: Sequence[Array | None], _: object) -> Arrays:
            pairs = zip(d_results, shapes, strict=True)
            d_results = [xp.zeros(s, like=saved[0]) if d is None else d for d, s in pairs]
            return backward(saved, d_results, **how)

        results: Arrays = xp.custom_op(run, gradients, *inputs)
        return results

    def _run(
        self, kernels: Iterable[MetalKernel], inputs: Mapping[str, Array], names: str, **how: Any
    ) -> tuple[Array, ...]:
        """Launch kernels on inputs by name, each with the outputs of those before it.

        An emulated engine takes and returns arrays of NumPy.
        """
        engine, xp = self.engine, self.xp
        is_host = engine.emulated
        x = {
            name: engine.array(xp.numpy(y)) if is_host else xp.row_major(y)
            for name, y in inputs.items()
        }
        for kernel in kernels:
            x |= engine.run(kernel.launch(x, **how))
        results = tuple(x[name] for name in names.split())
        return tuple(xp.from_numpy(engine.host(y)) for y in results) if is_host else results

    # -- the convolution --------------------------------------------------------------------------

    def causal_conv(
        self, x: Array, w: Array, b: Array | None, *, state: Array | None = None,
        reset_mask: Array | None = None, silu: bool,
    ) -> tuple[Array, Array]:  # fmt: skip
        b = self.zeros_if_none(b, w[:, 0, 0])
        xp, (B, S, _), K = self.xp, x.shape, w.shape[-1]
        inputs = x if state is None else xp.concatenate([state, x], 1)
        if reset_mask is None:
            back = xp.full((B, S), K - 1, "int32", like=x)
        else:
            back = self.positions_back(reset_mask, K)
        (y,) = self._custom_op(self._conv, self._conv_grad, inputs, w, b, back, silu=silu)
        padded = xp.pad(inputs, [(0, 0), (max(0, K - 1 - inputs.shape[1]), 0), (0, 0)])
        last = self.last_inputs(padded[:, padded.shape[1] - (K - 1) :], reset_mask)
        return y, xp.float32(last)

    def _conv(self, *arrays: Array, silu: bool, **_: bool) -> tuple[Arrays, Arrays]:
        """Convolve (inputs, w, b, back); `back` is the number of inputs before each position.

        The inputs are the state, left context without outputs, and then x.
        """
        x = dict(zip(("x", "w", "bias", "back"), arrays, strict=True))
        return self._run([conv.FORWARD], x, "y", silu=int(silu)), arrays

    def _conv_grad(self, saved: Arrays, d_results: Arrays, *, silu: bool) -> Arrays:
        names = ("x", "w", "bias", "back", "dy" if silu else "dpre")
        d_results = d_results if silu else [self.xp.float32(dy) for dy in d_results]
        x = dict(zip(names, (*saved, *d_results), strict=True))
        S, K = d_results[0].shape[1], saved[1].shape[-1]
        how = {"S": S, "K": K, "P": saved[0].shape[1] - S}
        steps = [conv.PRE] * silu + [conv.INPUT, conv.PARTIAL, conv.FINAL]
        return self._run(steps, x, "dx dw dbias", **how)

    # -- the mLSTM cell ---------------------------------------------------------------------------

    def mlstm_cell(
        self, *x: Array, chunk_size: int, eps: float, state: Arrays | None = None,
        reset_mask: Array | None = None,
    ) -> tuple[Array, tuple[Array, Array, Array]]:  # fmt: skip
        xp, is_packed = self.xp, reset_mask is not None
        if len({y.dtype for y in x[:3]}) > 1:
            x = tuple(map(xp.float32, x))
        (q, k, v), (i, f) = x[:3], map(xp.float32, x[3:])
        state = initial_state(state) or self.zero_state(q, v)
        chunk = min(chunk_size, q.shape[1], mlstm.MAX_CHUNK)
        how = {"chunk": chunk, "eps": eps, "is_packed": is_packed}
        reset_mask = xp.int32(reset_mask) if is_packed else xp.zeros(q.shape[:2], "int32", like=q)
        inputs = (q, k, v, i, f, *state, reset_mask)
        h, C, n, m = self._custom_op(self._mlstm, self._mlstm_grad, *inputs, **how)
        return h, (C, n, m)

    def _mlstm(
        self, *inputs: Array, chunk: int, eps: float, saves: bool, **_: bool
    ) -> tuple[Arrays, Arrays]:
        """q, k, v, i, f, the first C, n, m, and reset_mask int32 -> h and the last C, n, m.

        Saves the states after every segment, and the arrays by position that `_SAVED` names.
        """
        xp, x = self.xp, dict(zip(_MLSTM_INPUTS, inputs, strict=True))
        names = "b since y decay m"
        gates = self._run([mlstm.GATES, mlstm.WEIGHTS], x, names, L=chunk)
        x |= zip(names.split(), gates, strict=True)
        m, parts, ends = x["m"], list[Arrays](), list[Array]()
        for segment in mlstm.segments(x["q"].shape[1], chunk):
            names = "h_part den_part M_part C_end n_end"
            kernels, how = (mlstm.STATES, mlstm.OUT), {"L": chunk, "eps": eps, **segment}
            *part, x["C0"], x["n0"] = self._run(kernels, x, names, **how)
            x["decay"] = xp.depends(x["decay"], part[:1])  # one segment's states at a time
            parts.append(part)
            ends += [x["C0"], x["n0"]] if saves else []
        h, den, M = map(self._join, zip(*parts, strict=True), (1, 2, 2))
        results = (h, x["C0"], x["n0"], xp.clone(m[:, :, -1]))
        return results, (*inputs, *gates, h, den, M, *ends) if saves else ()

    def _join(self, parts: Arrays, axis: int) -> Array:
        """Return the parts of a sequence as one array."""
        return parts[0] if len(parts) == 1 else self.xp.concatenate(parts, axis)

    def _mlstm_grad(
        self, saved: Arrays, d_results: Arrays, *, chunk: int, eps: float, is_packed: bool
    ) -> Arrays:
        """Return the gradients of all inputs.

        The kernels treat the stabilizers as constants, and differentiate h by its stabilizer M.
        They return db, for the sums of logsig(f) from the start of each chunk, as far as h depends
        on them; dC and dn of the first state; <C, dC> + n.dn of every state; and dM. Through its
        last sum a chunk also has <C', dC'> + n'.dn' of the state after it. A state is the true one
        times exp(-m). So at fixed true states the last m has the gradient dm - <C, dC> - n.dn,
        which is added to dM of the last position, and the first m has <C, dC> + n.dn on top of its
        gradient through M_t = max(logsig(f_t) + M_t-1, i_t). No gradient crosses the start of a
        document.
        """
        xp, x = self.xp, dict(zip(_SAVED, saved, strict=False))
        ends = [(x["C0"], x["n0"]), *zip(*[iter(saved[len(_SAVED) :])] * 2, strict=True)]
        dh, x["dC_end"], x["dn_end"], dm = d_results
        x["dh"] = xp.astype(dh, x["q"])  # zeros of float32 where nothing uses h
        C, n = ends[-1]
        at_end = (C * x["dC_end"]).sum((-2, -1)) + (n * x["dn_end"]).sum(-1)
        states = [at_end[..., None]]  # <C, dC> + n.dn at every border, from the last
        names = "rN dM wN we X A zq zk"
        whole = self._run([mlstm.BWD_PRE, mlstm.BWD_SCORES], x, names, L=chunk, eps=eps)
        x |= zip(names.split(), whole, strict=True)
        parts, kernels = list[Arrays](), (mlstm.STATES, mlstm.BWD_STATES, mlstm.BWD_OUT)
        for segment in reversed(mlstm.segments(x["q"].shape[1], chunk)):
            x["C0"], x["n0"] = ends[len(ends) - 2 - len(parts)]
            names = "dq_part dk_part dv_part di_part db_part dots dC0 dn0"
            *part, dots, x["dC_end"], x["dn_end"] = self._run(kernels, x, names, L=chunk, **segment)
            x["decay"] = xp.depends(x["decay"], part[:1])
            parts.insert(0, part)
            states.insert(0, dots.sum(-1))
        dq, dk, dv, di, db = map(self._join, zip(*parts, strict=True), (1, 1, 1, 1, 2))
        at_borders = xp.concatenate(states, -1)  # (B, NH, NC + 1)
        M, dM = x["M"], x["dM"]
        last = dM[..., -1] + (dm - at_borders[..., -1])
        dM = xp.concatenate([dM[..., :-1], last[..., None]], -1)
        documents = Documents(x["starts"], chunk, xp) if is_packed else None
        gates = x["i"].swapaxes(1, 2), xp.log_sigmoid(x["f"]).swapaxes(1, 2)
        di_M, dlf_M, dm = self._through_stabilizers(*gates, x["m0"], M, dM, chunk, documents)
        dlf = self._through_sums(db, at_borders[..., 1:], chunk, documents) + dlf_M
        df = xp.sigmoid(-x["f"]) * dlf.swapaxes(1, 2)
        di = di + di_M.swapaxes(1, 2)
        return dq, dk, dv, di, df, x["dC_end"], x["dn_end"], dm + at_borders[..., 0]

    def _through_sums(
        self, db: Array, at_end: Array, chunk: int, documents: Documents | None
    ) -> Array:
        """Return the gradient of logsig(f) (B, NH, S) through the sums b of its chunk."""
        xp, S = self.xp, db.shape[-1]
        db, at_end = to_chunks(db, chunk, xp), at_end[..., None]
        if documents is None:
            suffix_sum = xp.cumsum(db, -1, reverse=True)
        else:
            suffix_sum = documents.sums_in_chunk(db, reverse=True)
            at_end = xp.where(documents.reaches_end, at_end, 0.0)
        return (suffix_sum + at_end).flatten(-2)[..., :S]

    def _through_stabilizers(
        self, i: Array, lf: Array, m0: Array, M: Array, dM: Array, chunk: int,
        documents: Documents | None,
    ) -> tuple[Array, Array, Array]:  # fmt: skip
        """Return the gradients of i, lf and m0 through M_t = max(lf_t + M_t-1, i_t).

        All are (B, NH, S), m0 (B, NH). From a position dM goes back through lf to the one where i
        was larger, or else to the start of the document or to m0.
        """
        xp, S = self.xp, i.shape[-1]
        right_pad = [(0, 0), (0, 0), (0, 1)]
        before = xp.concatenate([m0[..., None], M[..., :-1]], -1)
        if documents is None:
            ends = is_origin = i >= lf + before
            suffix_sum = next_sum = xp.pad(xp.cumsum(dM, -1, reverse=True), right_pad)
        else:
            resets = documents.resets.flatten(2)[..., :S]
            is_origin = i >= lf + xp.where(resets, 0.0, before)
            ends = is_origin | resets
            suffix_sum = documents.sums(to_chunks(dM, chunk, xp), reverse=True).flatten(2)[..., :S]
            next_sum = xp.pad(xp.where(resets, 0.0, suffix_sum), right_pad)
            suffix_sum = xp.pad(suffix_sum, right_pad)
        position = xp.where(ends, xp.arange(0, S, like=i), S)
        next_end = xp.pad(xp.cummin(position, -1, reverse=True)[..., 1:], right_pad, S)
        dM = suffix_sum[..., :-1] - xp.take_along_axis(next_sum, next_end, -1)
        dlf = xp.where(is_origin, 0.0, dM)
        dm0 = dlf[..., 0] if documents is None else xp.where(resets[..., 0], 0.0, dlf[..., 0])
        return xp.where(is_origin, dM, 0.0), dlf, dm0

    # -- the sLSTM cell ---------------------------------------------------------------------------

    def slstm_cell(
        self, *x: Array, state: Arrays | None = None, reset_mask: Array | None = None
    ) -> tuple[Array, tuple[Array, Array, Array, Array]]:
        xp, (*ifzo, R, b) = self.xp, x
        B, S, NH, DH = ifzo[0].shape
        G, R, b = xp.stack(ifzo, 2), R.reshape(NH, 4, DH, DH), b.reshape(4, NH, DH)
        state = initial_state(state) or [xp.zeros((B, NH, DH), like=G)] * 4
        documents = (
            xp.zeros((B, S), "int32", like=G) if reset_mask is None else xp.int32(reset_mask)
        )
        inputs = (G, R, b, *state, documents)
        h, c, n, m = self._custom_op(self._slstm, self._slstm_grad, *inputs)
        return h, (h[:, -1], c, n, m)

    def _slstm(self, *inputs: Array, **_: bool) -> tuple[Arrays, Arrays]:
        """G, R, bias, the first h, c, n, m, and reset_mask int32 -> every h and the last c, n, m.

        A head has a threadgroup, so at most 1024 units. The gates' `pre` is saved in place of G and
        bias.
        """
        G, R, *others = inputs
        names = "G R_T bias h0 c0 n0 m0 starts".split()
        x = dict(zip(names, (G, R.swapaxes(2, 3), *others), strict=True))
        h, *saved = self._run([slstm.FORWARD], x, "h c n m pre")
        last = (self.xp.clone(y[:, -1]) for y in saved[:3])
        return (h, *last), (R, *others[1:], h, *saved)

    def _slstm_grad(self, saved: Arrays, d_results: Arrays) -> Arrays:
        R, h0, c0, n0, m0, reset_mask, h, *states = saved
        names = "R c0 n0 m0 starts c n m pre dh dc_last dn_last dm_last".split()
        x = dict(zip(names, (R, c0, n0, m0, reset_mask, *states, *d_results), strict=True))
        dG, *d_state = self._run([slstm.BACKWARD], x, "dG dh0 dc0 dn0 dm0")
        dR, db = self._parameter_gradients(dG, h0, h, reset_mask)
        return dG, dR, db, *d_state

    def _parameter_gradients(
        self, dG: Array, h0: Array, h: Array, reset_mask: Array
    ) -> tuple[Array, Array]:
        """Return the gradients of R (NH, 4, DH, DH) and of the biases (4, NH, DH)."""
        xp, (B, S, _, NH, DH) = self.xp, dG.shape
        before = xp.concatenate([h0[:, None], h[:, :-1]], 1)
        before = xp.where(reset_mask[:, :, None, None] != 0, 0.0, before)
        rows = xp.permute(dG, (3, 2, 4, 0, 1)).reshape(NH, 4 * DH, B * S)
        columns = xp.permute(before, (2, 0, 1, 3)).reshape(NH, B * S, DH)
        dR = self.matmul(rows, columns)
        return dR.reshape(NH, 4, DH, DH), dG.sum((0, 1))
