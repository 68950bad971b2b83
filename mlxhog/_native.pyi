"""Types of the extension module; what each function does is in its docstring and in metal/."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_Float32 = NDArray[np.float32]
_Int32 = NDArray[np.int32]

# -- bind_updates.cpp ----------------------------------------------------------------------------

STRIPE: int

class Locks:
    def __init__(
        self, words: NDArray[np.uint32], workers: NDArray[np.uint8], slot: int, generation: int
    ) -> None: ...
    @property
    def takeovers(self) -> int: ...
    @property
    def word(self) -> int: ...
    def __len__(self) -> int: ...
    def acquire(self, i: int) -> None: ...
    def release(self, i: int) -> None: ...

def sweep_locks(words: NDArray[np.uint32], slot: int, generation: int | None = None) -> int: ...
def process_start_time(pid: int) -> int: ...
def widest_cas() -> int: ...
def add_dense(
    locks: Locks | None, mode: int, flat: _Float32, offset: int, delta: _Float32, seed: int = 0
) -> None: ...
def add_rows(
    locks: Locks | None,
    mode: int,
    flat: _Float32,
    offset: int,
    width: int,
    word0: int | None,
    index: _Int32 | None,
    values: _Float32,
    seed: int = 0,
) -> None: ...
def add_cas(flat: _Float32, offset: int, delta: _Float32, width: int) -> None: ...
def add_packed16(
    words: NDArray[np.uint32], offset: int, delta: NDArray[np.uint32], bfloat: bool
) -> int: ...
def snapshot(dst: _Float32, src: _Float32) -> None: ...
def snapshot_predict(dst: _Float32, src: _Float32, prev: _Float32, coef: float) -> None: ...
def sumsq(g: _Float32) -> float: ...
def sum_rows(target: _Int32, values: _Float32, out: _Float32, width: int) -> None: ...

# -- bind_sparse.cpp -----------------------------------------------------------------------------

def take_largest(
    pending: _Float32,
    offset: int,
    width: int,
    rows: int,
    index: _Int32 | None,
    k: int,
    keep: bool,
) -> tuple[_Int32, _Float32]: ...
def take_reaching(
    pending: _Float32,
    offset: int,
    width: int,
    rows: int,
    index: _Int32 | None,
    least: float,
    keep: bool,
) -> tuple[_Int32, _Float32]: ...
def add_at(
    locks: Locks | None,
    mode: int,
    flat: _Float32,
    offset: int,
    size: int,
    width: int,
    word0: int | None,
    index: _Int32,
    values: _Float32,
    seed: int = 0,
) -> None: ...

# -- bind_steps.cpp: (locks, mode, flat, offset, g, *state, **rates), and the same on rows -------
# -- with `pending` the step is added there and not to the parameter -----------------------------

def sgd_step(*args: Any, pending: _Float32 | None = None, **rates: float) -> None: ...
def sgd_rows(*args: Any, pending: _Float32 | None = None, **rates: float) -> None: ...
def momentum_step(*args: Any, pending: _Float32 | None = None, **rates: float) -> None: ...
def momentum_rows(*args: Any, pending: _Float32 | None = None, **rates: float) -> None: ...
def adamw_step(*args: Any, pending: _Float32 | None = None, **rates: float) -> None: ...
def adamw_rows(*args: Any, pending: _Float32 | None = None, **rates: float) -> None: ...

# -- bind_arena.cpp ------------------------------------------------------------------------------

def load_u32(buf: NDArray[np.uint8], off: int) -> int: ...
def store_u32(buf: NDArray[np.uint8], off: int, value: int) -> None: ...
def add_u32(buf: NDArray[np.uint8], off: int, value: int) -> int: ...
def cas_u32(buf: NDArray[np.uint8], off: int, expected: int, desired: int) -> bool: ...
def load_u64(buf: NDArray[np.uint8], off: int) -> int: ...
def store_u64(buf: NDArray[np.uint8], off: int, value: int) -> None: ...
def add_u64(buf: NDArray[np.uint8], off: int, value: int) -> int: ...
def cas_u64(buf: NDArray[np.uint8], off: int, expected: int, desired: int) -> bool: ...
def worker_fields() -> dict[str, tuple[int, int]]: ...

class TicketLedger:
    def __init__(self, words: NDArray[np.uint8], slots: NDArray[np.uint64]) -> None: ...
    def claim(self, owner: int) -> int | None: ...
    def claim_exact(self, ticket: int, owner: int) -> bool: ...
    def begin_apply(self, ticket: int, owner: int) -> bool: ...
    def finish(self, ticket: int, owner: int) -> bool: ...
    def give_back(self, ticket: int, owner: int) -> bool: ...
    def reap(self, owner: int, retry_torn: bool) -> tuple[int, int]: ...
    def orphans(self) -> list[int]: ...
    def return_orphan(self, ticket: int) -> bool: ...
    def announce_returns(self) -> None: ...
    def state(self, ticket: int) -> int: ...
    def watermark(self) -> int: ...
    def position(self) -> tuple[int, list[int], int]: ...
    def restore(self, watermark: int, done: list[int], torn: int) -> None: ...

# -- bind_classic.cpp ----------------------------------------------------------------------------

class ClassicBoard:
    def __init__(self, words: NDArray[np.uint8], workers: int) -> None: ...
    @staticmethod
    def bytes(workers: int) -> int: ...
    def reset(self) -> None: ...
    def stop(self) -> None: ...
    @property
    def stopped(self) -> bool: ...
    def examples(self, rank: int) -> int: ...
    def retire(self, rank: int) -> None: ...
    def take(self, n: int) -> int: ...

class ClassicScheme:
    def __init__(
        self,
        kind: str,
        words: NDArray[np.uint8],
        locks: Locks | None,
        row_word0: int,
        rank: int,
        workers: int,
        *,
        hot: int = 8192,
        period: int = 256,
        ordered_reads: bool = True,
        probe: _Float32 | None = None,
        probe_every: int = 1,
    ) -> None: ...

# -- bind_completion.cpp -------------------------------------------------------------------------

ROW_STEP: int

class CompletionProblem:
    def __init__(
        self,
        left: _Float32,
        right: _Float32,
        ratings: _Int32,
        shrink_users: _Float32,
        shrink_items: _Float32,
        *,
        longest: float = 0.0,
        user_word0: int = 0,
        item_word0: int = 0,
    ) -> None: ...
    def run(self, scheme: ClassicScheme, order: _Int32, gamma: float, batch: int = 1) -> int: ...
    def squared_error(self) -> float: ...

# -- bind_cuts.cpp -------------------------------------------------------------------------------

def project_onto_simplex(rows: _Float32) -> None: ...

class CutProblem:
    def __init__(
        self,
        x: _Float32,
        edges: _Int32,
        fixed: NDArray[np.uint8],
        *,
        word0: int = 0,
    ) -> None: ...
    def run(self, scheme: ClassicScheme, order: _Int32, gamma: float, batch: int = 1) -> int: ...
    def objective(self, x: _Float32) -> float: ...

# -- bind_linear.cpp -----------------------------------------------------------------------------

class LinearProblem:
    def __init__(
        self,
        x: _Float32,
        indptr: NDArray[np.int64],
        indices: _Int32,
        values: _Float32,
        labels: _Float32,
        shrink: _Float32,
        *,
        loss: str = "hinge",
        active_rows: bool = False,
    ) -> None: ...
    def run(self, scheme: ClassicScheme, order: _Int32, gamma: float, batch: int = 1) -> int: ...
    def objective(self, x: _Float32) -> float: ...
    def errors(self, x: _Float32) -> int: ...

class DenseLinearProblem:
    def __init__(
        self,
        x: _Float32,
        features: _Float32,
        labels: _Float32,
        shrink: _Float32,
        *,
        loss: str = "hinge",
        classes: int = 1,
    ) -> None: ...
    def run(self, scheme: ClassicScheme, order: _Int32, gamma: float, batch: int = 1) -> int: ...
    def objective(self, x: _Float32) -> float: ...
    def errors(self, x: _Float32) -> int: ...

# -- bind_ops.cpp --------------------------------------------------------------------------------

_Buffer = Any
"""A C-contiguous float32 CPU array of NumPy or MLX; labels are int32."""

class ops:
    """A submodule; written as a class, because a stub file has no place for one."""

    @staticmethod
    def gemm_kernel() -> str: ...
    @staticmethod
    def empty(shape: Sequence[int]) -> _Float32: ...
    @staticmethod
    def keep_freed_memory() -> bool: ...
    @staticmethod
    def rms_norm(x: _Buffer, w: _Buffer, out: _Buffer, *, eps: float, threads: int) -> None: ...
    @staticmethod
    def rms_norm_grad(
        x: _Buffer,
        w: _Buffer,
        d_out: _Buffer,
        dx: _Buffer,
        dw: _Buffer,
        *,
        eps: float,
        threads: int,
    ) -> None: ...
    @staticmethod
    def head_norm_gate(
        h: _Buffer, o: _Buffer, w: _Buffer, out: _Buffer, *, eps: float, threads: int
    ) -> None: ...
    @staticmethod
    def head_norm_gate_grad(
        h: _Buffer,
        o: _Buffer,
        w: _Buffer,
        d_out: _Buffer,
        dh: _Buffer,
        do: _Buffer,
        dw: _Buffer,
        *,
        eps: float,
        threads: int,
    ) -> None: ...
    @staticmethod
    def swiglu(gate: _Buffer, up: _Buffer, out: _Buffer, *, threads: int) -> None: ...
    @staticmethod
    def swiglu_grad(
        gate: _Buffer,
        up: _Buffer,
        d_out: _Buffer,
        d_gate: _Buffer,
        d_up: _Buffer,
        *,
        threads: int,
    ) -> None: ...
    @staticmethod
    def soft_cap(x: _Buffer, out: _Buffer, *, cap: float, threads: int) -> None: ...
    @staticmethod
    def soft_cap_grad(
        out: _Buffer, d_out: _Buffer, dx: _Buffer, *, cap: float, threads: int
    ) -> None: ...
    @staticmethod
    def layer_norm(
        x: _Buffer,
        w: _Buffer,
        out: _Buffer,
        *,
        eps: float,
        threads: int,
    ) -> None: ...
    @staticmethod
    def layer_norm_grad(
        x: _Buffer,
        w: _Buffer,
        d_out: _Buffer,
        dx: _Buffer,
        dw: _Buffer,
        *,
        eps: float,
        threads: int,
    ) -> None: ...
    @staticmethod
    def head_norm_skip_gate(
        h: _Buffer,
        c: _Buffer,
        z: _Buffer,
        w: _Buffer,
        skip: _Buffer,
        out: _Buffer,
        *,
        eps: float,
        threads: int,
    ) -> None: ...
    @staticmethod
    def head_norm_skip_gate_grad(
        h: _Buffer,
        c: _Buffer,
        z: _Buffer,
        w: _Buffer,
        skip: _Buffer,
        d_out: _Buffer,
        dh: _Buffer,
        dc: _Buffer,
        dz: _Buffer,
        dw: _Buffer,
        dskip: _Buffer,
        *,
        eps: float,
        threads: int,
    ) -> None: ...
    @staticmethod
    def activate(activation: str, x: _Buffer, out: _Buffer, *, threads: int) -> None: ...
    @staticmethod
    def activate_grad(
        activation: str, x: _Buffer, d_out: _Buffer, dx: _Buffer, *, threads: int
    ) -> None: ...
    @staticmethod
    def glu(
        activation: str,
        gate: _Buffer,
        up: _Buffer,
        out: _Buffer,
        *,
        threads: int,
    ) -> None: ...
    @staticmethod
    def glu_grad(
        activation: str,
        gate: _Buffer,
        up: _Buffer,
        d_out: _Buffer,
        d_gate: _Buffer,
        d_up: _Buffer,
        *,
        threads: int,
    ) -> None: ...
    @staticmethod
    def causal_conv(
        x: _Buffer,
        w: _Buffer,
        b: _Buffer,
        state: _Buffer | None,
        starts: _Buffer | None,
        y: _Buffer,
        last: _Buffer,
        *,
        silu: bool,
        threads: int,
    ) -> None: ...
    @staticmethod
    def causal_conv_grad(
        x: _Buffer,
        w: _Buffer,
        b: _Buffer,
        state: _Buffer | None,
        starts: _Buffer | None,
        dy: _Buffer,
        d_last: _Buffer | None,
        dx: _Buffer,
        dw: _Buffer,
        db: _Buffer,
        d_state: _Buffer | None,
        *,
        silu: bool,
        threads: int,
    ) -> None: ...
    LONG_CONV_DIRECT: int
    @staticmethod
    def long_conv(x: _Buffer, f: _Buffer, y: _Buffer, *, threads: int) -> None: ...
    @staticmethod
    def long_conv_grad(
        x: _Buffer, f: _Buffer, dy: _Buffer, dx: _Buffer, df: _Buffer, *, threads: int
    ) -> None: ...
    @staticmethod
    def is_small_block(
        out: int,
        inner: int,
    ) -> bool: ...
    @staticmethod
    def block_diagonal(
        x: _Buffer,
        weights: list[_Buffer],
        biases: list[_Buffer | None],
        outs: list[_Buffer],
        *,
        threads: int,
    ) -> None: ...
    @staticmethod
    def block_diagonal_grad(
        x: _Buffer,
        weights: list[_Buffer],
        d_outs: list[_Buffer],
        dx: _Buffer | None,
        d_weights: list[_Buffer],
        d_biases: list[_Buffer | None],
        *,
        threads: int,
    ) -> None: ...
    @staticmethod
    def cross_entropy(
        logits: _Buffer,
        labels: _Buffer,
        gradient: _Buffer | None,
        *,
        cap: float | None,
        threads: int,
    ) -> tuple[float, int]: ...
    @staticmethod
    def scale(x: _Buffer, factor: float, *, threads: int) -> None: ...
    @staticmethod
    def linears(
        x: _Buffer,
        weights: list[_Buffer],
        biases: list[_Buffer | None],
        outs: list[_Buffer],
        *,
        threads: int,
    ) -> None: ...
    @staticmethod
    def linears_grad(
        x: _Buffer,
        weights: list[_Buffer],
        d_outs: list[_Buffer],
        dx: _Buffer | None,
        d_weights: list[_Buffer],
        d_biases: list[_Buffer | None],
        *,
        threads: int,
    ) -> None: ...
    @staticmethod
    def mlstm_stride(*, DK: int, chunk: int) -> int: ...
    @staticmethod
    def mlstm(*arrays: _Buffer, chunk: int, stride: int, eps: float, threads: int) -> None: ...
    @staticmethod
    def mlstm_grad(*arrays: _Buffer, chunk: int, stride: int, eps: float, threads: int) -> None: ...

    # bind_attention.cpp: offset and lengths are int32 or None.

    @staticmethod
    def rope(
        x: _Buffer,
        offset: _Buffer | None,
        out: _Buffer,
        *,
        base: float,
        back: bool,
        threads: int,
    ) -> None: ...
    @staticmethod
    def attention(
        q: _Buffer,
        k: _Buffer,
        v: _Buffer,
        lengths: _Buffer | None,
        out: _Buffer,
        lse: _Buffer,
        *,
        window: int | None,
        threads: int,
    ) -> None: ...
    @staticmethod
    def attention_grad(
        q: _Buffer,
        k: _Buffer,
        v: _Buffer,
        lengths: _Buffer | None,
        lse: _Buffer,
        d_out: _Buffer,
        dq: _Buffer,
        dk: _Buffer,
        dv: _Buffer,
        *,
        window: int | None,
        threads: int,
    ) -> None: ...

    # bind_recurrences.cpp: arrays in the order of the docstrings.

    @staticmethod
    def decay(*arrays: _Buffer | None, scale: float, threads: int) -> None: ...
    @staticmethod
    def decay_grad(*arrays: _Buffer | None, scale: float, threads: int) -> None: ...
    @staticmethod
    def decay_chunks(*, S: int, DK: int) -> int: ...
    @staticmethod
    def delta(*arrays: _Buffer | None, threads: int) -> None: ...
    @staticmethod
    def delta_grad(*arrays: _Buffer | None, threads: int) -> None: ...
    @staticmethod
    def scan(*arrays: _Buffer | None, threads: int) -> None: ...
    @staticmethod
    def scan_grad(*arrays: _Buffer | None, threads: int) -> None: ...
    @staticmethod
    def scan_kept(*, B: int, S: int, C: int, N: int) -> int: ...

    # bind_slstm.cpp: starts is uint8 or None.

    SLSTM_TAPE: int
    @staticmethod
    def slstm(
        i: _Buffer,
        f: _Buffer,
        z: _Buffer,
        o: _Buffer,
        R: _Buffer,
        b: _Buffer,
        starts: _Buffer | None,
        h: _Buffer,
        tape: _Buffer | None,
        h_state: _Buffer,
        c: _Buffer,
        n: _Buffer,
        m: _Buffer,
        *,
        threads: int,
    ) -> None: ...
    @staticmethod
    def slstm_grad(
        R: _Buffer,
        starts: _Buffer | None,
        h0: _Buffer,
        c0: _Buffer,
        n0: _Buffer,
        h: _Buffer,
        tape: _Buffer,
        dh: _Buffer,
        di: _Buffer,
        df: _Buffer,
        dz: _Buffer,
        do: _Buffer,
        dR: _Buffer,
        db: _Buffer,
        dh_state: _Buffer,
        dc: _Buffer,
        dn: _Buffer,
        dm: _Buffer,
        *,
        threads: int,
    ) -> None: ...

# -- bind_decode.cpp -----------------------------------------------------------------------------

class XlstmLargeDecoder:
    def __init__(
        self,
        *,
        d: int,
        heads: int,
        DK: int,
        DV: int,
        U: int,
        V: int,
        norm_eps: float,
        eps: float,
        gate_cap: float,
        logit_cap: float,
        reset_token: int,
        embedding: _Buffer,
        blocks: list[list[tuple[_Buffer, _Buffer | None]]],
        out_norm: _Buffer | None,
        out_norm_bias: _Buffer | None,
        head: _Buffer,
    ) -> None: ...
    @property
    def state_floats(self) -> int: ...
    def step(
        self, tokens: _Int32, before: _Buffer, after: _Buffer, logits: _Buffer, *, threads: int
    ) -> None: ...

class XlstmV1Decoder:
    def __init__(
        self,
        *,
        d: int,
        V: int,
        I: int,
        mlstm_heads: int,
        mlstm_taps: int,
        groups: int,
        slstm_heads: int,
        slstm_taps: int,
        U: int,
        activation: str,
        norm_eps: float,
        cell_eps: float,
        reset_token: int,
        embedding: _Buffer,
        blocks: list[tuple[bool, list[tuple[_Buffer | None, _Buffer | None]]]],
        out_norm: _Buffer | None,
        head: _Buffer,
    ) -> None: ...
    @property
    def state_floats(self) -> int: ...
    def step(
        self, tokens: _Int32, before: _Buffer, after: _Buffer, logits: _Buffer, *, threads: int
    ) -> None: ...

# -- bind_theory.cpp -----------------------------------------------------------------------------

def edge_degrees(
    indptr: NDArray[np.int64], indices: _Int32, n: int, met: NDArray[np.int64]
) -> None: ...
def bitmap_meetings(
    rows: NDArray[np.uint8], others: NDArray[np.uint8], met: NDArray[np.int64]
) -> None: ...
