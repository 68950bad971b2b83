"""The text of a record: the keys with the text, and its bytes.

A record is a mapping of names to values: a line of `.jsonl`, or a row of a table or a data set.

    text, or content      the text itself
    prompt, completion    an example, of which the completion is learned; other names of the two
                          are in `PROMPTS` and `COMPLETIONS`
    messages              a conversation, of which the assistant's messages are learned, see
                          `mlxhog.data.conversations`; or the name `conversations`

A `text_key` names another key. Several keys with commas, `QUESTION,REPLY`, are the parts of an
example, of which the last is learned.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any, NoReturn

from mlxhog.data import conversations
from mlxhog.data.examples import Example
from mlxhog.errors import DataError, shown

_CONVERSATIONS = ("messages", "conversations")
TEXT_KEYS = (("text",), ("content",), ("prompt", "completion"), *((key,) for key in _CONVERSATIONS))
"""Keys of the text, the first that a record has; then an example of these names:"""
PROMPTS = ("prompt", "question", "instruction", "query", "problem")
MORE_OF_PROMPT = ("input", "context")
COMPLETIONS = ("completion", "answer", "response", "output", "solution", "chosen")
"""Names of the keys of an example: its prompt, texts behind the prompt, and its completion."""


def columns(names: Sequence[str], text_key: str | None) -> Sequence[str]:
    """Return the columns of a table that have the text of its rows; all if they are unknown."""
    return text_keys(dict.fromkeys(names), text_key) or names


def text_keys(record: object, text_key: str | None) -> tuple[str, ...]:
    """Return the keys of a record that have its text; empty if they are unknown.

    Several keys are those of an example; the last is that of its completion.
    """
    if not isinstance(record, dict):
        return ()
    if text_key is not None:
        keys = (text_key,) if text_key in record else tuple(text_key.split(","))
        return keys if all(key in record for key in keys) else ()
    for keys in TEXT_KEYS:
        if all(key in record for key in keys):
            return keys
    prompts = [key for key in PROMPTS if key in record]
    more = [key for key in MORE_OF_PROMPT if key in record]
    completions = [key for key in COMPLETIONS if key in record]
    if len(prompts) > 1 or len(completions) != 1 or not (prompts or more):
        return ()
    return (*prompts, *more, *completions)


def record_text(record: object, text_key: str | None, where: str) -> bytes:
    """Return the text of a record; for a prompt and a completion or a conversation, an `Example`.

    Args:
        record: a JSON value, or a row of a table.
        text_key: the key of the text, or keys with commas; None looks for the usual ones.
        where: its file and line, for errors.

    Raises:
        DataError: the record has no text, or a conversation is malformed.
    """
    if not isinstance(record, dict):
        raise DataError(f"{where}: {_json_type(record)}, expected an object with a key 'text'")
    *context, key = text_keys(record, text_key) or _unknown(record, text_key, where)
    if context:
        texts = [one for one in context if record[one] or one not in MORE_OF_PROMPT]
        parts = [_normalise(_string(record, one, where)) for one in texts]
        completion = _normalise(_string(record, key, where))
        if not completion.strip():
            raise DataError(
                f"{where}: the completion is empty, so there is nothing to learn; remove this line"
            )
        return Example(b"\n".join(parts), completion)
    if key in _CONVERSATIONS or (isinstance(record[key], list) and key != "text"):
        try:
            turns = conversations.pieces(record[key])
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
        return Example(*map(_to_bytes, turns))
    return _normalise(_string(record, key, where))


def _unknown(record: dict[str, Any], text_key: str | None, where: str) -> NoReturn:
    """Refuse a record whose text is under unknown keys.

    Raises:
        DataError: always; it lists the keys, and says how to name those of the text.
    """
    missing = next(one for one in (text_key or "text").split(",") if one not in record)
    known = ", ".join(shown(key) for key in list(record)[:20])
    raise DataError(
        f"{where}: no key {missing!r}; "
        + (f"keys are {known}; " if known else "")
        + "--text-key names the key of the text, or those of a prompt and its completion with a "
        "comma between them"
    )


def _string(record: dict[str, Any], key: str, where: str) -> bytes:
    value = record[key]
    if not isinstance(value, str):
        raise DataError(
            f"{where}: {key!r} is {_json_type(value)}, expected text; repair or remove this record"
        )
    return _to_bytes(value)


def _json_type(value: object) -> str:
    """Name the type of a value in the words of JSON."""
    names = {bool: "true or false", int: "a number", float: "a number", str: "a text"}
    names |= {list: "a list", dict: "an object", type(None): "empty (null)"}
    return names.get(type(value), f"a {type(value).__name__}")


def _to_bytes(text: str) -> bytes:
    return text.encode(errors="replace")  # JSON may have half a character, "\ud800"


def _normalise(text: bytes) -> bytes:
    return text.removeprefix(codecs.BOM_UTF8).replace(b"\r\n", b"\n")
