"""`mlxhog report`: one file that says everything of a run, and stands in for nothing it lacks."""

import json
import re

import pytest

from mlxhog import cli
from mlxhog.display import charts
from mlxhog.display.record import RunRecord
from mlxhog.mad.report.leaderboard import read_ranking
from mlxhog.mad.report.page import page as page_of_study
from mlxhog.mad.report.page import plots
from tests.browser import Visit
from tests.cli.command import told
from tests.display.sample_run import event, lines, write_run
from tests.mad.report.sample import TASKS, study

HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"

INK = """chart => {
  const canvas = document.querySelector(`#${chart} canvas`);
  const { width, height } = canvas;
  const ink = getComputedStyle(document.documentElement).getPropertyValue("--ink-0");
  const rgb = ink.match(/[0-9a-f]{2}/gi).map((hex) => parseInt(hex, 16));
  const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
  return data.filter((_, k) => k % 4 === 0 && rgb.every((v, j) => data[k + j] === v)).length;
}"""
"""The number of pixels of a chart in the color of training."""


def report(capsys, *words):
    """Run the command, which succeeds; returns the page and what --json said."""
    output = told(capsys, "report", *words)
    with open(output["report"], encoding="utf-8") as file:
        return file.read(), output


def test_the_picture_has_a_dot_for_the_only_number_of_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(charts, "picture", lambda figure, kind: figure)
    for n, marker in ((1, "."), (2, "")):
        metrics = [{**line, "lr": 0.01} for line in lines(n)]
        figure = charts.losses([RunRecord(write_run(tmp_path, str(n), metrics=metrics))])
        drawn = [line.get_marker() for axes in figure.axes for line in axes.lines]
        assert drawn == [marker, marker]


def test_the_picture_names_the_star_of_before_a_resume(tmp_path, monkeypatch):
    monkeypatch.setattr(charts, "picture", lambda figure, kind: figure)
    metrics = list(lines(9))
    metrics[4] |= {"final_bits_per_byte": 2.0, "final_share": 0.2}
    (legend,) = charts.losses([RunRecord(write_run(tmp_path, metrics=metrics))]).legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ["training", "validation", "validation, more text"]


def test_the_picture_shows_the_name_of_a_run_as_it_is(tmp_path, monkeypatch):
    names = ["cost_$5_$10", "x$^$", "_a"]
    runs = [RunRecord(write_run(tmp_path, name, metrics=lines(3))) for name in names]
    for shown in (runs, runs[:1]):
        assert charts.losses(shown).startswith(b"\x89PNG")
    monkeypatch.setattr(charts, "picture", lambda figure, kind: figure)
    (legend,) = charts.losses(runs).legends
    labels = [text.get_text().strip("\u200b") for text in legend.get_texts()]
    assert labels == [f"{name}: training" for name in names]


@pytest.mark.slow
def test_the_picture_names_its_runs_of_any_script_and_explains_its_lines(tmp_path, monkeypatch):
    other = RunRecord(write_run(tmp_path, "\u6587 \u0e01", metrics=lines(3)))
    assert charts.losses([other]).startswith(b"\x89PNG")  # a warning would be an error here
    monkeypatch.setattr(charts, "picture", lambda figure, kind: figure)
    scored = [{**line, "final_bits_per_byte": 2.0, "final_share": 0.2} for line in lines(9)]
    baselines = {"uniform": 8.0, "xz": 2.0, "n-gram": 1.9}
    marked = [{**line, "baselines": baselines} for line in lines(30, every_s=20.0)]
    runs = [
        RunRecord(write_run(tmp_path, "a", metrics=marked)),
        RunRecord(write_run(tmp_path, "b", metrics=scored)),
    ]
    larger = ["b: training", "b: validation", "b: validation, 20%"]
    for figure, subject, keys in (
        (charts.losses(runs[:1]), "a", ["training", "validation"]),
        (charts.losses(runs), "2 runs", ["a: training", "a: validation", *larger]),
    ):
        (axes,), (legend,) = figure.axes, figure.legends
        assert subject in axes.get_title("left")
        assert axes.get_xlabel() == "training time, min"
        assert [text.get_text() for text in legend.get_texts()] == keys
        names = {text.get_text() for text in axes.texts}
        assert names == ({"xz", "n-gram"} if subject == "a" else set())
        assert legend.get_window_extent().x1 <= figure.bbox.x1


def test_damage_hides_nothing_else(tmp_path, capsys):
    run = write_run(tmp_path, metrics=lines(20))
    for path in (run.metrics_path, run.events_path):
        with path.open("a") as file:
            file.write("not JSON\n{}\n[]\n")
    run.config_path.write_text("a: [")
    run.write_status({"status": 3, "machine": [], "result": 7, "validation": {"n_bytes": "x"}})
    page, output = report(capsys, run.directory)
    assert output["notes"] == []
    for words in ("400", "The year of the union", "worker 2 (torch:cpu) died"):
        assert words in page


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The page of a run with hostile texts, as a URL."""
    events = [event("sample", HOSTILE), event("message", HOSTILE), event("checkpoint", "here")]
    config = f"data: {json.dumps(HOSTILE)}\nseq_len: 64\n"
    baselines = {"uniform": 8.0, "gzip": 2.6512, "xz": 1.844}
    metrics = [{**line, "baselines": baselines} for line in lines(200, workers=3)]
    folder = tmp_path_factory.mktemp("written")
    run = write_run(folder, metrics=metrics, events=events, config=config)
    assert cli.main(["report", str(run.directory)]) == 0
    return f"file://{run.directory}/report.html"


@pytest.fixture(scope="module")
def window(chromium, written):
    """A window without a network that shows it."""
    window = Visit(chromium, offline=True)
    window.open(written)
    yield window
    window.context.close()


@pytest.mark.slow
def test_a_browser_draws_every_chart_is_read_by_keyboard_and_runs_nothing_else(window, written):
    page = window.page
    assert page.locator("#charts canvas").count() == 7
    tiles = [text.split("\n") for text in page.locator(".tile:not(.text)").all_inner_texts()]
    assert tiles == [
        ["step", "6,000", "384k tokens"],
        ["of the budget", "100 %"],
        ["training time", "6 min 40 s"],
        ["validation bits per byte", "0.530", "gzip 2.651, xz 1.844"],
        ["tokens/s", "960", "3 workers"],
    ]
    assert HOSTILE in page.locator(".tile.text").inner_text()
    tops = page.evaluate(
        "['.tile', '#charts', 'table'].map(q => document.querySelector(q)"
        ".getBoundingClientRect().top)"
    )
    assert tops == sorted(tops)
    chart, at = page.locator("#loss .chart"), page.locator("#loss .legend .at")
    chart.focus()
    for key, time in (("Home", "00:02"), ("ArrowRight", "00:04")):
        page.keyboard.press(key)
        assert at.inner_text() == time
    assert "loss 0.353" in chart.get_attribute("aria-label")
    assert page.evaluate("window.hacked") is None
    assert window.troubles == []
    assert window.requests == [written]


@pytest.mark.slow
def test_nothing_is_wider_than_the_window(window, written, tmp_path):
    ranking = read_ranking(study(tmp_path, tasks=TASKS[:2]))
    (tmp_path / "page.html").write_text(
        page_of_study(ranking, [next(plots(ranking))], version="0.0")
    )
    for width in (320, 390, 1400):
        window.page.set_viewport_size({"width": width, "height": 700})
        window.open(written)
        assert window.cut(width) == []
        widths = window.page.evaluate(
            "[...document.querySelectorAll('#charts canvas')].map(c => c.clientWidth)"
        )
        assert all(0 < each <= width for each in widths)
        window.page.goto(f"file://{tmp_path}/page.html")
        assert width == 320 or window.cut(width) == []


@pytest.mark.slow
def test_before_there_are_numbers_nothing_is_drawn_empty(tmp_path, capsys, visit):
    for state in ("running", "done"):
        run = write_run(tmp_path, state, events=[], status={"status": state})
        with run.lock():
            report(capsys, run.directory)
        page = visit().open(f"file://{run.directory}/report.html")
        text = page.locator("body").inner_text()
        assert "no numbers" in page.locator(".partial").inner_text()
        assert page.locator("canvas, svg, figure, .tile").count() == 0
        rows = page.locator("tr:visible").all_inner_texts()
        assert not [row for row in rows if row.endswith("\t-")]
        headings = page.locator("h2:visible").all_inner_texts()
        assert headings == ["Run and machine", "Configuration", "Commands"]
        assert not re.search(r"nan|undefined|null|infinity", text, re.I)


@pytest.mark.slow
def test_a_browser_draws_a_dot_for_the_only_number_of_a_run(tmp_path, capsys, visit):
    run = write_run(tmp_path, metrics=lines(1))
    report(capsys, run.directory)
    window = visit()
    page = window.open(f"file://{run.directory}/report.html")
    for chart in ("bits", "loss"):
        assert page.evaluate(INK, chart) > 10
    assert window.troubles == []


@pytest.mark.slow
def test_several_runs_share_the_charts(tmp_path, capsys, visit):
    first = list(lines(30))
    first.append(first[-1] | {"step": 601})  # the last evaluation has a line of its own
    runs = [write_run(tmp_path, "a", metrics=first), write_run(tmp_path, "b", metrics=lines(20))]
    report(capsys, *(run.directory for run in runs), "--output", tmp_path / "page.html")
    window = visit()
    page = window.open(f"file://{tmp_path}/page.html")
    names = page.locator("#bits .legend .name").all_inner_texts()
    assert names == ["a: train", "a: validation", "b: train", "b: validation"]
    page.locator("#bits .chart").focus()
    page.keyboard.press("End")
    assert page.locator("#bits .legend .at").inner_text() == "01:00"
    assert page.locator("#bits .legend b").nth(1).inner_text() == "1.369"
    assert page.locator("#tiles-0 .tile").count() == page.locator("#tiles-1 .tile").count() > 3
    assert window.cut(390) == []
    assert window.troubles == []
