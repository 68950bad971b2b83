"""clang finds pointers that leave their address space, and none in the project's kernels."""

import shutil

import pytest

from mlxhog.errors import EnvironmentLacks, MetalError
from tools import address_spaces, dump
from tools.address_spaces import check

CLANGS = [name for name in address_spaces._NAMES if shutil.which(name)]
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
ACCEPTED = {
    "a cast that drops const": "((device float*)w)[at.x] = 1.0f;",
    "a cast to atomics":
        "atomic_fetch_add_explicit((device atomic_float*)w + 1, 1.0f, memory_order_relaxed);",
    "each pointer where it belongs":
        "to_thread(mine); out[0] = from_device(w) + from_group(tile, own) + small[0];",
    "structs of constants": "out[0] = from_group(tile, Shape{1u, 2.0f}) * shape.scale;",
}  # fmt: skip
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
    "a threadgroup array in a function": ("inline void g() { threadgroup float x[4]; }", ""),
}  # fmt: skip


@needs_clang
@pytest.mark.parametrize("clang", CLANGS)
def test_what_metal_permits_is_accepted_and_a_planted_error_rejected_with_its_line(clang, subtests):
    for inside in ACCEPTED.values():
        check("a.metal", KERNEL.format(outside="", inside=inside), clang=clang)
    for what, (outside, inside) in REJECTED.items():
        line = 18 if inside else 12
        with subtests.test(what), pytest.raises(MetalError, match=rf"a\.metal:{line}:\d+: error"):
            check("a.metal", KERNEL.format(outside=outside, inside=inside), clang=clang)


@pytest.mark.slow
@needs_clang
@pytest.mark.parametrize("clang", CLANGS)
def test_every_text_of_mlx_and_of_pytorch_keeps_its_address_spaces(clang):
    texts = dump.texts(address_spaces.PRELUDE)
    assert texts
    for name, text in texts.items():
        check(name, text, clang=clang)


def test_a_machine_without_clang_is_told_what_to_install(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(EnvironmentLacks, match="apt-get install clang"):
        check("a.metal", "")
