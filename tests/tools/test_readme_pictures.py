"""README's pictures and output come from one run, and no picture loads anything from a network."""

import datetime
import json
import re

from tools.readme_pictures import MARK, PICTURES, README, SCORES, bits_per_byte, with_output


def test_readme_shows_the_pictures_and_the_output_of_one_run():
    text = README.read_text("utf-8")
    assert with_output(text, "x") != text
    pages = text + (README.parent / "docs" / "results.md").read_text("utf-8")
    shown = set(re.findall(r"\bpictures/([\w.-]+)", pages))
    assert shown == {file.name for file in PICTURES.iterdir()}
    assert not any("url(http" in file.read_text("utf-8") for file in PICTURES.glob("*.svg"))


def test_the_three_scores_of_readme_are_those_that_were_recorded_and_its_output_has_the_median():
    before, _, output = README.read_text("utf-8").partition(MARK)
    named = r"ended at ([\d.]+),\s([\d.]+) and ([\d.]+) bits per byte \(`(.*?)`, (.*?)\)"
    *scores, command, date = re.search(named, before).groups()
    recorded = json.loads(SCORES.read_text("utf-8"))
    assert [*map(float, scores)] == recorded["bits_per_byte"] == sorted(recorded["bits_per_byte"])
    assert command == recorded["command"]
    day = datetime.date.fromisoformat(recorded["date"])
    assert date == f"{day.day} {day:%B %Y}"
    assert bits_per_byte(output) == recorded["bits_per_byte"][1]
