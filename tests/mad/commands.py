"""What a command prints as JSON."""

import json

from mlxhog.cli import main


def said(capsys, *words, code=0):
    """The facts that a command prints last, such as `said(capsys, "mad", "board", "first")`."""
    assert main([*words, "--json"]) == code
    return json.loads(capsys.readouterr().out.splitlines()[-1])
