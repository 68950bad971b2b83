"""Checks as commands: what they say of themselves and of wrong words."""

from __future__ import annotations

import pytest

from tools import sanitize
from tools.lint import __main__ as lint


@pytest.mark.parametrize("main", [lint.main, sanitize.main])
def test_help_is_an_answer(main, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert "usage: python -m tools." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("main", "word", "said"),
    [(lint.main, "none.h", "no file none.h"), (sanitize.main, "dens", "no kernel 'dens'")],
)
def test_a_wrong_word_is_wrong_input(main, word, said, capsys):
    with pytest.raises(SystemExit) as stop:
        main([word])
    assert stop.value.code == 2
    assert said in capsys.readouterr().err
