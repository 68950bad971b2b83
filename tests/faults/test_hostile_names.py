"""Names and messages from others' files move no cursor, end in no formula and are no markup."""

import io
import json
import os
import sys
from dataclasses import replace

from rich.table import Table
from rich.text import Text

from mlxhog import cli
from mlxhog.base.output import NO_SCREEN
from mlxhog.display import table
from mlxhog.display.streams import console, printable_output
from mlxhog.display.views import StatusLine
from mlxhog.mad.report.leaderboard import read_ranking, section
from mlxhog.mad.report.page import page
from tests.mad.report import sample

CLEARS = "\x1b[2J\x1b]0;title\x07\x9b31m\u202e"
"""Clears the screen and sets the title, in seven and in eight bits; then writes backwards."""
CONTROLS = set("\x1b\x07\x9b\u202e\r\t\x00")


def test_a_runs_name_sends_no_escape_sequences_and_json_escapes_it(tmp_path, capsys):
    folder = tmp_path / f"20260101-{CLEARS}"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"status": CLEARS}))
    assert cli.main(["runs", "--runs-dir", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "20260101-" in out
    assert not CONTROLS & set(out)
    assert cli.main(["runs", "--runs-dir", str(tmp_path), "--json"]) == 0
    out = capsys.readouterr().out
    assert not CONTROLS & set(out)
    assert json.loads(out)["status"] == CLEARS


def test_bytes_of_a_name_that_are_no_utf8_are_printed_without_an_error(tmp_path, capfd):
    name = os.fsdecode(b"a\xff\xfe")
    assert cli.main(["convert", str(tmp_path / name), str(tmp_path / "b"), "--format", "hf"]) == 2
    assert str(tmp_path / "a") in capfd.readouterr().err


def test_pictures_and_progress_keep_their_colors_and_lose_what_names_bring_along(monkeypatch):
    for name in NO_SCREEN:  # the environment of the tests does not matter
        monkeypatch.delenv(name, raising=False)
    streams = io.StringIO(), io.StringIO()
    for stream in streams:
        stream.isatty = lambda: True  # so it takes control sequences
    names = Table("name")
    names.add_row(Text(f"{CLEARS}x", style="red"))
    before = sys.stdout, sys.stderr
    with printable_output():
        console(streams[0]).print(names)
    assert (sys.stdout, sys.stderr) == before
    with StatusLine(streams[1], quiet=False) as line:
        line.show(f"backbone[/red].weight{CLEARS}")
    picture, progress = (stream.getvalue() for stream in streams)
    assert "\x1b[31m" in picture  # ours
    assert "backbone[/red].weight" in progress  # brackets are text
    for shown in (picture, progress):
        assert "[2J" in shown
        assert not any(part in shown for part in ("\x1b[2J", "\x1b]0", "\x07", "\x9b", "\u202e"))


def test_a_study_of_hostile_names_makes_harmless_lines_and_html(tmp_path):
    name = f"=HYPERLINK(1)` | <script>x</script>{CLEARS}"
    ranking = read_ranking(sample.study(tmp_path))
    ranking = replace(
        ranking,
        study=name,
        rows=[replace(row, candidate=name) for row in ranking.rows],
        records=[replace(r, candidate=name, status="failed", reason=name) for r in ranking.records],
    )
    stream = io.StringIO()
    table.show([section(ranking)], stream, plain=True)
    assert not CONTROLS & set(stream.getvalue())
    assert "<script>" not in page(ranking, [], version="1")
