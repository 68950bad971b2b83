"""Record small outputs of published CPU code for mesa, gsa, path and mamba3.

    python -m tests.mad.models.layers.record_mixers FLA MAMBA OUT

FLA is an unpacked wheel of fla-core (flash-linear-attention); its `naive.py` texts need torch and
einops. MAMBA is tests/ops/triton/test_mamba3_siso.py of state-spaces/mamba, of which only the
function `mamba3_siso_step_ref` is executed. `golden/mixers.npz`, which the tests read, was recorded
from fla-core 0.6.0 and state-spaces/mamba at the commit in MAMBA_COMMIT.
"""

import ast
import runpy
import sys
from pathlib import Path

import einops
import numpy as np
import torch
import torch.nn.functional as F

MAMBA_COMMIT = "e9594ce1c732d97440f0332fdc43170a2294dbfa"
B, S, H, D, SLOTS, TURNS = 2, 13, 2, 4, 3, 1


def numbers(*shape, seed):
    """Standard normal numbers, float32."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.standard_normal(shape).astype(np.float32))


def rows(seed, width=D):
    """Numbers of every position and head."""
    return numbers(B, S, H, width, seed=seed)


def gate(seed):
    """Numbers of every position and head, without their last axis."""
    return rows(seed, 1)[..., 0]


def fla(folder, op):
    """Execute the `naive.py` of an operator."""
    return runpy.run_path(str(folder / "fla" / "ops" / op / "naive.py"))


def step_reference(path):
    """Execute `mamba3_siso_step_ref` alone: the imports of its file need a GPU."""
    tree = ast.parse(path.read_text())
    (function,) = (
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name == "mamba3_siso_step_ref"
    )
    names = {"torch": torch, "F": F, "repeat": einops.repeat}
    exec("import math\nfrom typing import Optional, Tuple", names)
    exec(compile(ast.Module([function], []), str(path), "exec"), names)
    return names[function.name]


def record(folder, mamba):
    """Return inputs and outputs, by "LAYER.NAME"."""
    q, k, v, w = rows(0), F.normalize(rows(1), dim=-1), rows(2), F.normalize(rows(3), dim=-1)
    forget, share = F.logsigmoid(gate(4)), torch.sigmoid(gate(5))
    ridge = 0.25 + numbers(H, D, seed=6).abs()
    mesa = {"q": q, "k": k, "v": v, "log_decay": forget, "beta": share, "ridge": ridge}
    mesa["h"] = fla(folder, "mesa_net")["naive_mesa_net_exact"](q, k, v, forget, ridge, share)[0]
    log_alpha = F.logsigmoid(rows(7, SLOTS)) / 8
    gsa = {"q": q, "k": k, "v": v, "log_alpha": log_alpha}
    gsa["h"] = fla(folder, "gsa")["naive_recurrent_gsa"](
        q, k, v, 1 - log_alpha.exp(), log_alpha, scale=1.0
    )[0]
    path = {"q": q, "k": k, "v": v, "w": w, "beta": 2 * share, "log_forget": forget}
    attend = fla(folder, "path_attn")["naive_path_attn"]
    for name, gates in (("h", torch.zeros_like(forget)), ("h_forget", forget)):
        path[name] = attend(q, k, v, w, 2 * share, gates, D**-0.5, chunk_size=4)
    dt, own, angle = F.softplus(gate(8)), gate(9), rows(10, TURNS)
    mamba3 = {"q": q, "k": k, "v": v, "log_decay": dt * forget, "dt": dt, "own": own, "w": angle}
    by_head = (x.swapaxes(1, 2) for x in (dt * forget, dt, own))
    no_bias = torch.zeros(H, D)
    mamba3["h"] = step_reference(mamba)(q, k, v, *by_head, no_bias, no_bias, angle)[0]
    layers = {"mesa": mesa, "gsa": gsa, "path": path, "mamba3": mamba3}
    return {f"{layer}.{name}": x for layer, one in layers.items() for name, x in one.items()}


if __name__ == "__main__":
    fla_folder, mamba_file, out = map(Path, sys.argv[1:])
    (version,) = (entry.name for entry in fla_folder.glob("*.dist-info") if "core" in entry.name)
    arrays = {name: x.numpy() for name, x in record(fla_folder, mamba_file).items()}
    np.savez_compressed(out, **arrays)
    print(f"{out}: {len(arrays)} arrays from {version} and {mamba_file}")
