"""Text that is safe to show on a terminal."""


def printable(text: str) -> str:
    """Return text that cannot move the cursor: a model of bytes may write control characters."""
    return "".join(c if c.isprintable() else " " for c in text)
