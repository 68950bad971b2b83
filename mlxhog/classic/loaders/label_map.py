"""How the labels of a file become those of a problem: `--labels 0=-1,1=+1`."""

from __future__ import annotations

from mlxhog.errors import ConfigError


def parse_label_map(text: str | None) -> dict[float, float] | None:
    """Return what each label becomes, or None where labels stay as they are.

    Args:
        text: pairs FOUND=WANTED by commas, such as "1=-1,2=+1".

    Raises:
        ConfigError: `text` is no such list.
    """
    if text is None:
        return None
    mapping: dict[float, float] = {}
    for pair in text.split(","):
        found, equals, wanted = pair.partition("=")
        try:
            if not equals:
                raise ValueError
            label = float(found)
            becomes = float(wanted)
        except ValueError:
            raise ConfigError(
                f"--labels has {pair!r}; wanted FOUND=WANTED by commas, such as 0=-1,1=+1"
            ) from None
        if label in mapping:
            raise ConfigError(f"--labels maps {label:g} twice")
        mapping[label] = becomes
    return mapping
