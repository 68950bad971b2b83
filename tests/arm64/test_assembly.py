"""Native code as instructions of Apple's M1: sums stay in registers, and orders are in them."""

import re

import pytest

from tests.arm64.cross import NATIVE, assembly

MULTIPLIES = re.compile(r"fmla|fmadd")
STORES = re.compile(r"st(r|p|ur|1)\b")

WORDS = """
#include "control.h"
using namespace mlxhog;
using Word = std::uint64_t;
extern "C" {
Word read(const Word* word) { return load(word); }
void write(Word* word, Word value) { store(word, value); }
Word count(Word* word) { return add(word, Word{1}); }
bool swap(Word* word, Word old, Word now) { return cas(word, old, now); }
void begin(Word* mark, Word* data) { begin_writing(mark); *data = 1; }
void end(Word* mark, Word* data) { *data = 1; end_writing(mark); }
bool whole(const Word* marks, Word* sum) { return nobody_writes(marks, 1, 1, sum); }
}
"""


def functions(text):
    """Instructions and labels of each function, without directives and comments."""
    found = {}
    lines = []
    for line in text.splitlines():
        line = line.split(";")[0].rstrip()
        if re.match(r"_\w+:", line):
            lines = found.setdefault(line[1:-1], [])
        elif re.match(r"\s+[a-z]|\.?L\w+:", line):
            lines.append(line.strip().replace("\t", " "))
    return found


def innermost_loops(lines):
    """The instructions between a label and a jump back to it, where no other such pair lies."""
    places = {line[:-1]: k for k, line in enumerate(lines) if line.endswith(":")}
    jumps = ((places.get(line.split()[-1]), k) for k, line in enumerate(lines) if line[0] in "bct")
    spans = {(start, end) for start, end in jumps if start is not None and start < end}
    return [
        lines[start:end]
        for start, end in sorted(spans)
        if not any(start <= low and high <= end for low, high in spans - {(start, end)})
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemm", "skinny_gemm"])
def test_no_product_loop_stores_anything_and_the_widest_keeps_sixteen_sums(name, tmp_path):
    text = assembly(NATIVE / "ops" / f"{name}.cpp", tmp_path / f"{name}.s")
    every = [loop for lines in functions(text).values() for loop in innermost_loops(lines)]
    loops = [loop for loop in every if any(MULTIPLIES.match(line) for line in loop)]
    storing = [loop for loop in loops if any(STORES.match(line) for line in loop)]
    assert not storing, "\n".join(storing[0])
    sums = [sum(bool(MULTIPLIES.match(line)) for line in loop) for loop in loops]
    assert max(sums, default=0) >= 16, sums


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """The instructions of every access to the arena's words."""
    folder = tmp_path_factory.mktemp("words")
    (folder / "words.cpp").write_text(WORDS)
    found = functions(assembly(folder / "words.cpp", folder / "words.s"))
    return {name: "\n".join(lines) for name, lines in found.items()}


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("read", r"ldap?r x"),
        ("write", r"stlr x"),
        ("count", r"ldaddal x"),
        ("swap", r"casal x"),
        ("begin", r"(?s)str x.*dmb ish\b.*str x"),  # odd before the data
        ("end", r"(?s)str x.*stlr x"),  # even after it
        ("whole", r"(?s)dmb ishld.*ldap?r x"),  # read after the copy
    ],
)
def test_every_order_that_the_source_names_is_in_the_instructions(words, function, expected):
    assert re.search(expected, words[function]), words[function]
