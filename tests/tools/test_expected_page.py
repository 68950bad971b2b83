"""The page of what to expect is that of the presets, and says that nothing was measured."""

from mlxhog.models.registry import architectures
from tools import expected_page


def test_the_page_of_what_to_expect_is_computed_from_the_presets():
    written = expected_page.PAGE.read_text("utf-8")
    assert written == expected_page.text(), "run python -m tools.expected_page"
    assert "computed, not measured" in written.splitlines()[0]
    for name in set(architectures()) - {"lfm2-tiny", "mad-attention", "mad-striped"}:
        assert f"`{name}`" in written
