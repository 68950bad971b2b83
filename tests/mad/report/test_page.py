"""The plots and the page of a study: the page is complete, and needs no other file."""

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxhog.mad.report.page import page
from mlxhog.mad.report.plots import COSTS, draw_curves, front, on_front, plots
from mlxhog.mad.report.ranking import read_ranking
from mlxhog.mad.tasks import find
from mlxhog.report import charts
from tests.mad.report.sample import CHANNELS, CONV, MIXED, study
from tests.mad.report.sample import TASKS as ALL_TASKS

TASKS = ALL_TASKS[:2]  # a picture is slow
EXPECTED = {f"score-{cost}" for cost in COSTS} | {f"curves-{task}" for task in TASKS}


class Page(HTMLParser):
    """Tags, text, and the cells of tables."""

    VOID = ("meta", "img", "source", "br")

    def __init__(self, html):
        super().__init__()
        self.tags, self.open, self.text, self.table = [], [], "", []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.table.append([])
        if tag in ("td", "th"):
            self.table[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if {"td", "th"} & set(self.open):
            self.table[-1][-1] += data


def troubled(record):
    """One run failed, one candidate lacks a seed."""
    if (record.candidate, record.seed) == (MIXED, 2):
        return None
    if (record.candidate, record.seed, record.task) == (CHANNELS, 1, TASKS[0]):
        return replace(record, status="failed", reason="<killed> & gone")
    return record


@pytest.fixture(scope="module")
def ranking(tmp_path_factory):
    root = tmp_path_factory.mktemp("studies")
    return read_ranking(study(root, change=troubled, tasks=TASKS), curves=True)


@pytest.mark.slow
def test_the_page_has_every_number_and_figure_and_refers_to_nothing_outside_itself(ranking):
    html = page(ranking, plots(ranking), version="0.0")
    parsed = Page(html)
    assert parsed.open == []
    for tag, attributes in parsed.tags:
        assert tag not in ("script", "link", "iframe", "object", "base")
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "srcset", "href", "poster", "data", "action", "background"):
            assert attributes.get(name, "data:image/png;base64,").startswith("data:image/png;")
    assert not re.search(r"//|@import|url\(", re.sub(r"base64,[A-Za-z0-9+/=]+", "", html))
    assert "default-src 'none'" in html
    assert {own["id"] for tag, own in parsed.tags if tag == "figure"} == EXPECTED
    light = [own["src"] for tag, own in parsed.tags if tag == "img"]
    dark = [own["srcset"] for tag, own in parsed.tags if tag == "source"]
    assert len(light) == len(dark) == len(EXPECTED)
    assert not {*light} & {*dark}
    for picture in (*light, *dark):
        assert base64.b64decode(picture.partition(",")[2]).startswith(b"\x89PNG\r\n\x1a\n")
    head, *rows = parsed.table[: 1 + len(ranking.rows)]
    short = [find(task).short for task in TASKS]
    assert head == ["#", "layers", "score", *short, "params", "state bytes", "time", "status"]
    for cells, row in zip(rows, ranking.rows, strict=True):
        numbers = [f"{row.tasks[task]:.3f}" for task in TASKS]
        numbers += [f"{row.params:,}", f"{4 * row.state:,}"]
        assert cells[1:-2] == [row.candidate, f"{row.score:.3f} ± {row.interval:.3f}", *numbers]
    for what in (
        "this study is partial", "Protocol", "lr 0.002", "Runs that count as 0", "<killed> & gone",
        "partial, 2 missing",
    ):  # fmt: skip
        assert what in parsed.text


def test_the_page_of_a_study_without_a_run_says_so_and_has_no_figure(tmp_path):
    empty = read_ranking(study(tmp_path, change=lambda record: None), curves=True)
    result = Page(page(empty, plots(empty), version="0.0"))
    assert "0 of 54 runs have ended" in result.text
    assert not [tag for tag, _ in result.tags if tag == "figure"]


@pytest.mark.slow
def test_a_figure_has_data_a_title_in_a_file_of_its_own_and_the_name_of_its_rows(ranking):
    for plot in plots(ranking):
        figure = plot.figure(charts.LIGHT)
        assert all(axes.has_data() for axes in figure.axes), plot.name
        if plot.name.startswith("score-"):
            low, high = figure.axes[0].get_ylim()
            assert -0.02 <= low < high <= 1.02
        replace(plot, figure=lambda theme, figure=figure: figure).png(charts.LIGHT)
        assert figure.get_suptitle() == f"{ranking.study}: {plot.title}"
    assert draw_curves(ranking, TASKS[0], charts.LIGHT).axes[0].get_ylabel().endswith("test rows")


# -- the Pareto front ------------------------------------------------------------------------------

POINTS = st.lists(
    st.tuples(st.integers(0, 9).map(float), st.integers(0, 9).map(float)), max_size=12
)


def dominates(a, b):
    return a[0] <= b[0] and a[1] >= b[1] and a != b


@given(POINTS)
def test_the_front_is_exactly_what_nothing_dominates(points):
    expected = {i for i, b in enumerate(points) if not any(dominates(a, b) for a in points)}
    assert set(front(points)) == expected


def test_the_front_holds_no_candidate_that_lacks_runs(ranking):
    params, state, _ = COSTS
    assert [ranking.rows[k].candidate for k in on_front(ranking, params)] == [CONV]
    assert [ranking.rows[k].candidate for k in on_front(ranking, state)] == [CHANNELS, CONV]
