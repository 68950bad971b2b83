"""Lint and clang find one planted offence of each kind, and none in the project's kernels."""

import shutil
from pathlib import Path

import pytest

from mlxhog.errors import MetalError
from tools import address_spaces, dump, lint
from tools.address_spaces import check

# Each with the rule, the file name and the offending text.
PLANTED = [
    (*head.split(", "), text)
    for head, _, text in (
        block.partition("\n")
        for block in (Path(__file__).parent / "planted_offences.txt")
        .read_text()
        .split("\n=== ")[1:]
    )
]


def test_every_rule_finds_its_planted_offences_alone():
    for rule, name, text in PLANTED:
        assert {finding.rule.name for finding in lint.check_text(name, text)} == {rule}
    assert {rule for rule, _, _ in PLANTED} == {rule.name for rule in lint.RULES}


def test_what_two_files_have_together_is_found(tmp_path):
    (tmp_path / "a.h").write_text("void f();\ninline void g() { f(); }\n")
    (tmp_path / "b.h").write_text('#include "a.h"\ninline void f() { g(); }\n')
    assert [finding.rule.name for finding in lint.check_files([tmp_path / "b.h"])] == ["recursion"]
    (tmp_path / "c.h").write_text("namespace mlxhog {\ninline void f(uint i) { }\n}\n")
    kernel = tmp_path / "c.metal"  # it may share its name with the function that it calls
    kernel.write_text('#include "c.h"\n[[kernel]] void f() { mlxhog::f(1u); }\n')
    assert not lint.check_files([kernel])


@pytest.mark.slow
def test_the_kernels_of_the_project_keep_every_rule():
    assert not list(map(str, lint.check_kernels()))


CLANGS = [name for name in address_spaces.NAMES if shutil.which(name)]
needs_clang = pytest.mark.skipif(not CLANGS, reason="no clang: apt-get install clang")

KERNEL = """
#include <metal_stdlib>
using namespace metal;

struct Shape {{
  uint n;
  float scale;
}};
inline float from_device(const device float* x) {{ return x[0]; }}
inline float from_group(threadgroup float* x, Shape shape) {{ return x[0] * shape.scale; }}
inline void to_thread(thread float& x) {{ x = 1.0f; }}
{outside}
[[kernel]] void f(constant float* small [[buffer(0)]], const device float* w [[buffer(1)]],
                  constant Shape& shape [[buffer(2)]], device float* out [[buffer(3)]],
                  uint3 at [[thread_position_in_grid]]) {{
  threadgroup float tile[32];
  float mine = 0.0f; Shape own = {{shape.n, shape.scale}};
  {inside}
}}
"""
REJECTED = {
    "constant passed as device": ("", "out[0] = from_device(small);"),
    "thread passed as device": ("", "out[0] = from_device(&mine);"),
    "device passed as threadgroup": ("", "out[0] = from_group(out, own);"),
    "device passed as thread": ("", "to_thread(out[0]);"),
    "a write to constant": ("", "small[0] = 1.0f;"),
    "a cast from device to threadgroup": ("", "threadgroup float* x = (threadgroup float*)w;"),
    "an assignment across spaces": ("", "const device float* x = tile;"),
    "an atomic in threadgroup memory": ("",
        "atomic_fetch_add_explicit((threadgroup atomic_float*)tile, 1.0f, memory_order_relaxed);"),
    "an order that is not relaxed": ("",
        "atomic_load_explicit((device atomic_uint*)w, memory_order_seq_cst);"),
    "a function pointer": ("inline float g(float (*f)(float)) { return f(1.0f); }", ""),
    "a virtual function": ("struct B { virtual float f() { return 0.0f; } };", ""),
    "an exception": ("", "throw 3;"),
    "the standard library": ("", "out[0] = std::fabs(out[0]);"),
    "a statement newer than C++14": ("", "if constexpr (true) { out[0] = 1.0f; }"),
    "a threadgroup array in a function": ("inline void g() { threadgroup float x[4]; }", ""),
}  # fmt: skip


@needs_clang
@pytest.mark.parametrize("clang", CLANGS)
def test_a_planted_error_is_rejected_with_its_line(clang, subtests):
    for what, (outside, inside) in REJECTED.items():
        line = 18 if inside else 12
        with subtests.test(what), pytest.raises(MetalError, match=rf"a\.metal:{line}:\d+: error"):
            check("a.metal", KERNEL.format(outside=outside, inside=inside), clang=clang)


@needs_clang
@pytest.mark.parametrize("clang", CLANGS)
def test_a_name_that_a_macro_of_mlx_has_is_rejected(clang):
    text = KERNEL.format(outside="", inside="int instantiate_kernel(int(1), 2, 3);")
    check("a.metal", KERNEL.format(outside="", inside=""), clang=clang)
    with pytest.raises(MetalError, match=r"a\.metal:.*error"):
        check("a.metal", address_spaces.prelude() + text, clang=clang)


@pytest.mark.slow
@needs_clang
@pytest.mark.parametrize("clang", CLANGS)
def test_every_text_of_mlx_and_of_pytorch_keeps_its_address_spaces(clang):
    texts = dump.texts(address_spaces.prelude())
    assert texts
    for name, text in texts.items():
        check(name, text, clang=clang)
