"""Pictures are drawn without a word of matplotlib."""

import logging

from mlxhog.report import charts


def test_a_title_in_another_script_is_drawn_without_a_warning(caplog):
    """A warning is an error here."""
    figure, axes = charts.panel(charts.LIGHT)
    charts.title(axes, charts.LIGHT, "\u6587 \u0e01")
    logging.getLogger("matplotlib.font_manager").warning("a cache is built")
    assert charts.png(figure).startswith(b"\x89PNG")
    assert caplog.records == []
