"""Prompts and stop strings as people write them: on the command line, in files, as JSON lines."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from mlxhog.config import limits
from mlxhog.errors import ConfigError
from mlxhog.files import plain_json

_ESCAPES = {r"\n": "\n", r"\t": "\t", r"\\": "\\"}


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
    return re.sub(r"\\[nt\\]", lambda found: _ESCAPES[found[0]], from_shell("--stop", word))


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
