"""`mlxhog report`: one file that says everything of a run, and stands in for nothing it lacks."""

import json
import logging
import re

import pytest

from mlxhog import cli
from mlxhog.mad.report.page import page as page_of_study
from mlxhog.mad.report.plots import plots
from mlxhog.mad.report.ranking import read_ranking
from mlxhog.report import charts, figures
from mlxhog.report.record import RunRecord
from tests.browser import Visit
from tests.mad.report.sample import TASKS, study
from tests.report.sample_run import event, lines, write_run

HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"


def report(capsys, *words):
    """Run the command, which succeeds; returns the page and what --json said."""
    assert cli.main(["report", *map(str, words), "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    with open(output["report"], encoding="utf-8") as file:
        return file.read(), output


def outside(page):
    """Whatever a browser would fetch: every source, link and imported style, outside scripts."""
    text = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    return re.findall(r"""(?:src|href|srcset)\s*=|url\(|@import""", text)


def test_the_page_says_what_is_known_of_a_run_and_fetches_nothing(tmp_path, capsys):
    run = write_run(tmp_path, metrics=lines(30))
    page, output = report(capsys, run.directory)
    assert output["report"] == str(run.directory / "report.html")
    for words in (
        "20260101-000000-made", "linux x86_64", "torch:cpu, torch:cpu", "1 min", "38.4k",
        "mlxhog train -c", "mlxhog train --seq-len 64 --lr 0.01 --workers",
        "Differs from the defaults: seq_len 64 tokens", "died (SIGKILL) and is being replaced",
        "The year of the union", "checkpoints/step-00000040",
    ):  # fmt: skip
        assert words in page
    assert not outside(page)
    assert "default-src 'none'" in page
    assert "connect-src" not in page
    assert "Permission is hereby granted, free of charge" in page  # uPlot's licence goes with it


def test_a_title_in_another_script_is_drawn_without_a_word_of_matplotlib(caplog):
    """A warning is an error here."""
    figure, axes = charts.panel(charts.LIGHT)
    charts.title(axes, charts.LIGHT, "\u6587 \u0e01")
    logging.getLogger("matplotlib.font_manager").warning("a cache is built")
    assert charts.png(figure).startswith(b"\x89PNG")
    assert caplog.records == []


@pytest.mark.slow
def test_the_picture_names_its_run_and_explains_its_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "png", lambda figure: figure)
    run = write_run(tmp_path, metrics=lines(30, every_s=20.0))
    (axes,) = figures.losses([RunRecord(run)], "time").axes
    assert run.name in axes.get_title("left")
    assert axes.has_data()
    assert axes.get_xlabel() == "training time, min"
    legend = axes.get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["training", "held-out"]
    assert legend.get_window_extent().x1 <= axes.get_window_extent().x1


def test_without_matplotlib_plot_shows_its_lines_and_what_to_install(tmp_path, capsys, monkeypatch):
    run = write_run(tmp_path, metrics=lines(3))
    monkeypatch.setattr(charts.importlib.util, "find_spec", lambda name: None)
    assert cli.main(["plot", str(run.directory)]) == 3
    output = capsys.readouterr()
    assert run.name in output.out
    assert "pip install matplotlib" in output.err


def test_damage_is_said_and_the_rest_is_shown(tmp_path, capsys):
    run = write_run(tmp_path, metrics=lines(20))
    with run.metrics_path.open("a") as file:
        file.write("not JSON\n")
    with run.events_path.open("a") as file:
        file.write("{}\n[]\n")
    run.config_path.write_text("a: [")
    page, output = report(capsys, run.directory)
    notes = " ".join(output["notes"])
    assert "1 damaged lines of metrics.jsonl" in notes
    assert "2 damaged lines of events.jsonl" in notes
    assert "configuration of the run cannot be read" in notes
    assert "The year of the union" in page


def test_chosen_numbers_are_short_on_the_page_and_left_out_of_its_command(tmp_path, capsys):
    config = "lr: 0.004242640687119285\ntime: 90.0\n"
    run = write_run(tmp_path, metrics=lines(3), config=config, status={"automatic": ["lr"]})
    page, _ = report(capsys, run.directory)
    assert "lr 0.00424 (auto), time 1 min 30 s" in page
    assert "<code>mlxhog train --time 90.0</code>" in page
    assert "0.0042426" not in page


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nothing"], "no run 'nothing'"),
        ([], "RUN"),
        (["latest", "--to", "no/such/folder/page.html"], "its directory no longer exists"),
        (["latest", "--too", "x"], "did you mean '--to'"),
    ],
)
def test_bad_input_is_refused(tmp_path, capsys, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs", metrics=lines(3))
    assert cli.main(["report", *words]) in (2, 3)
    assert says in capsys.readouterr().err


# -- in a browser ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The page of a run with hostile texts, as a URL."""
    events = [event("sample", HOSTILE), event("message", HOSTILE), event("checkpoint", "here")]
    folder, config = (
        tmp_path_factory.mktemp("written"),
        f"data: {json.dumps(HOSTILE)}\nseq_len: 64\n",
    )
    run = write_run(folder, metrics=lines(200, workers=3), events=events, config=config)
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
def test_a_browser_draws_every_chart_and_runs_nothing_else(window, written):
    page = window.page
    assert page.locator("#charts canvas").count() == 6
    assert page.locator("#flat").inner_text() == "Not drawn, because always 0: lost updates."
    assert page.locator(".samples li").count() == 1
    assert page.evaluate("window.hacked") is None
    assert window.troubles == []
    assert window.requests == [written]


@pytest.mark.slow
def test_a_chart_is_read_and_zoomed_by_keyboard(window):
    page = window.page
    value = page.locator("#loss .legend .at")
    page.locator("#loss .chart").focus()
    page.keyboard.press("Home")
    assert value.inner_text() == "00:02"
    page.keyboard.press("ArrowRight")
    assert value.inner_text() == "00:04"
    label = page.locator("#loss .chart").get_attribute("aria-label")
    assert "loss 0.353" in label
    page.keyboard.press("+")
    page.keyboard.press("0")


@pytest.mark.slow
def test_nothing_is_wider_than_the_window(window, written):
    for width in (320, 390, 1400):
        window.page.set_viewport_size({"width": width, "height": 700})
        window.open(written)
        assert window.cut(width) == []
        widths = window.page.evaluate(
            "[...document.querySelectorAll('#charts canvas')].map(c => c.clientWidth)"
        )
        assert all(0 < each <= width for each in widths)


@pytest.mark.slow
def test_nothing_on_the_page_of_a_study_is_wider_than_the_window(tmp_path, visit):
    ranking = read_ranking(study(tmp_path, tasks=TASKS[:2]), curves=True)
    file = tmp_path / "page.html"
    file.write_text(page_of_study(ranking, [next(plots(ranking))], version="0.0"))
    window = visit()
    window.page.goto(f"file://{file}")
    for width in (390, 1280):
        assert window.cut(width) == []


@pytest.mark.slow
def test_the_tiles_say_at_the_top_how_far_and_how_good_a_run_is(tmp_path, capsys, visit):
    marks = {"uniform": 8.0, "gzip": 2.6512, "xz": 1.844}
    metrics = [{**line, "marks": marks} for line in lines(30)]
    run = write_run(tmp_path, metrics=metrics)
    report(capsys, run.directory)
    page = visit().open(f"file://{run.directory}/report.html")
    tiles = [text.split("\n") for text in page.locator(".tile").all_inner_texts()]
    assert tiles == [
        ["step", "600", "38.4k tokens"],
        ["of the budget", "100 %"],
        ["training time", "1 min"],
        ["held-out bits per byte", "1.369", "gzip 2.651, xz 1.844"],
        ["tokens/s", "640", "2 workers"],
        ["newest sample", "The year of the union", "after 4 s, step 40"],
    ]
    tops = page.evaluate(
        "['.tile', '#charts', 'table'].map(q => document.querySelector(q)"
        ".getBoundingClientRect().top)"
    )
    assert tops == sorted(tops)


@pytest.mark.slow
@pytest.mark.parametrize("state", ["running", "done"])
def test_before_there_are_numbers_nothing_is_drawn_empty(tmp_path, capsys, visit, state):
    run = write_run(tmp_path, events=[], status={"status": state})
    with run.lock():
        report(capsys, run.directory)
    page = visit().open(f"file://{run.directory}/report.html")
    text = page.locator("body").inner_text()
    assert "no numbers" in page.locator(".partial").inner_text()
    assert "Curves" not in text
    assert page.locator("canvas, svg, figure, .tile").count() == 0
    assert [
        row for row in page.locator("tr:visible").all_inner_texts() if row.endswith("\t-")
    ] == []
    assert page.locator("section h2:visible").all_inner_texts() == [
        "Run and machine", "Configuration", "Commands",
    ]  # fmt: skip
    assert not re.search(r"nan|undefined|null|infinity", text, re.I)


@pytest.mark.slow
def test_several_runs_share_the_charts(tmp_path, capsys, visit):
    first = list(lines(30))
    first.append(first[-1] | {"step": 601})  # the last evaluation has a line of its own
    runs = [write_run(tmp_path, "a", metrics=first), write_run(tmp_path, "b", metrics=lines(20))]
    report(capsys, *(run.directory for run in runs), "--to", tmp_path / "page.html")
    window = visit()
    page = window.open(f"file://{tmp_path}/page.html")
    names = page.locator("#bits .legend .name").all_inner_texts()
    assert names == ["a: train", "a: held-out", "b: train", "b: held-out"]
    page.locator("#bits .chart").focus()
    page.keyboard.press("End")
    assert page.locator("#bits .legend .at").inner_text() == "01:00"
    assert page.locator("#bits .legend b").nth(1).inner_text() == "1.369"
    assert page.locator("#tiles-0 .tile").count() == page.locator("#tiles-1 .tile").count() > 3
    assert window.troubles == []
