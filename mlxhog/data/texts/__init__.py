"""Files of the package: a text, tokenizers, a template; SOURCES.md says where they come from."""

from importlib import resources


def package_file(name: str) -> bytes:
    """Return the content of one of these files."""
    return resources.files(__name__).joinpath(name).read_bytes()
