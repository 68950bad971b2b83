"""The causal convolution as launches of its Metal kernels, for arrays of any engine.

`models/ops/metal_mlx.py` and `models/ops/metal_torch.py` make it differentiable. A state goes in
front of x, where only the taps see it; documents come as how far back each position may see.
"""

from typing import Any

from mlxhog.metal.engine import Engine
from mlxhog.metal.kernels import conv


def forward(engine: Engine, inputs: Any, w: Any, bias: Any, back: Any, *, silu: bool) -> Any:
    """Convolve; arguments as of `conv.conv_forward`, arrays of the engine, row-major.

    Returns:
        y (B, S, CH).
    """
    return engine.run(conv.conv_forward(inputs, w, bias, back, silu=silu))["y"]


def backward(
    engine: Engine, inputs: Any, w: Any, bias: Any, back: Any, dy: Any, *, silu: bool
) -> tuple[Any, Any, Any]:
    """Differentiate `forward`.

    Returns:
        The gradients of inputs (B, P + S, CH), w and bias.
    """
    S = dy.shape[1]
    if silu:
        dpre = engine.run(conv.conv_bwd_pre(inputs, w, bias, back, dy))["dpre"]
    else:
        dpre = dy
    dx = engine.run(conv.conv_bwd_input(w, back, dpre, P=inputs.shape[1] - S))["dx"]
    part = engine.run(conv.conv_bwd_partial(inputs, back, dpre, K=w.shape[-1]))["part"]
    found = engine.run(conv.conv_bwd_final(part, S=S))
    return dx, found["dw"], found["dbias"]
