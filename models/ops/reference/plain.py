"""The plain operators over a framework's array functions; `operators.py` defines each of them.

The cells are in `mlstm.py` and `recurrences.py`; the operators that differ between frameworks in
`ops_torch.py` and `ops_mlx.py`.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence

from mlxhog.models.ops.arrays import Array
from mlxhog.models.ops.reference.mlstm import MLSTMCell
from mlxhog.models.ops.reference.recurrences import Recurrences


class PlainForm(MLSTMCell, Recurrences):
    """The operators that both frameworks compute alike.

    Attributes:
        activations: name -> function, without the second name of `silu`.
    """

    activations: Mapping[str, Callable[[Array], Array]]

    @abstractmethod
    def normalised(self, x: Array, eps: float, w: Array | None = None) -> Array:
        """Return LayerNorm(x) over the last axis in float32, times w."""

    @abstractmethod
    def product(self, x: Array, w: Array) -> Array:
        """Return x W^T, computed in the type of w and returned in that of x."""

    def sum_of_products(self, a: Array, b: Array) -> Array:
        """Return a (..., M, K) times b (..., K, N), for a K of all positions of a batch."""
        return a @ b

    @abstractmethod
    def attend(self, q: Array, k: Array, v: Array, seen: Array | None) -> Array:
        """Attend where `seen` (..., S, L); None is causal with as many keys as queries."""

    def layer_norm(self, x: Array, w: Array, eps: float) -> Array:
        return self.xp.astype(self.normalised(x, eps, self.xp.float32(w)), x)

    def head_norm(self, h: Array, w: Array, eps: float) -> Array:
        xp = self.xp
        return xp.astype(xp.float32(w) * self.normalised(h, eps).flatten(-2), h)

    def head_norm_gate(self, h: Array, o: Array, w: Array, eps: float) -> Array:
        normed = self.xp.astype(self.normalised(h, eps), o).reshape(o.shape)
        return self.xp.sigmoid(o) * (w * normed)

    def linears(self, x: Array, weights: Sequence[Array], biases: Sequence[Array]) -> list[Array]:
        return _biased([self.product(x, w) for w in weights], biases)

    def block_diagonal(
        self, x: Array, weights: Sequence[Array], biases: Sequence[Array]
    ) -> list[Array]:
        outs = []
        for w in weights:
            slices = self.xp.astype(x, w).reshape(-1, w.shape[0], w.shape[2]).swapaxes(0, 1)
            y = self.xp.linear(slices, w).swapaxes(0, 1).reshape(*x.shape[:-1], -1)
            outs.append(self.xp.astype(y, x))
        return _biased(outs, biases)

    def causal_conv(
        self, x: Array, w: Array, b: Array, *, state: Array | None, starts: Array | None, silu: bool
    ) -> tuple[Array, Array]:
        xp, (B, S, C), K = self.xp, x.shape, w.shape[-1]
        past = xp.zeros((B, K - 1, C), like=x) if state is None else xp.float32(state)
        inputs = xp.concatenate([past, xp.float32(x)], 1)  # position t is at t + K - 1
        taps = [inputs[:, j : j + S] for j in range(K)]
        if starts is not None:
            back = self.positions_back(starts, K)[..., None]
            taps = [xp.where(back >= K - 1 - j, tap, 0.0) for j, tap in enumerate(taps)]
        y = xp.float32(b)
        for j, tap in enumerate(taps):
            y = y + xp.float32(w[:, 0, j]) * tap
        y = self.activations["silu"](y) if silu else y
        return xp.astype(y, x), self.last_inputs(inputs[:, S:], starts)

    def positions_back(self, starts: Array, K: int) -> Array:
        """Return the number of earlier positions that each sees, at most K - 1; (B, S) int32."""
        xp, S = self.xp, starts.shape[1]
        document = xp.pad(xp.cumsum(xp.int32(starts), 1), [(0, 0), (K - 1, 0)])
        of_output = document[:, K - 1 :]
        back = xp.zeros_like(of_output)
        for j in range(K - 1):
            back = back + (document[:, j : j + S] == of_output)
        return xp.int32(back)

    def last_inputs(self, inputs: Array, starts: Array | None) -> Array:
        """Return the last K - 1 inputs (B, K - 1, C), those of earlier documents as zeros."""
        if starts is None:
            return inputs
        xp, entries = self.xp, inputs.shape[1]
        document = xp.pad(xp.cumsum(xp.int32(starts), 1), [(0, 0), (entries, 0)])
        of_entry = document[:, document.shape[1] - entries :]
        return xp.where((of_entry == document[:, -1:])[..., None], inputs, 0.0)

    def attention(
        self, q: Array, k: Array, v: Array, *, window: int | None, lengths: Array | None
    ) -> Array:
        if window is not None and window >= k.shape[1] - 1:
            window = None
        S, L = q.shape[1], k.shape[1]
        if S == L and lengths is None:
            if window is None:
                return self.attend(q, k, v, None)
            if S > 2 * window:
                return self._attend_in_blocks(q, k, v, window)
        key = self.xp.arange(0, L, like=q)
        query = key[L - S :, None]
        seen = key <= query
        if window is not None:
            seen = seen & (key >= query - window)
        if lengths is not None:
            seen = seen & (key >= L - lengths[:, None])[:, None, None]
        return self.attend(q, k, v, seen)

    def _attend_in_blocks(self, q: Array, k: Array, v: Array, window: int) -> Array:
        """Attend block by block to the same block and the one before, in time that grows as S."""
        xp, W = self.xp, max(window, 1)
        B, S, NH, DH = q.shape
        NC = -(-S // W)
        rest = [(0, 0), (0, NC * W - S), (0, 0), (0, 0)]
        q, k, v = (xp.pad(x, rest).reshape(B, NC, W, NH, DH) for x in (q, k, v))
        before = [(0, 0), (1, 0), (0, 0), (0, 0), (0, 0)]
        k, v = (xp.concatenate([xp.pad(x, before)[:, :-1], x], 2) for x in (k, v))
        key = xp.arange(-W, W, like=q)
        query = xp.arange(0, W, like=q)[:, None]
        seen = (key <= query) & (key >= query - window)
        in_sequence = (xp.arange(0, NC, like=q) > 0)[:, None, None] | (key >= 0)
        seen = xp.tile(seen & in_sequence, (B, 1, 1))[:, None]
        h = self.attend(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), seen)
        return h.reshape(B, NC * W, NH, DH)[:, :S]

    def long_conv(self, x: Array, f: Array) -> Array:
        xp, S = self.xp, x.shape[1]
        n = 1 << (2 * S - 1).bit_length()
        spectrum = xp.rfft(xp.float32(f[:, :S]).T, n, 0)
        y = xp.irfft(xp.rfft(xp.float32(x), n, 1) * spectrum, n, 1)
        return xp.astype(y[:, :S], x)

    def activate(self, x: Array, activation: str) -> Array:
        return self.activations[activation](x)

    def glu(self, gate: Array, up: Array, activation: str) -> Array:
        return self.activations[activation](gate) * up

    def swiglu(self, gate: Array, up: Array) -> Array:
        return self.activations["silu"](gate) * up

    def soft_cap(self, x: Array, c: float) -> Array:
        return c * self.xp.tanh(x / c)

    def log_total(self, logits: Array, cap: float | None) -> Array:
        """Return log(sum(e^logits)) over the last axis; no logit is beyond the cap."""
        return self.xp.logsumexp(logits, -1)

    def capped_cross_entropy(
        self, raw_logits: Array, labels: Array, cap: float | None
    ) -> tuple[Array, Array]:
        xp, logits = self.xp, self.xp.float32(raw_logits)
        if cap is not None:
            logits = self.soft_cap(logits, c=cap)
        scored = labels != -100
        target = xp.where(scored, labels, 0)[:, None]
        total = self.log_total(logits, cap)
        nats = total - xp.take_along_axis(logits, target, -1)[:, 0]
        return (nats * scored).sum(), scored.sum()

    def linear_cross_entropy(
        self, x: Array, w: Array, labels: Array, cap: float | None
    ) -> tuple[Array, Array]:
        (raw_logits,) = self.linears(x, [w], [None])
        return self.capped_cross_entropy(raw_logits, labels, cap=cap)


def _biased(ys: Sequence[Array], biases: Sequence[Array]) -> list[Array]:
    return [y if b is None else y + b for y, b in zip(ys, biases, strict=True)]
