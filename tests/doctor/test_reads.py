"""Readers beside a writer: ours see whole values, in order and soon; bad ones are caught."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from mlxhog.doctor import accessors, reads
from mlxhog.doctor.accessors import Accessor
from mlxhog.doctor.litmus import Litmus
from mlxhog.machine.machine import Machine
from tests.doctor.planted import NATIVE, planted

pytestmark = pytest.mark.slow

LINUX = Machine("linux", "x86_64", 2, 8 << 30, "", frozenset({"mlx", "torch"}))
READERS = accessors.all_readers(LINUX)


@pytest.fixture(scope="module")
def litmus() -> Iterator[Litmus]:
    made = Litmus(0.04)
    yield made
    made.close()


@pytest.mark.parametrize("mode", reads.MODES)
@pytest.mark.parametrize(
    ("kind", "reader"), READERS, ids=[f"{kind} {reader.name}" for kind, reader in READERS]
)
def test_readers_see_whole_values_in_order(
    litmus: Litmus, kind: str, reader: Accessor, mode: str
) -> None:
    row = reads.try_reader(litmus, kind, reader, NATIVE, mode)
    assert "error" not in row
    assert row["samples"] > 0
    assert (row["torn"], row["backwards"]) == (0, 0)
    assert 0 < row["visible_s"] < 10


def test_the_two_values_of_the_tear_test_have_no_byte_in_common() -> None:
    low, high = (np.float32(value).tobytes() for value in (reads.LOW, reads.HIGH))
    assert not set(low) & set(high)
    step = np.float32(reads.HIGH - reads.LOW)
    assert np.float32(reads.LOW) + step == np.float32(reads.HIGH)
    assert np.float32(reads.HIGH) - step == np.float32(reads.LOW)


def test_a_reader_of_torn_values_is_caught(litmus: Litmus) -> None:
    row = reads.try_reader(litmus, "snapshot", planted("TornReader"), NATIVE, "lossless")
    assert row["torn"] > 0


def test_a_reader_of_old_values_is_caught(litmus: Litmus) -> None:
    row = reads.try_reader(litmus, "snapshot", planted("OldReader"), NATIVE, "lossless")
    assert row["backwards"] > 0


def test_a_reader_that_never_sees_a_write_is_told(litmus: Litmus) -> None:
    row = reads.try_reader(litmus, "live", planted("BlindReader"), NATIVE, "lossless")
    assert "not seen within" in row["error"]
