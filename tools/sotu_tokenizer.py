"""Learn the tokenizer that the package ships, from the training documents of its text.

    python -m tools.sotu_tokenizer mlxhog/data/texts/sotu.tokenizer.json

It prints the digest, which stands in `mlxhog/data/tokenizers.py`, too.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

from mlxhog.base.durable import replace_file
from mlxhog.data.heldout import RULES, split
from mlxhog.data.sotu import read_sotu
from mlxhog.data.tokenizers import train_bpe

IDS = 4096


def training_texts() -> Iterator[bytes]:
    """Yield the documents that are not held out, by the default rule."""
    documents = (address.text.encode() for address in read_sotu())
    return (text for held_out, text in split(documents, RULES[0]) if not held_out)


def learn() -> bytes:
    """Return the `tokenizer.json`."""
    return train_bpe(training_texts(), IDS).files()["tokenizer.json"]


def main() -> None:
    """Write the file."""
    (out,) = sys.argv[1:]
    description = learn()
    replace_file(Path(out), description)
    print(f"{out}: {len(description):,} bytes, sha256 {hashlib.sha256(description).hexdigest()}")


if __name__ == "__main__":
    main()
