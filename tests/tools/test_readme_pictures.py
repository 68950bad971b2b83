"""README's pictures and output come from one run, and no picture loads anything from a network."""

import re

from tools.readme_pictures import PICTURES, README, with_output


def test_readme_shows_the_pictures_and_the_output_of_one_run():
    text = README.read_text("utf-8")
    assert with_output(text, "x") != text
    pages = text + (README.parent / "docs" / "results.md").read_text("utf-8")
    shown = set(re.findall(r"\bpictures/([\w.-]+)", pages))
    assert shown == {file.name for file in PICTURES.iterdir()}
    assert not any("url(http" in file.read_text("utf-8") for file in PICTURES.glob("*.svg"))
