"""Write docs/generated/peers.md: implementations of other packages beside float64.

python -m tools.peers_page     takes minutes; needs the extra [peers]
"""

import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from mlxhog.conformance import api
from mlxhog.conformance.sides.peers import NOT_HERE, PEERS
from mlxhog.conformance.sides.report import SidesReport, SideSummary
from mlxhog.conformance.vectors.equations import KINDS
from mlxhog.conformance.vectors.export import EQUATIONS
from mlxhog.display.table import Section, exported

PAGE = Path(__file__).resolve().parents[1] / "docs" / "generated" / "peers.md"
PACKAGES = (
    "mlstm_kernels", "xlstm", "transformers", "fla-core", "mlx-lm", "torch", "mlx", "mlxhog",
)  # fmt: skip
HEAD = """# Other implementations beside float64

`mlxhog parity SUBJECT --side peers` computes the test vectors of every cell but the convolutions,
and of both xLSTM families as models, by other packages, in float32 on the CPU; `--side own` adds
the kernels of this one. `python -m tools.peers_page` wrote this page; do not edit it. An error is
in units of the tolerance of its tensor, so 1 is the limit. What a side does not return is not
checked.
"""
REPORTS = """
## To report

What is wrong, with the smallest program that shows it, and what that printed here.
"""


@dataclass(frozen=True)
class Finding:
    """Something wrong in a package: what a person would report, and a program that shows it."""

    package: str
    title: str
    text: str
    code: str

    def printed(self) -> str:
        """Run the program; return what it prints."""
        process = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", self.code], capture_output=True, text=True,
            check=True,
        )  # fmt: skip
        return process.stdout


_MODEL = """\
import torch
from transformers import xLSTMConfig, xLSTMForCausalLM

torch.manual_seed(0)


def model(**options):
    ids = {"vocab_size": 10, "eos_token_id": 0, "pad_token_id": 0}
    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_heads": 2}
    return xLSTMForCausalLM(xLSTMConfig(**ids | sizes | options))


tokens = torch.randint(0, 10, (2, 64))
"""
_NAIVE = """\
import runpy
from importlib.metadata import distribution

import torch

naive = runpy.run_path(str(distribution("fla-core").locate_file("fla/ops/{}/naive.py")))
q = k = v = torch.ones(1, 2, 1, 1)
"""

FINDINGS = (
    Finding(
        "fla-core",
        "naive_chunk_kda has NaN gradients where a chunk decays by more than exp(-88)",
        "`(g - g_i).exp()` is computed for later positions, too, where it overflows. `masked_fill` "
        "keeps that out of the result, but its gradient is 0 * inf. `naive_recurrent_kda` is "
        "right. To mask the exponents before `exp`, as `dplr_chunkwise` does, would mend it. Tests "
        "that compare a kernel with this reference miss strong decays.",
        _NAIVE.format("kda")
        + """\
for name, chunk in ("naive_recurrent_kda", {}), ("naive_chunk_kda", {"chunk_size": 2}):
    g = torch.full((1, 2, 1, 1), -100.0, requires_grad=True)
    o, _ = naive[name](q, k, v, g, torch.ones(1, 2, 1), **chunk)
    o.sum().backward()
    print(name, o.flatten().tolist(), g.grad.flatten().tolist())
""",
    ),
    Finding(
        "fla-core",
        "naive_mesa_net_CG has NaN gradients at strong decays",
        "`pairwise_decay` is `(g[..., None] - g[..., None, :]).exp().tril()`: the exponents above "
        "the diagonal overflow, and their gradient is 0 * inf. `.tril()` before `.exp()` would "
        "mend it. The other deviations of this function are of its design: it adds 1e-5 to "
        "denominators of conjugate gradients, so it is an approximation.",
        _NAIVE.format("mesa_net")
        + """\
for name, chunk in ("naive_mesa_net_exact", {}), ("naive_mesa_net_CG", {"chunk_size": 2}):
    g = torch.full((1, 2, 1), -100.0, requires_grad=True)
    o, *_ = naive[name](q, k, v, g, torch.ones(1, 1), torch.ones(1, 2, 1), **chunk)
    o.sum().backward()
    print(name, o.flatten().tolist(), g.grad.flatten().tolist())
""",
    ),
    Finding(
        "transformers, xlstm",
        "mode train_with_padding cannot run",
        "`mLSTMLayer.forward` unpacks `h, state = self.mlstm_backend(...)`, but in this mode the "
        "backend returns h alone, and with return_last_states=True it refuses to be built. So h is "
        "unpacked along the batch. It is so in transformers with and without the xlstm package, "
        "and in xlstm's xLSTMLarge.",
        _MODEL
        + """\
padded = model(mode="train_with_padding", return_last_states=False, use_cache=False)
for B in 1, 2:
    try:
        padded(tokens[:B, :3])
    except Exception as error:
        print(f"{B} sequences: {type(error).__name__}: {error}")
""",
    ),
    Finding(
        "transformers",
        "with the xlstm package a training step fails unless use_cache=False",
        "`use_cache` is true by default, so `xLSTMModel.forward` makes a cache, and copies the new "
        "state into the tensors that the graph has as the first one.",
        _MODEL
        + """\
for use_cache in False, True:
    try:
        model(use_cache=use_cache).train()(tokens, labels=tokens).loss.backward()
        print(f"use_cache={use_cache}: a gradient")
    except RuntimeError as error:
        print(f"use_cache={use_cache}: {str(error).partition(':')[0]}")
""",
    ),
    Finding(
        "transformers",
        "the cache fits only models whose widths are multiples of 64",
        "`xLSTMConfig.qk_dim` and `v_dim` round up to a multiple of 64, and `xLSTMCache` has their "
        "sizes; the layers have `int(hidden_size * qk_dim_factor)`. Other models cannot generate.",
        _MODEL
        + """\
for hidden_size in 128, 96:
    try:
        ids = model(hidden_size=hidden_size).eval().generate(tokens, max_new_tokens=2)
        print(f"hidden_size={hidden_size}: {tuple(ids.shape)}")
    except Exception as error:
        print(f"hidden_size={hidden_size}: {str(error).partition('.')[0]}")
""",
    ),
    Finding(
        "transformers",
        "in chunks without a cache the state is rounded to bfloat16",
        "Sequences longer than `max_inference_chunksize` (16,384) are computed in chunks. Without "
        "`use_cache` the state between them is in a cache of the default dtype, bfloat16, "
        "whatever that of the model: `xLSTMCache(config=self.config, max_batch_size=...)`.",
        _MODEL
        + """\
xlstm = model().eval()
for block in xlstm.backbone.blocks:
    torch.nn.init.zeros_(block.mlstm_layer.igate_preact.bias)  # else nearly closed
with torch.no_grad():
    whole = xlstm(tokens, use_cache=False).logits
    xlstm.config.max_inference_chunksize = 16
    for use_cache in True, False:
        off = (xlstm(tokens, use_cache=use_cache).logits - whole).abs().max()
        print(f"use_cache={use_cache}: off by {off:.0e}, logits up to {whole.abs().max():.1f}")
""",
    ),
    Finding(
        "mlstm_kernels",
        "chunkwise--native_custbw has no gradient of the first m",
        "Its backward pass holds the normalizer constant, by design: behind the norm of a head the "
        "scale of h cancels, and a model's gradients agree with float64. But the first m also "
        "scales the first C beside what is added to it, which does not cancel; its gradient is "
        "returned as zeros, as that of n, which does. It matters where gradients pass through the "
        "state of a segment before.",
        """\
import torch
from mlstm_kernels.torch import get_mlstm_kernel
from torch.nn.functional import layer_norm

torch.manual_seed(0)
q, k, v, w = torch.randn(4, 1, 1, 4, 3)
i, f = torch.randn(2, 1, 1, 4)
C, n = torch.randn(1, 1, 3, 3), torch.randn(1, 1, 3)
for name in "chunkwise--native_autograd", "chunkwise--native_custbw":
    m, kernel = torch.zeros(1, 1, 1, requires_grad=True), get_mlstm_kernel(name)
    h = kernel(q, k, v, i, f, C, n, m, chunk_size=4)
    (layer_norm(h, (3,), eps=0.0) * w).sum().backward()
    print(f"{name}: {m.grad.item():.2f}")
""",
    ),
    Finding(
        "transformers",
        "mlstm_chunkwise_fw calls a method that tensors do not have",
        "`fgate.logsigmoid(vecF)` in modeling_xlstm.py should be `F.logsigmoid(vecF)`, as in "
        "`mlstm_chunkwise_native_autograd`. Nothing calls the function.",
        """\
import sys

sys.modules["xlstm"] = None  # whose code would replace it
import torch
from transformers.models.xlstm.modeling_xlstm import mlstm_chunkwise_fw

x, gate = torch.ones(1, 1, 4, 4), torch.ones(1, 1, 4)
try:
    mlstm_chunkwise_fw(x, x, x, gate, gate, chunk_size=4)
except AttributeError as error:
    print(error)
""",
    ),
)


def text() -> str:
    """Return the page."""
    return "".join(_parts())


def _parts() -> Iterator[str]:
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    yield f"{HEAD}\n{versions}; Python {platform.python_version()}, {platform.machine()}.\n"
    subjects = dict.fromkeys(name for peer in PEERS for name in peer.equations)
    reports = {name: api.parity(name, sides=["peers"], limit_s=600.0) for name in subjects}
    for name, report in reports.items():
        assert isinstance(report, SidesReport)
        yield f"\n## {name}\n\n{EQUATIONS[name].text.partition(chr(10))[0]}\n\n"
        yield _table(
            ("side", "agree", "largest error", "at", "not checked"),
            (_row(one) for one in report.summaries),
        )
        claims = dict.fromkeys(one.side.note for one in report.summaries if ": " in one.side.note)
        yield from (f"\n- {note}" for note in claims)
        yield "\n" * bool(claims)
        for one in report.summaries:
            yield from _departures(one)
    yield "\n## Left out\n\n"
    yield from (f"- {package}: {why}\n" for package, why in NOT_HERE.items())
    yield REPORTS
    for finding in FINDINGS:
        code, printed = finding.code.rstrip(), finding.printed().rstrip()
        yield f"\n### {finding.package}: {finding.title}\n\n{finding.text}\n"
        yield f"\n```python\n{code}\n```\n\n```\n{printed}\n```\n"


def _row(one: SideSummary) -> Sequence[str]:
    good, worst = sum(row.ok for row in one.rows), one.worst
    size = "not finite" if worst.where and worst.max_abs is None else f"{worst.tolerance_ratio:.2g}"
    size = "raises" if worst.got is None else size
    return one.side.name, f"{good} of {len(one.rows)}", size, worst.what, "; ".join(one.not_checked)


def _departures(one: SideSummary) -> Iterator[str]:
    """Yield a paragraph about a side that departs, with the smallest case that shows it."""
    failed = [row for row in one.rows if not row.ok]
    if not failed:
        return
    names = dict.fromkeys(row.what.partition("/")[2] or row.reason for row in failed)
    first = min(failed, key=lambda row: _size(row.what.partition("/")[0]))
    where = f"[{', '.join(map(str, first.where))}]" if first.where else ""
    yield f"\n**{one.side.name}** departs in {', '.join(f'`{name}`' for name in names)}. "
    yield f"Smallest case: `{first.what}{where}`"
    if first.got is not None:
        yield f" is {first.got:.6g}, expected {first.wanted:.6g}, allowed {first.tolerance:.1e}"
    yield ". " + "; ".join(f"Perhaps {guess}" for guess in one.guesses)
    yield ".\n" * bool(one.guesses) or "\n"


def _size(case: str) -> int:
    """Return the number of input values of a case."""
    name, _, kind = case.rpartition("-")
    inputs, _ = EQUATIONS[name].draw(KINDS[kind])
    return sum(x.size for x in inputs.values())


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return exported(Section("", header, [*rows]), "markdown") + "\n"


if __name__ == "__main__":
    PAGE.write_text(text(), encoding="utf-8")
