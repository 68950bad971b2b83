"""README's pictures and output come from one run, and load nothing from a network."""

import re

import pytest

from tools.readme_pictures import MARK, PICTURES, README, with_output


def test_the_output_of_the_command_takes_the_place_of_the_block_after_the_mark():
    page = f"before\n\n{MARK}\n\n```\nold\nlines\n```\n\nafter\n\n```\nother\n```\n"
    assert with_output(page, "new\n") == page.replace("old\nlines", "new")
    for wrong in ("no mark", f"{MARK}\nno block", 2 * page):
        with pytest.raises(ValueError, match="one block"):
            with_output(wrong, "new")


def test_readme_shows_the_pictures_and_the_output_of_one_run():
    text = README.read_text("utf-8")
    assert with_output(text, "x") != text
    shown = set(re.findall(r"docs/pictures/[\w.]+", text))
    assert shown == {f"docs/pictures/{file.name}" for file in PICTURES.iterdir()}
    svg = (PICTURES / "live.svg").read_text("utf-8")
    assert "url(http" not in svg
