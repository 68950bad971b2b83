"""Token files of documents, for tests."""

from mlxhog.data.tokenizers import ByteTokenizer
from mlxhog.data.tokens import TokenFile, TokenWriter


def token_file(folder, documents, tokenizer=None):
    """The open token file of some documents; by default of the tokenizer of bytes."""
    path = folder / "text.bin"
    with TokenWriter(path, tokenizer or ByteTokenizer(), split="train", source="test") as writer:
        for document in documents:
            writer.add(document)
    return TokenFile.open(path)
