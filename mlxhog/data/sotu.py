"""The bundled corpus: 233 State of the Union addresses, from 1790 to now."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

from mlxhog.data.texts import package_file

SOTU = "sotu"  # its name, as a corpus
SOTU_FILE = "sotu.jsonl.xz"
SOTU_SHA256 = "ab8e008677790ccf7f1d8db07098de8259e0500055fdd62d7e7632412854c2ac"
"""SHA-256 over the UTF-8 texts, in order, joined by one zero byte."""


@dataclass(frozen=True)
class Speech:
    """One address: its speaker, party and year, and its text on one line."""

    year: int
    name: str
    party: str
    text: str


def read_sotu() -> list[Speech]:
    """Return the shipped addresses in chronological order."""
    import lzma  # which a Python may lack, see `textfiles`

    lines = lzma.decompress(package_file(SOTU_FILE)).splitlines()
    return [Speech(**json.loads(line)) for line in lines]


def documents() -> Iterator[bytes]:
    """Yield the text of every address."""
    return (address.text.encode() for address in read_sotu())
