"""The text of a record: the keys with the text, and its bytes.

A record is a mapping of names to values: a line of `.jsonl`, or a row of a table or a data set.

    text, or content      the text itself
    prompt, completion    an example, of which the completion is learned
    messages              a conversation, one line for each message: role and content

JSON and CSV are read with lone surrogates for bytes that are not UTF-8; the text that is returned
has the original bytes.
"""

from __future__ import annotations

import codecs
import itertools
import shlex
from typing import Any

from mlxhog.data.examples import Example
from mlxhog.errors import DataError, shown

_EXAMPLE = ("prompt", "completion")
TEXT_KEYS = (("text",), ("content",), _EXAMPLE, ("messages",))
"""Keys of the text, the first that a record has; a `text_key` replaces them."""


def columns(text_key: str | None) -> tuple[str, ...]:
    """Return the keys of a record that may have its text."""
    return (text_key,) if text_key else tuple(itertools.chain(*TEXT_KEYS))


def text_keys(record: object, text_key: str | None) -> tuple[str, ...]:
    """Return the keys of a record that have its text; empty if it has no text."""
    if not isinstance(record, dict):
        return ()
    if text_key is not None:
        return (text_key,) if text_key in record else ()
    return next((keys for keys in TEXT_KEYS if all(key in record for key in keys)), ())


def record_text(record: object, text_key: str | None, where: str) -> bytes:
    """Return the text of a record; for a prompt and a completion, an `Example`.

    Args:
        record: a JSON value, or a row of a table.
        text_key: the key of the text; None looks for `TEXT_KEYS`.
        where: its file and line, for errors.

    Raises:
        DataError: the record has no text.
    """
    if isinstance(record, dict) and text_key is None and text_keys(record, None) == _EXAMPLE:
        parts = (_string(record, key, where) for key in _EXAMPLE)
        prompt, completion = (_normalise(_to_bytes(part)) for part in parts)
        if not completion.strip():
            raise DataError(
                f"{where}: the completion is empty, so there is nothing to learn; remove this line"
            )
        return Example(prompt, completion)
    return _normalise(_to_bytes(_text(record, text_key, where)))


def _text(record: object, text_key: str | None, where: str) -> str:
    if not isinstance(record, dict):
        raise DataError(f"{where}: {_json_type(record)}, expected an object with a key 'text'")
    keys = text_keys(record, text_key)
    if text_key is None and keys == ("messages",):
        return _conversation(record["messages"], where)
    key = text_key or "text"
    if not keys:
        known = ", ".join(shown(k) for k in list(record)[:20]) or "none"
        strings = [k for k, value in record.items() if isinstance(value, str)]
        longest = max(strings, key=lambda k: len(record[k]), default=None)
        way_out = "none of them has text"
        if longest is not None:
            way_out = f"name the key of the text: --text-key {shlex.quote(longest)}"
        raise DataError(f"{where}: no key {key!r}; keys are {known}; {way_out}")
    return _string(record, keys[0], where)


def _string(record: dict[str, Any], key: str, where: str) -> str:
    value = record[key]
    if not isinstance(value, str):
        raise DataError(
            f"{where}: {key!r} is {_json_type(value)}, expected text; repair or remove this record"
        )
    return value


def _json_type(value: object) -> str:
    """Name the type of a value in the words of JSON."""
    names = {bool: "true or false", int: "a number", float: "a number", str: "a text"}
    names |= {list: "a list", dict: "an object", type(None): "empty (null)"}
    return names.get(type(value), f"a {type(value).__name__}")


def _conversation(messages: object, where: str) -> str:
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise DataError(f"{where}: 'messages' must be a list of objects with role and content")
    turns = []
    for message in messages:
        missing = {"role", "content"} - message.keys()
        if missing:
            raise DataError(
                f"{where}: a message has no key {min(missing)!r}; each needs role and content"
            )
        turns.append(f"{_string(message, 'role', where)}: {_string(message, 'content', where)}")
    return "\n".join(turns)


def _to_bytes(text: str) -> bytes:
    try:
        return text.encode(errors="surrogateescape")
    except UnicodeEncodeError:  # an unpaired "\ud800" escape, which is not from a byte
        return text.encode(errors="replace")


def _normalise(text: bytes) -> bytes:
    return text.removeprefix(codecs.BOM_UTF8).replace(b"\r\n", b"\n")
