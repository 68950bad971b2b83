"""The plots and the page of a study: the page is complete, and needs no other file."""

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from mlxhog.mad.report.page import page
from mlxhog.mad.report.plots import COSTS, draw_curves, on_front, plots
from mlxhog.mad.report.ranking import read_ranking
from mlxhog.mad.tasks import find
from mlxhog.report import charts
from tests.mad.report.sample import CHANNELS, CONV, MIXED, study
from tests.mad.report.sample import TASKS as ALL_TASKS

TASKS = ALL_TASKS[:2]  # a picture is slow
SHORT = [find(task).short for task in TASKS]
PNG = b"\x89PNG\r\n\x1a\n"
EXPECTED = {
    *("score-params", "score-state", "score-seconds", "seeds"),
    *(f"curves-{task}" for task in TASKS),
}


class Page(HTMLParser):
    """Tags, text, and everything that a browser would fetch."""

    VOID = ("meta", "img", "source", "br")

    def __init__(self, html):
        super().__init__()
        self.tags = []
        self.open = []
        self.text = ""
        self.table = []
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


@pytest.fixture(scope="module")
def html(ranking):
    return page(ranking, plots(ranking), version="0.0")


@pytest.fixture(scope="module")
def parsed(html):
    return Page(html)


@pytest.mark.slow
def test_the_page_refers_to_nothing_outside_itself(html, parsed):
    for tag, attributes in parsed.tags:
        assert tag not in ("script", "link", "iframe", "object", "base")
        for name in ("src", "srcset", "href", "poster", "data", "action", "background"):
            assert attributes.get(name, "data:").startswith("data:image/png;base64,") or (
                name not in attributes
            )
        assert not any(name.startswith("on") for name in attributes)
    assert "//" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", html)
    assert "@import" not in html
    assert "url(" not in html
    metas = [attributes for tag, attributes in parsed.tags if tag == "meta"]
    (policy,) = (
        one["content"] for one in metas if one.get("http-equiv") == "Content-Security-Policy"
    )
    assert "default-src 'none'" in policy


@pytest.mark.slow
def test_every_tag_is_closed(parsed):
    assert parsed.open == []


@pytest.mark.slow
def test_every_figure_is_on_the_page_for_light_and_dark_screens(parsed):
    names = {attributes["id"] for tag, attributes in parsed.tags if tag == "figure"}
    assert names == EXPECTED
    light = [a["src"] for tag, a in parsed.tags if tag == "img"]
    dark = [a["srcset"] for tag, a in parsed.tags if tag == "source"]
    assert len(light) == len(dark) == len(EXPECTED)
    for picture in (*light, *dark):
        assert base64.b64decode(picture.partition(",")[2]).startswith(PNG)
    assert not {*light} & {*dark}


@pytest.mark.slow
def test_the_table_has_the_numbers(ranking, parsed):
    head, *rows = parsed.table[: 1 + len(ranking.rows)]
    assert head == ["#", "layers", "score", *SHORT, "params", "state bytes", "time", "status"]
    for cells, row in zip(rows, ranking.rows, strict=True):
        assert cells[1] == row.candidate
        assert cells[2] == f"{row.score:.3f} ± {row.interval:.3f}"
        assert cells[3 : 3 + len(TASKS)] == [f"{row.tasks[task]:.3f}" for task in TASKS]
        assert cells[-4:-2] == [f"{row.params:,}", f"{4 * row.state:,}"]


@pytest.mark.slow
def test_the_page_says_the_protocol_and_what_lacks_or_failed(parsed):
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
def test_the_front_holds_no_candidate_that_lacks_runs(ranking):
    params, state, _ = COSTS
    assert [ranking.rows[k].candidate for k in on_front(ranking, params)] == [CONV]
    assert [ranking.rows[k].candidate for k in on_front(ranking, state)] == [CHANNELS, CONV]


@pytest.mark.slow
def test_a_figure_has_its_title_once_on_the_page_and_the_study_in_a_file(ranking, parsed):
    for plot in plots(ranking):
        figure = plot.figure(charts.LIGHT)
        assert parsed.text.count(plot.title) == 1
        assert not any(axes.get_title("left") for axes in figure.axes)
        assert all(axes.has_data() for axes in figure.axes), plot.name
        if plot.name.startswith("score-"):
            low, high = figure.axes[0].get_ylim()
            assert -0.02 <= low < high <= 1.02
        replace(plot, figure=lambda theme, figure=figure: figure).png(charts.LIGHT)
        assert figure.get_suptitle() == f"{ranking.study}: {plot.title}"


@pytest.mark.slow
def test_curves_say_of_which_rows_they_are(ranking):
    assert draw_curves(ranking, TASKS[0], charts.LIGHT).axes[0].get_ylabel().endswith("test rows")
    by_val = [
        replace(one, config={**one.config, "protocol": {**one.config["protocol"], "select": "val"}})
        for one in ranking.records
    ]
    chosen = draw_curves(replace(ranking, records=tuple(by_val)), TASKS[0], charts.LIGHT)
    assert chosen.axes[0].get_ylabel() == "acc_token of the validation rows"


def test_what_was_not_measured_is_not_drawn(tmp_path):
    def one_candidate_one_seed(record):
        return record if (record.candidate, record.seed) == (CONV, 0) else None

    only = {"change": one_candidate_one_seed, "seeds": (0,), "tasks": TASKS}
    alone = read_ranking(study(tmp_path, **only), curves=True)
    assert {plot.name for plot in plots(alone)} == EXPECTED - {"seeds"}
