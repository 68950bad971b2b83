"""Examples in a command's help are valid command lines."""

import contextlib
import shlex
from pathlib import Path

import pytest

from mlxhog.cli import COMMANDS, mad, main
from mlxhog.cli.flags import Flags
from mlxhog.config.options import options
from mlxhog.config.sources import resolve
from tests.pairs import each_of

ROOT = Path(__file__).parents[2]
FOLDERS = ("docs", "examples", "models", "tests")
HELPS = ("", *COMMANDS, *(f"mad {name}" for name in mad.COMMANDS))
LEAVES = ("runs rm", "cluster numa")  # commands that are in no list


class CommandLineRead(Exception):
    """Ends a command after its arguments were read."""


@pytest.fixture
def only_parses(monkeypatch):
    """Let every command end after the check of its flags and values."""
    classes = {}
    add, parse = Flags.options, Flags.parse

    def options_of(self, cls, *how, **named):
        classes.setdefault(self, []).append(cls)
        add(self, cls, *how, **named)

    def parsed(self, arguments):
        line = parse(self, arguments)
        assert line.problems == []
        for cls in classes.get(self, []):
            resolve(cls, [{n: value for n, value in line.values.items() if n in options(cls)}])
        raise CommandLineRead

    monkeypatch.setattr(Flags, "options", options_of)
    monkeypatch.setattr(Flags, "parse", parsed)


def examples(text):
    """Yield the words of each example of a help, without the part for the shell."""
    for line in text.partition("\nexamples:\n")[2].splitlines():
        if line.startswith("  mlxhog "):
            lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            words = list(lexer)
            ends = [at for at, word in enumerate(words) if set(word) <= set(";<>|&")]
            yield words[1 : min(ends, default=len(words))]


@each_of("name", [*HELPS, *LEAVES])
def test_every_example_of_a_help_can_be_typed(name, only_parses, capsys):
    with contextlib.suppress(SystemExit):
        main([*name.split(), "--help"])
    lines = list(examples(capsys.readouterr().out))
    assert lines
    for words in lines:
        if words == ["classic"]:
            continue  # lists the problems
        with pytest.raises(CommandLineRead):
            main(words)
        for word in words:
            assert not word.endswith("/latest"), f"{words}: latest is the name of a run by itself"
            in_tree = word.split("/")[0] in FOLDERS and "/" in word
            assert not in_tree or (ROOT / word).exists(), f"{words}: there is no {word}"
