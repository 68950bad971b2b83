"""The lint finds one planted offence of each rule, and nothing in the project's kernels."""

from pathlib import Path

import pytest

from tools import lint

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

ALLOWED = """
#ifndef A_H
#define A_H
#ifndef RACE_POINT
#define RACE_POINT()
#endif
#include <metal_stdlib>
using namespace metal;
namespace mlxhog {
// a double, goto and 1.0 in a comment; also /* new */
constant constexpr uint TRIES = 64;
struct Pair { float x; float y; };
/* Adds, at most TRIES times. */
template <typename T>
inline bool add(device atomic_uint* word, uint bits, device atomic_uint* failures) {
  uint old = atomic_load_explicit(word, memory_order_relaxed);
  for (uint i = 0; i < TRIES; ++i) {
    if (atomic_compare_exchange_weak_explicit(word, &old, old + bits, memory_order_relaxed,
                                              memory_order_relaxed)) {
      return true;
    }
  }
  atomic_fetch_add_explicit(failures, 1u, memory_order_relaxed);
  return false;
}
inline void axpy(const device float* arena, threadgroup float* tile, float x, uint3 i) {
  const float twice = 2.0f * precise::exp(x) + metal::fast::log(x) + 1e-6f + float(0x1Eu);
  tile[i.x] = tile[i.y + tile_index(i)] < x ? twice : 0.5h;
  atomic_fetch_add_explicit((device atomic_float*)arena + i.x, x, memory_order_relaxed);
}
}
#endif
"""


def found(name, text):
    return {finding.rule.name for finding in lint.check_text(name, text)}


def test_every_rule_finds_its_planted_offences_alone():
    for rule, name, text in PLANTED:
        assert found(name, text) == {rule}
    assert {rule for rule, _, _ in PLANTED} == {rule.name for rule in lint.RULES}


def test_what_the_kernels_need_is_allowed():
    assert not found("a.h", ALLOWED)
    kernel = (
        "[[kernel]] void f(device float* a [[buffer(30)]], uint3 i [[thread_position_in_grid]])"
    )
    assert not found("a.metal", kernel + " { threadgroup float tile[8192]; g(tile, i); }")
    sizes = "namespace m { enum : uint { kA = 64, kB = kA * 2 }; }\nconstexpr uint kC = kB / 2u;\n"
    kernel = "[[kernel]] void f() {{ threadgroup float a[{}]; }}"
    assert not found("a.metal", sizes + kernel.format("m::kA * m::kB"))
    assert found("a.metal", sizes + kernel.format("kA * kB + kC"))


def test_a_finding_names_file_line_reason_and_way_out():
    (finding,) = lint.check_text("adds.h", "// one\ninline float f() {\n  return 1.0;\n}\n")
    assert str(finding) == (
        "adds.h:3: literal 1.0 is a double: Metal has no 64-bit floats; write the suffix f"
    )


def test_what_two_files_have_together_is_found(tmp_path):
    (tmp_path / "a.h").write_text("void f();\ninline void g() { f(); }\n")
    (tmp_path / "b.h").write_text('#include "a.h"\ninline void f() { g(); }\n')
    assert [finding.rule.name for finding in lint.check_files([tmp_path / "b.h"])] == ["recursion"]
    for name in ("a.metal", "b.metal"):
        (tmp_path / name).write_text("[[kernel]] void f() { }\n")
    (finding,) = lint.check_files(sorted(tmp_path.glob("*.metal")))
    assert finding.rule.name == "kernel name"
    assert "as in a.metal" in str(finding)
    (tmp_path / "c.h").write_text("namespace mlxhog {\ninline void f(uint i) { }\n}\n")
    kernel = tmp_path / "c.metal"  # it may share its name with the function that it calls
    kernel.write_text('#include "c.h"\n[[kernel]] void f() { mlxhog::f(1u); }\n')
    assert not lint.check_files([kernel])


@pytest.mark.slow
def test_the_kernels_of_the_project_keep_every_rule():
    assert not list(map(str, lint.check_kernels()))
