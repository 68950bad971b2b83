"""Files of texts, token files of documents, and what they hold, for tests."""

import numpy as np

from mlxhog.data.tokenizers import ByteTokenizer
from mlxhog.data.tokens import TokenFile, TokenWriter


def written(folder, contents):
    """A folder with files of these contents: name -> text or bytes."""
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def token_file(folder, documents, tokenizer=None):
    """The open token file of some documents; by default of the tokenizer of bytes."""
    folder.mkdir(exist_ok=True)
    path = folder / "text.bin"
    with TokenWriter(path, tokenizer or ByteTokenizer(), split="train", source="test") as writer:
        for document in documents:
            writer.add(document)
    return TokenFile.open(path)


def text_of(file):
    """All text of a token file of bytes."""
    return bytes(ByteTokenizer().decode(np.asarray(file.tokens)))


def documents_of(corpus, *, validation=False):
    """The training documents of a corpus, or its own validation ones."""
    return [text for one in corpus.parts if one.validation == validation for text in one.read()]
