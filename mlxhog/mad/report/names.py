"""Layer sequences in as few characters as a column has."""

from __future__ import annotations

from collections.abc import Sequence

ELLIPSIS = "…"


def folded(layers: Sequence[str]) -> str:
    """Spell a sequence with its repeats counted: (mlstm swiglu)*7 slstm swiglu."""
    parts: list[str] = []
    i = 0
    while i < len(layers):
        size, times = _repeat(layers, i)
        group = " ".join(layers[i : i + size])
        if times == 1:
            parts.append(group)
        else:
            parts.append(f"({group})*{times}" if size > 1 else f"{group}*{times}")
        i += size * times
    return " ".join(parts)


def _repeat(layers: Sequence[str], start: int) -> tuple[int, int]:
    """The group at `start` that covers most layers by repeating: its size and how often."""
    best = (1, 1)
    for size in range(1, (len(layers) - start) // 2 + 1):
        group, times = layers[start : start + size], 1
        while layers[start + size * times : start + size * (times + 1)] == group:
            times += 1
        if times > 1 and size * times > best[0] * best[1]:
            best = (size, times)
    return best


def short(candidate: str, width: int) -> str:
    """Return a canonical string: folded if it is too long, cut in the middle if it still is."""
    if len(candidate) <= width:
        return candidate
    text = folded(candidate.split())
    if len(text) <= width:
        return text
    if width <= 1:
        return ELLIPSIS[:width]
    tail = (width - 1) // 2
    return text[: width - 1 - tail] + ELLIPSIS + text[len(text) - tail :]
