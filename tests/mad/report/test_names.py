import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxhog.mad.report.board import folded, short

SEQUENCES = st.lists(st.sampled_from(["mlstm", "swiglu", "slstm"]), min_size=1, max_size=12)


def unfolded(text: str) -> list[str]:
    found = []
    for group, one, times in re.findall(r"(?:\(([^)]*)\)|(\S+?))(?:\*(\d+))?(?:\s|$)", text):
        found += (group or one).split() * int(times or 1)
    return found


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        ("mlstm swiglu slstm swiglu", "mlstm swiglu slstm swiglu"),
        ("mlstm swiglu mlstm swiglu", "(mlstm swiglu)*2"),
        ("mlstm swiglu " * 7 + "slstm swiglu", "(mlstm swiglu)*7 slstm swiglu"),
        ("mlstm mlstm mlstm", "mlstm*3"),
    ],
)
def test_repeats_are_counted(layers, text):
    assert folded(layers.split()) == text


@given(SEQUENCES)
def test_a_folded_sequence_unfolds_to_itself(layers):
    assert unfolded(folded(layers)) == layers


@given(SEQUENCES, st.integers(0, 40))
def test_a_shortened_sequence_fits_its_column(layers, width):
    assert len(short(" ".join(layers), width)) <= width
