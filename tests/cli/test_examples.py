"""Examples in a command's help are valid command lines."""

import contextlib
import shlex
from pathlib import Path

from mlxhog.cli import find, main, names
from tests.pairs import each_of

ROOT = Path(__file__).parents[2]
FOLDERS = ("docs", "examples", "models", "tests")


def examples(text):
    """Yield the words of each example of a help, without the part for the shell."""
    for line in text.partition("\nexamples:\n")[2].splitlines():
        if line.startswith("  mlxhog "):
            lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            words = list(lexer)
            ends = [at for at, word in enumerate(words) if set(word) <= set(";<>|&")]
            yield words[1 : min(ends, default=len(words))]


@each_of("name", ["", "mad", *names()])
def test_every_example_of_a_help_can_be_typed(name, monkeypatch, capsys):
    with contextlib.suppress(SystemExit):
        main([*name.split(), "--help"])
    lines = list(examples(capsys.readouterr().out))
    assert lines
    monkeypatch.chdir(ROOT)
    for words in lines:
        command, rest = find(words)
        for part in command.flags().parse(rest):
            assert not getattr(part, "problems", []), words
        for word in words:
            assert not word.endswith("/latest"), f"{words}: latest is the name of a run by itself"
            in_tree = word.split("/")[0] in FOLDERS and "/" in word
            assert not in_tree or (ROOT / word).exists(), f"{words}: there is no {word}"
