"""Commands of tests in this process: what they print, and how they refuse."""

import json

from mlxhog.cli import main


def said(capsys, *words, code=0):
    """Run a command that ends with a code; return its standard output and standard error."""
    capsys.readouterr()
    assert main([*map(str, words)]) == code
    return capsys.readouterr()


def told(capsys, *words, code=0):
    """Return the JSON of a command."""
    return json.loads(said(capsys, *words, "--json", code=code).out)


def refused(capsys, message, *words, code=2):
    """A command ends with a code and with one line, which has a message."""
    out, err = said(capsys, *words, code=code)
    assert message in err, err
    assert (out, len(err.splitlines())) == ("", 1)
