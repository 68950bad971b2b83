"""The cells of mlx-lm, as sides: `function(case, setting)`, in float32 on the CPU.

Its states have values before keys.
"""

from types import SimpleNamespace
from typing import Any

import mlx.core as mx

from mlxhog.conformance.sides.own import Arrays, differentiated
from mlxhog.conformance.subject import Results
from mlxhog.conformance.vectors.case import Case

STEP = 8  # positions of a chunk, so that sequences of the vectors have several
MIN_DT = 1e-6  # the pre-activation of a smaller one is inexact


def mlx_lm(case: Case, setting: str) -> Results:
    """Compute by a function of `mlx_lm.models`."""
    from mlx_lm.models import gated_delta, mamba, rwkv7, ssm

    if "dt" in case.inputs and case.inputs["dt"].min() < MIN_DT:
        raise NotImplementedError("its dt is a softplus, so never 0")

    def gated_delta_ops(x: Arrays) -> dict[str, Any]:
        K = x["q"].shape[-1]  # its callers scale queries
        decay, state = mx.exp(x["log_decay"]), transposed(x.get("state.S"))
        h, S = gated_delta.gated_delta_ops(
            K**-0.5 * x["q"], x["k"], x["v"], decay, x["beta"], state
        )
        return {"h": h, "state.S": transposed(S)}

    def wkv7(x: Arrays) -> dict[str, Any]:
        r, w, k, v, kappa = (x[name] for name in ("r", "w", "k", "v", "kappa"))
        B, S, H, K = r.shape
        state, hs = transposed(x.get("state.S")), []
        state = mx.zeros((B, H, v.shape[-1], K)) if state is None else state
        w, removal = mx.exp(w), x["a"] * kappa
        for t in range(S):
            now = (y[:, t] for y in (r, w, k, v, -kappa, removal))
            h, state = rwkv7._wkv7_step_ops(*now, state)
            hs.append(h[..., 0])
        return {"h": mx.stack(hs, 1), "state.S": transposed(state)}

    def ssm_attn(x: Arrays) -> dict[str, Any]:
        A_log, B, C = mx.log(-x["A"]), x["B"][:, :, None], x["C"][:, :, None]
        dt, bias = inverse_softplus(x["dt"]), mx.zeros(x["A"].shape)
        limit = (0.0, float("inf"))
        h, S = ssm.ssm_attn(
            x["x"], A_log, B, C, x["D"], dt, bias, transposed(x.get("state.S")), limit, step=STEP
        )
        return {"h": h, "state.S": transposed(S)}

    def ssm_step(x: Arrays) -> dict[str, Any]:
        """Run `MambaBlock.ssm_step`; its projections give dt, B and C."""
        E, hs, state = x["x"].shape[-1], [], x.get("state.S")
        for t in range(x["x"].shape[1]):
            parts = [inverse_softplus(x["dt"][:, t]), x["B"][:, t], x["C"][:, t]]
            block = SimpleNamespace(
                D=x["D"], time_step_rank=E, ssm_state_size=x["B"].shape[-1], use_bcdt_rms=False,
                x_proj=lambda _, parts=parts: mx.concatenate(parts, -1), dt_proj=lambda dt: dt,
            )  # fmt: skip
            h, state = mamba.MambaBlock.ssm_step(block, x["x"][:, t], x["A"], state)
            hs.append(h)
        return {"h": mx.stack(hs, 1), "state.S": state}

    calls = {"gated_delta_ops": gated_delta_ops, "wkv7": wkv7, "ssm_attn": ssm_attn}
    return differentiated("mlx", case, (calls | {"ssm_step": ssm_step})[setting])


def transposed(S: Any) -> Any:
    """Return a state with its last two axes swapped; None stays."""
    return None if S is None else S.swapaxes(-1, -2)


def inverse_softplus(y: Any) -> Any:
    """Return x with log(1 + exp(x)) = y; a positive y has one."""
    return y + mx.log(-mx.expm1(-y))
