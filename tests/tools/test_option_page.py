"""The page of options that GitHub shows is that of the commands."""

from tools import option_page


def test_the_page_of_options_is_what_the_commands_have():
    written = option_page.PAGE.read_text("utf-8")
    assert written == option_page.text(), "run python -m tools.option_page"
    for row in option_page.listed():
        assert f"`--{row['name'].replace('_', '-')}`" in written
