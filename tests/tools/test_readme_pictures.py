"""README's pictures and output come from one run, and load nothing from a network."""

import re

from tools.readme_pictures import PICTURES, README, with_output


def test_readme_shows_the_pictures_and_the_output_of_one_run():
    text = README.read_text("utf-8")
    assert with_output(text, "x") != text
    shown = set(re.findall(r"docs/pictures/[\w.]+", text))
    assert shown == {f"docs/pictures/{file.name}" for file in PICTURES.iterdir()}
    svg = (PICTURES / "live.svg").read_text("utf-8")
    assert "url(http" not in svg
