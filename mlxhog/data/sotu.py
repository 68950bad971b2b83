"""The text in the package: 233 State of the Union addresses, from 1790 to now."""

from __future__ import annotations

import hashlib
import importlib.resources
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mlxhog.errors import DataError

SOTU = "sotu"
"""Its name, as a corpus."""
SOTU_FILE = "sotu.jsonl.xz"
SOTU_SHA256 = "ab8e008677790ccf7f1d8db07098de8259e0500055fdd62d7e7632412854c2ac"
"""SHA-256 over the UTF-8 texts, in order, joined by one zero byte."""


@dataclass(frozen=True)
class Address:
    """One address: its speaker, party and year, and its text on one line."""

    year: int
    name: str
    party: str
    text: str


def sotu_digest(addresses: Iterable[Address]) -> str:
    """Return the hexadecimal digest of addresses, to compare with `SOTU_SHA256`."""
    return hashlib.sha256(b"\0".join(a.text.encode() for a in addresses)).hexdigest()


def read_sotu() -> list[Address]:
    """Return the shipped addresses in chronological order.

    Raises:
        DataError: the shipped file is missing or damaged; reinstalling the package repairs it.
    """
    file = importlib.resources.files("mlxhog") / "data" / "texts" / SOTU_FILE
    import lzma  # which a Python may lack, see `textfiles`

    try:
        lines = lzma.decompress(file.read_bytes()).splitlines()
        addresses = [Address(**json.loads(line)) for line in lines]
    except (OSError, EOFError, lzma.LZMAError, ValueError, TypeError) as error:
        raise DataError(
            f"the embedded corpus {SOTU_FILE} cannot be read ({error}); reinstall mlxhog"
        ) from error
    check_addresses(addresses, f"the embedded corpus {SOTU_FILE}", "reinstall mlxhog")
    return addresses


def documents() -> Iterator[bytes]:
    """Yield the text of every address."""
    return (address.text.encode() for address in read_sotu())


def check_addresses(addresses: list[Address], what: str, way_out: str) -> None:
    """Refuse every text except version 0.2.3 of sotu.

    Raises:
        DataError: `what` has another text; the message ends with `way_out`.
    """
    digest = sotu_digest(addresses)
    if digest != SOTU_SHA256:
        raise DataError(
            f"{what} holds {len(addresses)} addresses with digest {digest}, "
            f"expected 233 with {SOTU_SHA256}; {way_out}"
        )
