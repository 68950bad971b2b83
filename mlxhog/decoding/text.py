"""Text of prompts and stop strings as people write them, and text from tokens as they come."""

from __future__ import annotations

import codecs
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from mlxhog.config import limits
from mlxhog.data.tokenizers import Tokenizer
from mlxhog.errors import ConfigError
from mlxhog.files import plain_json

_ESCAPES = {r"\n": "\n", r"\t": "\t", r"\\": "\\"}


class TextStream:
    """Turns one answer's tokens into text that will not have to be taken back.

    A character whose bytes come in several tokens is held back until its last one; bytes that are
    not UTF-8 become U+FFFD. What may be the beginning of a stop string is held back until it is
    one, and then dropped with everything after it, or is not. The pieces, joined, are the decoded
    text up to the first stop string.

    Args:
        tokenizer: of the model.
        stop: texts that end the answer and are no part of it.

    Raises:
        ConfigError: a stop string is empty.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        if "" in stop:
            raise ConfigError("a stop string is empty, which would end every answer; leave it out")
        self.stopped = False
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""

    def read(self, token: int) -> str:
        """Return the text that this token makes certain; sets `stopped` at a stop string."""
        return self._certain(self._decoder.decode(self._tokenizer.decode([token])))

    def end(self) -> str:
        """Return what was held back, the answer being over."""
        text = self._certain(self._decoder.decode(b"", final=True)) + self._held
        self._held = ""
        return text

    def _certain(self, piece: str) -> str:
        if self.stopped or not self._stop:
            return "" if self.stopped else piece
        text = self._held + piece
        ends = [at for at in map(text.find, self._stop) if at >= 0]
        if ends:
            self.stopped, self._held = True, ""
            return text[: min(ends)]
        certain = len(text) - max(_overlap(text, stop) for stop in self._stop)
        self._held = text[certain:]
        return text[:certain]


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that begins `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next(n for n in range(longest, -1, -1) if text.endswith(stop[:n]))


def stream_text(tokenizer: Tokenizer, tokens: Iterable[int]) -> Iterator[str]:
    """Yield the text of tokens as soon as its characters are whole."""
    stream = TextStream(tokenizer)
    for token in tokens:
        if piece := stream.read(token):
            yield piece
    if rest := stream.end():
        yield rest


def read_prompt(spec: str) -> str:
    """Return the text that `--prompt` means: a text, - for standard input, or @FILE.

    Raises:
        ConfigError: the file cannot be read, or is not UTF-8 text.
    """
    if spec == "-":
        return _read_input("--prompt -")
    if spec.startswith("@"):
        return _read_file("--prompt", Path(spec[1:]))
    return from_shell("--prompt", spec)


def read_prompts(spec: str) -> list[str]:
    """Return the prompts that `--prompt-file` means; lines of white space alone are none.

    Args:
        spec: a text file with a prompt per line; FILE.jsonl with objects {"prompt": TEXT}, whose
            texts may hold newlines; or - for lines of standard input.

    Raises:
        ConfigError: the file cannot be read, is not UTF-8 text, holds no prompt, or a line is not
            such an object.
    """
    text = (
        _read_input("--prompt-file -") if spec == "-" else _read_file("--prompt-file", Path(spec))
    )
    lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise ConfigError(f"--prompt-file {spec}: holds no prompts; write one per line")
    if not spec.endswith(".jsonl"):
        return [line.removesuffix("\r") for _, line in lines]
    return [_from_json(f"{spec}:{n}", line) for n, line in lines]


def from_shell(flag: str, word: str) -> str:
    r"""Return a word of the command line as text.

    Raises:
        ConfigError: it is not UTF-8 text.
    """
    try:
        return os.fsencode(word).decode()  # the shell may pass any bytes
    except UnicodeDecodeError as error:
        raise ConfigError(f"{flag} {ascii(word)}: not UTF-8 text") from error


def stop_string(word: str) -> str:
    r"""Return the stop string that `--stop` means, in which \n, \t and \\ are escapes.

    Raises:
        ConfigError: it is empty, or not UTF-8 text.
    """
    if not word:
        raise ConfigError("--stop is empty, which would end every answer at once; leave it out")
    return re.sub(r"\\[nt\\]", lambda match: _ESCAPES[match[0]], from_shell("--stop", word))


def _from_json(where: str, line: str) -> str:
    try:
        value = plain_json.loads(line)
    except ValueError as error:
        raise ConfigError(f'{where}: not JSON ({error}); wanted {{"prompt": "..."}}') from error
    prompt = value.get("prompt") if isinstance(value, dict) else None
    if not isinstance(prompt, str):
        raise ConfigError(f'{where}: wanted {{"prompt": "..."}}, got {line.strip()[:60]}')
    return prompt


def _read_input(what: str) -> str:
    try:
        text = sys.stdin.read()
        text.encode()  # under some locales, bytes that are no UTF-8 come as halves of characters
        return text
    except UnicodeError as error:
        raise ConfigError(f"{what}: standard input is not UTF-8 text") from error


def _read_file(flag: str, path: Path) -> str:
    try:
        return limits.read_bytes(path).decode()
    except OSError as error:
        raise ConfigError(f"{flag} {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{flag} {path}: not UTF-8 text") from error
    except ValueError as error:
        raise ConfigError(f"{flag} {path}: {error}") from error
