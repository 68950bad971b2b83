"""Files made hostile: bytes turned, texts and numbers replaced; reproducibly.

`mutate(content, rng)` gives another content for any file. What it does depends on what the file
is: a structured one is also taken apart and put together again around a changed part, so that
lengths fit and the damage reaches the code behind them.
"""

import json
import re

NASTY = (
    None, True, -1, 0, 1, 255, 2**31, 2**32, 2**53, 2**64, -(10**16), 9_000_000_000_000_000,
    10**400, 0.5, 1e-320, 1e308, float("nan"), float("inf"), "", " ", "\u00e9", "\0",
    "\x1b[31m", "../../etc/passwd", "/", "nan", "1e999", "9" * 5000, "x" * 20_000, "[" * 50,
    "\ud800", [], {}, [[]], [None], [0] * 300, ["x" * 200] * 50, {"": None}, {"type": "x"}, "DEEP",
    "LONG",
)  # fmt: skip
"""Values in place of others."""

WORDS = (
    "null", "true", "-1", "0", "65536", "9e15", "9" * 5000, "-0", "1e999", ".inf", ".nan", "NaN",
    "2024-01-01", "!!int z", "!!binary =", "!!set {a}", "!!python/object:os.system x", "&a [*a]",
    "*a", "<<", "0x" + "f" * 400, "0o777", "1:2:3", "1_000", "[", "}", "[" * 3000, "{a: " * 200,
    "'", '"', "|", "? ", ": ", "- ", "\t", "...", "---", "%YAML 9999999999.1", '"\\ud800"',
    '"\\UFFFFFFFF"', "\x00", "\x1b[2J", "\ufeff", "\u2028", "x" * 10_000, "a" + "*9" * 30,
    "(" * 100, "mlstm*999999999", "h" + "9" * 50, "::", "0:1", "1e40", "--", ";", ",", "\r",
    "\n", "",
)  # fmt: skip
"""Text in place of other text."""

BOMB = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    + [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" for k in range(1, 10)]
)
WHOLE = (
    b"", b"\0", b"\n", b"\xff\xfe", b"\xef\xbb\xbf", b"\x80" * 50, b"\0" * 4096, b"{", b"[]",
    b"null", b'"x"', b"[" * 200_000, b"NaN", b"9" * 5000, b'{"a":' * 3000, BOMB.encode(),
    b"- " * 3000, b"\x1f\x8b", b"PK\x03\x04", b"PK\x05\x06" + b"\0" * 18, b"\xfd7zXZ\0",
    b"\x93NUMPY", b"version https://git-lfs.github.com/spec/v1\n", b"\x80\x02.",
    b"\xff" * 8 + b"{}", b"\x08" + b"\0" * 7 + b"{}      ",
)  # fmt: skip
"""A file that is something else altogether."""

_TOKEN = re.compile(r"-?\d[\d_.eE+-]*|\"[^\"\n]*\"|[\w./-]+")


def mutate(content, rng):
    """Return another content than `content`, with one to a few changes."""
    if rng.random() < 0.03:
        return rng.choice(WHOLE)
    ways = [_bytes] * 5
    if content[8:9] == b"{" and 2 <= int.from_bytes(content[:8], "little") <= len(content) - 8:
        ways += [_reheader] * 8  # safetensors
    elif content[:1] in (b"{", b"["):
        ways += [_restructure] * 8 + [_reword] * 3
    elif b"\0" not in content[:1000]:
        ways += [_reword] * 10
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        content = rng.choice(ways)(content, rng)
    return content


def _bytes(content, rng):
    """Turn a bit, or take out, insert, overwrite or double bytes, rather near the beginning."""
    end = min(rng.choice((16, 128, len(content))), len(content))  # there are headers
    at, n = rng.randrange(end + 1), rng.choice((1, 2, 8, 100))
    ones = rng.choice((b"\xff" * 8, b"\xff" * 4, b"\0" * 8, b"\x7f" + b"\xff" * 3, b"\0\0\0\x80"))
    turned = bytes(byte ^ 1 << rng.randrange(8) for byte in content[at : at + 1])
    return content[:at] + rng.choice((
        turned + content[at + 1 :], b"", content[at + n :], rng.randbytes(n) + content[at:],
        ones + content[at + len(ones) :], content[max(0, at - n) :],
    ))  # fmt: skip


def _reword(content, rng):
    """Replace a word, a number or a quoted text."""
    text = content.decode("utf-8", "surrogateescape")
    results = list(_TOKEN.finditer(text[:200_000]))
    if not results:
        return rng.choice(WORDS).encode("utf-8", "surrogatepass")
    one = rng.choice(results)
    word = rng.choice(results)[0] if rng.random() < 0.2 else rng.choice(WORDS)
    changed = text[: one.start()] + word + text[one.end() :]
    return changed.encode("utf-8", "surrogateescape")


def _restructure(content, rng):
    """Replace, remove or wrap a value of JSON, or of one line of JSON lines."""
    lines = content.split(b"\n")
    number = rng.randrange(len(lines))
    for whole in (True, False):
        try:
            value = json.loads(content if whole else lines[number])
        except (ValueError, RecursionError):
            continue
        text = json.dumps(changed(value, rng))
        text = text.replace('"DEEP"', "[" * 3000 + "]" * 3000).replace('"LONG"', "9" * 5000)
        lines = [text.encode()] if whole else [*lines[:number], text.encode(), *lines[number + 1 :]]
        return b"\n".join(lines)
    return _reword(content, rng)


def changed(value, rng):
    """Return a plain value with another value at one of its places."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.05:
        return [value] if rng.random() < 0.1 else rng.choice(NASTY)
    if isinstance(value, list):
        at = rng.randrange(len(value))
        if rng.random() < 0.1:
            return value[:at]
        return [*value[:at], changed(value[at], rng), *value[at + 1 :]]
    name, roll = rng.choice(list(value)), rng.random()
    if roll < 0.1:
        return {key: one for key, one in value.items() if key != name}
    if roll < 0.15:
        return {rng.choice(("", "x", "\x1b[1m", "../x", name * 2)): value[name], **value}
    return value | {name: changed(value[name], rng)}


def _reheader(content, rng):
    """Change the header of a safetensors file, and give its length anew."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = _restructure(content[8:end], rng)
    return len(header).to_bytes(8, "little") + header + content[end:]
