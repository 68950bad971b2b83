"""README's pictures and output come from one run, and no picture loads anything from a network."""

import re

from tools.readme_pictures import MARK, PICTURES, README, bits_per_byte, with_output


def test_readme_shows_the_pictures_and_the_output_of_one_run():
    text = README.read_text("utf-8")
    assert with_output(text, "x") != text
    pages = text + (README.parent / "docs" / "results.md").read_text("utf-8")
    shown = set(re.findall(r"\bpictures/([\w.-]+)", pages))
    assert shown == {file.name for file in PICTURES.iterdir()}
    assert not any("url(http" in file.read_text("utf-8") for file in PICTURES.glob("*.svg"))


def test_the_three_scores_of_readme_are_in_order_and_its_output_has_the_one_in_the_middle():
    before, _, output = README.read_text("utf-8").partition(MARK)
    scores = re.search(r"ended at ([\d.]+),\s([\d.]+) and ([\d.]+) bits per byte", before)
    low, middle, high = map(float, scores.groups())
    assert low <= middle == bits_per_byte(output) <= high
