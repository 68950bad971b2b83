"""The text of a record: its keys and its bytes.

A record is a mapping of names to values: a line of `.jsonl`, or a row of a table or a data set.

    text, or content      the text itself
    prompt, completion    an example, whose loss is on the completion: two texts, or two lists of
                          messages; `PROMPTS` and `COMPLETIONS` have other names of the two
    messages              a conversation, whose loss is on the assistant's messages

A `text_key` names another key. Keys with commas, `QUESTION,REPLY`, are the parts of an example,
whose loss is on the last.
"""

import codecs
import importlib
import itertools
from collections.abc import Iterable, Mapping
from typing import Any, Self

from mlxhog.base.paths import expanded
from mlxhog.data import conversations
from mlxhog.errors import DataError, EnvironmentLacks, message_of, shown

_CONVERSATIONS = ("messages", "conversations")
TEXT_KEYS = (("text",), ("content",), ("prompt", "completion"), *((key,) for key in _CONVERSATIONS))
"""Keys of the text, by priority; then come examples with these names:"""
PROMPTS = ("prompt", "question", "instruction", "query", "problem")
MORE_OF_PROMPT = ("input", "context")
COMPLETIONS = ("completion", "answer", "response", "output", "solution", "chosen")
"""Keys of an example: its prompt, texts after the prompt, and its completion."""


class Example(bytes):
    """A document of alternating contexts and answers; the loss is computed on the answers.

    If no white space separates a context from its answer, a line break is added to the context.
    """

    lengths: tuple[int, ...]  # bytes of contexts and answers, in turns

    def __new__(cls, *pieces: bytes) -> Self:
        """Join contexts and answers, in turns; a last context has no answer."""
        parts = list(pieces)
        for k, (context, answer) in enumerate(zip(pieces[::2], pieces[1::2], strict=False)):
            if context and not context[-1:].isspace() and not answer[:1].isspace():
                parts[2 * k] += b"\n"
        example = super().__new__(cls, b"".join(parts))
        example.lengths = tuple(map(len, parts))
        return example

    def pieces(self) -> list[bytes]:
        """Return the contexts and answers, in turns."""
        ends = itertools.accumulate(self.lengths, initial=0)
        return [self[begin:end] for begin, end in itertools.pairwise(ends)]

    def turns(self) -> list[tuple[bytes, bytes]]:
        """Return each context with its answer."""
        pieces = self.pieces()
        return list(zip(pieces[::2], pieces[1::2], strict=False))


def text_keys(record: object, text_key: str | None) -> tuple[str, ...]:
    """Return the keys of a record's text; () if they are unknown.

    Several keys are an example's, the last its completion's.
    """
    if not isinstance(record, dict):
        return ()
    if text_key is not None:
        keys = (text_key,) if text_key in record else tuple(text_key.split(","))
        return keys if all(key in record for key in keys) else ()
    for keys in TEXT_KEYS:
        if all(key in record for key in keys):
            return keys
    names = (PROMPTS, MORE_OF_PROMPT, COMPLETIONS)
    prompts, more, completions = ([key for key in keys if key in record] for keys in names)
    if len(prompts) > 1 or len(completions) != 1 or not (prompts or more):
        return ()
    return (*prompts, *more, *completions)


def record_text(record: object, text_key: str | None, where: str) -> bytes:
    """Return the text of a record, an `Example` for completions and conversations.

    `where` is its file and line, for errors.

    Raises:
        DataError: the record has no text, or a conversation is malformed.
    """
    if not isinstance(record, dict):
        raise DataError(f"{where}: {shown(record)} is not an object with a key 'text'")
    keys = text_keys(record, text_key)
    if not keys:
        missing = next(one for one in (text_key or "text").split(",") if one not in record)
        known = ", ".join(shown(key) for key in list(record)[:20]) or "none"
        raise DataError(
            f"{where}: no key {missing!r}; keys are {known}; --text-key names the key of the text, "
            "or those of a prompt and its completion with a comma between them"
        )
    *context, key = keys
    messages = record[key]
    if context and all(isinstance(record[one], list) for one in keys):  # of messages, as in TRL
        given = [m for one in context for m in record[one]]
        messages = [*({**m, "weight": 0} if isinstance(m, dict) else m for m in given), *messages]
        context = []
    if not context and (key in _CONVERSATIONS or (isinstance(messages, list) and key != "text")):
        try:
            turns = conversations.pieces(messages)
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
        return Example(*map(_to_bytes, turns))
    texts = list[bytes]()
    for one in (*(name for name in context if record[name] or name not in MORE_OF_PROMPT), key):
        if not isinstance(value := record[one], str):
            raise DataError(
                f"{where}: {one!r} is {shown(value)}, expected text; repair or remove this record"
            )
        texts.append(plain(_to_bytes(value)))
    if not context:
        return texts[0]
    if not texts[-1].strip():
        raise DataError(f"{where}: the completion is empty, so there is no loss; remove this line")
    return Example(b"\n".join(texts[:-1]), texts[-1])


def _to_bytes(text: str) -> bytes:
    return text.encode(errors="replace")  # JSON may have half a character, "\ud800"


def plain(text: bytes) -> bytes:
    """Return a text as training reads it: without a byte-order mark, CRLF as LF."""
    return text.removeprefix(codecs.BOM_UTF8).replace(b"\r\n", b"\n")


def columns(names: Iterable[str], text_key: str | None) -> list[str]:
    """Return the columns of a table's text; all if they are unknown."""
    names = list(names)
    return [*text_keys(dict.fromkeys(names), text_key)] or names


def package(module: str, what: str, install: str = "") -> Any:
    """Import an optional package, which pip installs as `install` or by the module's name.

    Raises:
        EnvironmentLacks: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        name = module.partition(".")[0]
        raise EnvironmentLacks(
            f"{what} needs {name}, which is not installed: python -m pip install {install or name}"
        ) from error


def data_set(name: str) -> tuple[str, Mapping[str, Any]]:
    """Return the name of a data set of the package `datasets`, and its splits.

    Raises:
        DataError: there is no such data set, it cannot be loaded, or it has no split to train on.
        EnvironmentLacks: the package is not installed.
    """
    name, _, subset = name.partition(",")
    folder = expanded(name)
    where = str(folder.absolute()) if folder.exists() else name
    source = f"hf:{where}" + (f",{subset}" if subset else "")
    datasets = package("datasets", f"--data hf:{name}")
    datasets.disable_progress_bars()
    try:
        if any((folder / file).is_file() for file in ("dataset_dict.json", "state.json")):
            splits = datasets.load_from_disk(where)
        else:
            config = datasets.load_dataset_builder(where, subset or None).config
            # In CSV the texts null, NA and None stay texts; the default makes them empty.
            options = {"keep_default_na": False} if hasattr(config, "keep_default_na") else {}
            splits = datasets.load_dataset(where, subset or None, **options)
    except Exception as error:  # its readers and the network raise errors of any type
        causes: list[BaseException] = [error]
        while cause := causes[-1].__cause__ or causes[-1].__context__:  # the first says most
            causes.append(cause)
        raise DataError(
            f"the data set {source} cannot be loaded: "
            f"{': '.join(dict.fromkeys(map(message_of, causes)))}; name one on the hub "
            "(hf:OWNER/NAME, hf:OWNER/NAME,SUBSET) or a folder"
        ) from error
    splits = splits if isinstance(splits, dict) else {"train": splits}
    if "train" not in splits and len(splits) > 1:
        raise DataError(
            f"the data set {source} has no split 'train'; its splits are "
            f"{', '.join(map(shown, splits))}; save the one to train on as 'train'"
        )
    return source, splits
