"""The page of what to expect is that of the presets, and says that nothing was measured."""

from mlxhog.models.registry import architectures, load_architecture
from tools import expected_page


def test_the_page_of_what_to_expect_is_computed_from_the_presets():
    written = expected_page.PAGE.read_text("utf-8")
    assert written == expected_page.text(), "run python -m tools.expected_page"
    assert "computed, not measured" in written.splitlines()[0]
    for name in set(architectures()) - {"lfm2-tiny", "mad-attention", "mad-striped"}:
        assert f"`{name}`" in written


def test_the_page_on_fine_tuning_has_the_computed_memory_of_adapters():
    page = (expected_page.PAGE.parents[1] / "fine-tune.md").read_text("utf-8")
    for name, text in (("1.3b", "takes {1} in 4 bits and {0}"), ("7b", "{1} and {0}")):
        _, *memory = list(expected_page._adapter_row(load_architecture(name)))[:3]
        assert text.format(*memory).replace(" GB and", " and") in page
