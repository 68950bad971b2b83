"""A log of a stranger unpacks to no more than its run's arena, and is refused in one sentence."""

import struct
import zlib

import numpy as np
import pytest

from mlxhog.arena import event_log
from mlxhog.arena.event_log import Begin, RecordedStep, StepMetadata, Torn
from mlxhog.errors import RunError
from mlxhog.training.supervisor import replay
from tests.pairs import each_of

BEGIN = Begin("torch:cpu", 2, "native")
NUMBERS = StepMetadata(0, 1, 2, 1, 0.0)
STEP = RecordedStep(NUMBERS, True, np.arange(100, dtype=np.uint32), b"digest")


def of_bytes(kind, *contents):
    """A record with fields of these bytes, and the right check sum."""
    payload = bytes([kind]) + b"".join(struct.pack("<I", len(one)) + one for one in contents)
    return struct.pack("<II", len(payload), zlib.crc32(payload)) + payload


ZEROS = zlib.compress(bytes(1 << 20), 9)  # a thousandth
DAMAGED = {
    "accesses that unpack to a thousand times their size": event_log.encode(
        RecordedStep(NUMBERS, True, np.zeros(1 << 18, np.uint32))
    ),
    "weights that do": event_log.encode(Torn(NUMBERS, True, False, STEP.accesses, bytes(1 << 20))),
    "a field that is cut": of_bytes(1, NUMBERS.pack(), b"\1", ZEROS[:50], b""),
    "no zlib": of_bytes(1, NUMBERS.pack(), b"\1", b"abc", b""),
    "no kind": of_bytes(9),
    "nothing": struct.pack("<II", 0, 0),
    "fewer fields": of_bytes(1, NUMBERS.pack()),
    "short numbers": of_bytes(1, b"123", b"\1", ZEROS, ZEROS),
    "no text": of_bytes(0, b"\xff", struct.pack("<I", 1), b""),
    "four billion threads": of_bytes(0, b"torch:cpu", b"\xff\xff\xff\xff", b""),
}


def test_a_log_has_the_records_that_were_written(tmp_path):
    records = [BEGIN, STEP, Torn(NUMBERS, True, True, STEP.accesses, b"floats", b"private")]
    for record in records:
        event_log.append(tmp_path / "log", record)
    found = [event_log.encode(record) for record in event_log.read(tmp_path / "log", 400)]
    assert found == [event_log.encode(record) for record in records]


@each_of("content", DAMAGED.values(), ids=DAMAGED)
def test_a_log_that_is_no_log_or_unpacks_to_more_than_an_arena_is_refused(tmp_path, content):
    path = tmp_path / "log"
    path.write_bytes(event_log.encode(BEGIN) + content)
    with pytest.raises(RunError, match=r"log is cut or damaged: .*copy the run's folder again"):
        list(event_log.read(path, 100_000))


def test_a_log_that_begins_with_a_step_is_refused(tmp_path):
    path = event_log.worker_path(tmp_path, 1)
    path.parent.mkdir()
    path.write_bytes(event_log.encode(STEP))
    with pytest.raises(RunError, match="begins with a step, and not with its worker"):
        replay.processes(tmp_path, 1)
