"""The leaderboard of a study as text, JSON and page, from studies with known numbers."""

import base64
import csv
import json
import re
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxhog.display import table
from mlxhog.display.charts import LIGHT
from mlxhog.mad.report.leaderboard import read_ranking, section
from mlxhog.mad.report.leaderboard import table as table_of
from mlxhog.mad.report.page import COSTS, draw_costs, draw_curves, front
from mlxhog.mad.report.progress import compact
from tests.cli.command import told
from tests.mad.report.sample import CHANNELS, CONV, MIXED, SEEDS, STATE, TASKS, WORTH, study
from tests.pairs import each_of

INTERVAL = 4.302652729911275 * 0.01 / 3**0.5  # t(0.975, 2), deviation and number of the seeds
N = len(TASKS) * len(SEEDS)  # runs of a candidate


def shown(root, change=lambda record: record, **definition):
    """The ranking of a study, its JSON, and its lines in a wide window."""
    ranking = read_ranking(study(root, change=change, **definition))
    lines = list(table.lines(section(ranking), 1000))
    return ranking, json.loads(json.dumps(ranking.to_json(), allow_nan=False)), lines


def test_candidates_are_ordered_by_score_and_every_number_is_there(tmp_path):
    ranking, result, text = shown(
        tmp_path, lambda one: replace(one, state=130 if one.candidate == MIXED else 128)
    )
    assert [row["layers"] for row in result["candidates"]] == [CONV, MIXED, CHANNELS]
    for row in result["candidates"]:
        selection_score = WORTH[row["layers"]]
        for name, value in {
            "score": selection_score,
            "interval": INTERVAL,
            "tasks": dict.fromkeys(TASKS, selection_score),
            "intervals": dict.fromkeys(TASKS, INTERVAL),
            "acc_token": dict.fromkeys(TASKS, selection_score - 0.05),
            "seeds": {str(s): selection_score + 0.01 * (s - 1) for s in SEEDS},
            "seconds": 10.0 * N,
        }.items():
            assert row[name] == pytest.approx(value), name
        assert (row["status"], row["missing"], row["n_runs"]) == ("done", [], N)
    for name, values in {
        "state_bytes": [512, 520, 512], "rank_equal_state": [1, 2, 3],
        "rank_equal_params": [1, 2, None],
    }.items():  # fmt: skip
        assert [row[name] for row in result["candidates"]] == values
    assert not result["partial"]
    assert result["runs_done"] == result["runs_planned"] == 3 * N
    assert "at equal parameters (within 5%): #1, before #2" in text
    lines = table.exported(section(ranking, exact=True), "csv").splitlines()
    for row, one in zip(csv.DictReader(lines), result["candidates"], strict=True):
        assert float(row["interval"]) == one["interval"]
        assert {task: float(row[task]) for task in TASKS} == one["tasks"]


def test_csv_has_the_state_of_a_candidate_that_could_not_decode(tmp_path):
    ranking = read_ranking(study(tmp_path))
    decoded = replace(ranking.rows[0], measures={"state_bytes": 1024.0})
    ranking = replace(ranking, rows=(decoded, *ranking.rows[1:]))
    lines = table.exported(section(ranking, exact=True), "csv").splitlines()
    expected = [f"{row['state_bytes']}" for row in ranking.to_json()["candidates"]]
    assert [row["state_bytes"] for row in csv.DictReader(lines)] == expected


def test_a_partial_study_says_so_and_which_runs_are_missing(tmp_path):
    ranking, result, text = shown(
        tmp_path, lambda one: None if (one.candidate, one.seed) == (MIXED, 2) else one
    )
    assert result["partial"]
    row = result["candidates"][-1]  # whatever its score
    assert (row["layers"], row["status"], row["state"]) == (MIXED, "partial", STATE[MIXED])
    assert len(row["missing"]) == len(TASKS)
    assert all("seed 2" in run for run in row["missing"])
    assert "this study is partial" in text[-1]
    head, *rows = text[1:5]
    assert head.split() == "# layers score CR FR NR SC C M params state bytes time status".split()
    assert all(compact(row.layers) in line for row, line in zip(ranking.rows, rows, strict=True))
    narrow = "\n".join(table.lines(section(ranking), 60))
    assert all(word in narrow for word in ("score", "0.900 ± 0.025", "params", "time", "partial"))


def pruned_in_its_first_run(record):
    if record.candidate != CHANNELS:
        return record
    first = (record.seed, record.task) == (SEEDS[0], TASKS[0])
    return replace(record, status="pruned") if first else None


def lost(record):
    if record.candidate == CHANNELS:
        return replace(record, status="diverged")
    first = (record.candidate, record.seed, record.task) == (CONV, 1, TASKS[0])
    return replace(record, status="failed", reason="killed: no memory") if first else record


def scored_by_val(record):
    return replace(record, val_macro=record.acc_macro - 0.1, val_token=record.acc_token)


@each_of(
    ("change", "definition", "ended", "owed", "words", "last"),
    [
        # a pruned candidate does not owe the runs that it was spared
        (pruned_in_its_first_run, {}, 2 * N + 1, 0, ["pruned, 17 missing"], {"status": "pruned"}),
        # lost runs score zero and are told with their reason
        (lost, {}, 3 * N, 0,
         [f"{N} diverged", f"... {N + 1 - 5} more, see --json", "on memorization baseline"],
         {"layers": CHANNELS, "score": 0.0, "status": "diverged", "n_diverged": N}),
        # validation rows that select have their score beside
        (scored_by_val, {"recipe": {"select": "val"}}, 3 * N, 0, ["0.900 ± 0.025  0.800"], {}),
        # an open learning rate is auto
        (lambda one: None, {"recipe": {"optimizer": "muon"}}, 0, 3 * N,
         ["0 of 54 runs have ended"], None),
    ],
)  # fmt: skip
def test_runs_that_ended_in_other_ways_count_as_they_should(
    change, definition, ended, owed, words, last, tmp_path
):
    ranking, result, text = shown(tmp_path, change, **definition)
    assert result["partial"] == (owed > 0)
    assert (result["runs_done"], result["runs_planned"]) == (ended, ended + owed)
    for one in words:
        assert one in "\n".join(text)
    if last is None:
        assert (ranking.facts["sweep"], ranking.facts["seeds"]) == ("lr auto", "0; 1; 2")
    else:
        assert result["candidates"][-1].items() >= last.items()
    failed = [one for one in result["troubles"] if one["status"] == "failed"]
    reasons = [(CONV, "killed: no memory")] if change is lost else []
    assert [(one["layers"], one["reason"]) for one in failed] == reasons


def test_a_sampler_without_an_end_owes_what_it_has_proposed(tmp_path):
    space = {"depth": 2, "mixers": ["gated-conv"], "channels": ["swiglu"], "template": "free"}
    store = study(tmp_path, candidates=(), space=space, sampler="random")
    for candidate in (CONV, MIXED, CHANNELS):
        store.add_proposal(candidate)
    assert read_ranking(store).to_json()["runs_planned"] == 3 * N


SOME = TASKS[:2]  # a picture is slow
PNG = b"\x89PNG\r\n\x1a\n"
FIGURES = {f"score-{cost}" for cost in COSTS} | {f"curves-{task}" for task in SOME}


def cells_of(html):
    """The texts of the cells of every row."""
    rows = (
        re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in re.findall("<tr>.*?</tr>", html)
    )
    return [[unescape(re.sub("<.*?>", "", cell)) for cell in row] for row in rows]


@pytest.fixture(scope="module")
def troubled(tmp_path_factory):
    """A ranking of which one run failed, one candidate lacks a seed, and the folder of studies."""

    def change(record):
        if (record.candidate, record.seed) == (MIXED, 2):
            return None
        if (record.candidate, record.seed, record.task) == (CHANNELS, 1, TASKS[0]):
            return replace(record, status="failed", reason="<killed> & gone")
        return record

    root = tmp_path_factory.mktemp("troubled") / "studies"
    return read_ranking(study(root, change=change, tasks=SOME)), root


@pytest.mark.slow
def test_plot_writes_every_figure_and_a_page_with_every_number_that_refers_to_nothing_outside(
    troubled, capsys, monkeypatch
):
    ranking, root = troubled
    monkeypatch.chdir(root.parent)
    output = told(capsys, "mad", "plot", "first", "--output-dir", "figures")
    assert output["page"] == "figures/index.html"
    assert {Path(path).stem for path in output["plots"].values()} == FIGURES
    assert all(Path(path).read_bytes().startswith(PNG) for path in output["plots"].values())
    html = Path(output["page"]).read_text()
    assert "default-src 'none'" in html
    without = re.sub(r"base64,[A-Za-z0-9+/=]+", "", html)
    assert not re.search(
        r"//|@import|url\(|<(script|link|iframe|object|base)|<[^>]* on\w+=", without
    )
    assert set(re.findall(r'<figure id="(.*?)"', html)) == FIGURES
    light, dark = (re.findall(rf' {name}="data:image/png;base64,(.*?)"', html)
                   for name in ("src", "srcset"))  # fmt: skip
    assert len(light) == len(dark) == len(FIGURES)
    assert not {*light} & {*dark}
    assert all(base64.b64decode(picture).startswith(PNG) for picture in (*light, *dark))
    rows = table_of(ranking)
    expected = [[*rows[0]], *([*row.values()] for row in rows)]
    assert cells_of(html)[: 1 + len(ranking.rows)] == expected
    for what in (
        "this study is partial", "Recipe", "lr 0.002", "diverged (score 0)", "<killed> & gone",
        "partial, 2 missing", "seeds 0, 1, 2", "seed 0 solid, seed 1 dashed, seed 2 dotted",
    ):  # fmt: skip
        assert what in unescape(html)
    empty = study(root, "empty", change=lambda record: None)
    output = told(capsys, "mad", "plot", "empty")
    assert (Path(output["page"]).parent, output["plots"]) == (empty.directory / "plots", {})
    html = Path(output["page"]).read_text()
    assert "0 of 54 runs have ended" in html
    assert "<figure" not in html


@pytest.mark.slow
def test_plots_tell_seeds_apart_and_write_large_numbers_with_commas(troubled):
    ranking, _ = troubled
    rows = tuple(replace(row, params=1_250_000 * k) for k, row in enumerate(ranking.rows, 1))
    (costs,) = draw_costs(replace(ranking, rows=rows), "params", LIGHT).axes
    shown = costs.xaxis.get_major_formatter()
    assert [shown(1_250_000, 0), shown(0.5, 0)] == ["1,250,000", "0.5"]
    (curves,) = draw_curves(ranking, TASKS[0], "baseline", LIGHT).axes
    assert {line.get_linestyle() for line in curves.lines} >= {"-", "--", ":"}


def dominates(a, b):
    return a[0] <= b[0] and a[1] >= b[1] and a != b


@given(values=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12))
def test_the_front_is_exactly_what_nothing_dominates_and_no_candidate_that_lacks_runs(
    values, troubled
):
    ranking, _ = troubled
    done, lacks = (
        next(row for row in ranking.rows if row.status == status) for status in ("done", "partial")
    )
    rows = [replace(done, params=cost, score=score) for cost, score in values]
    ranking = replace(ranking, rows=(*rows, replace(lacks, params=0, score=9)))
    expected = {k for k, b in enumerate(values) if not any(dominates(a, b) for a in values)}
    assert set(front(ranking, "params")) == expected


def test_lost_candidates_and_those_without_a_number_are_not_on_its_front_and_not_drawn_at_0(
    troubled,
):
    ranking, cost = troubled[0], "decode_tokens_per_s"
    done = replace(ranking.rows[0], status="done", score=0.5)
    rows = (
        replace(done, measures={cost: 100.0}),
        replace(done, score=0.9, measures={"val_bits_per_byte": 2.0}),
        replace(done, status="failed", score=0.0, measures={cost: 900.0}, params=0),
    )
    ranking = replace(ranking, rows=rows)
    assert front(ranking, cost) == [0]
    assert front(replace(ranking, rows=rows[::2]), "params") == [0]
    (axes,) = draw_costs(ranking, cost, LIGHT).axes
    assert {x for line in axes.lines for x in line.get_xdata()} == {100.0, 900.0}
