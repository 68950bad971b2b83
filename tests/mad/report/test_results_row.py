"""Rows of results that people exchange, and their table."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from mlxhog.cli import main
from mlxhog.errors import ConfigError
from mlxhog.files import plain_json
from mlxhog.mad.report import results_row
from mlxhog.mad.report.ranking import read_ranking
from mlxhog.mad.report.results_row import command, merged, read_row, row_of
from mlxhog.mad.study.store import create
from mlxhog.mad.study.study import Study
from tests.mad.report.sample import CHANNELS, CONV, MIXED, TASKS, study


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def written(name: str, row: object) -> Path:
    path = Path(name)
    path.write_bytes(plain_json.dumps(row))
    return path


def row(tmp_path, *candidates: str, **how) -> dict:
    """The row of a study of some candidates."""
    name = how.pop("name", "first")

    def chosen(record):
        return record if record.candidate in candidates else None

    result = row_of(study(tmp_path, name, change=chosen, candidates=candidates, **how))
    assert result is not None
    return result


def test_a_row_has_every_number_and_rows_of_several_people_make_one_table(tmp_path, capsys):
    mine = written("mine.json", row(tmp_path, CONV, CHANNELS))
    theirs = written("theirs.json", {"study": "s", "row": row(tmp_path, MIXED, name="second")})
    table = merged([mine, theirs])
    assert [one.candidate for one in table.rows] == [CONV, MIXED, CHANNELS]
    assert [one.score for one in table.rows] == pytest.approx([0.9, 0.6, 0.3])
    assert table.rows[0].tasks == pytest.approx(dict.fromkeys(TASKS, 0.9))
    assert table.rows[0].intervals[TASKS[0]] == pytest.approx(0.0248414)
    assert table.rows[0].state_bytes == 1024
    assert main(["mad", "table", "mine.json", "theirs.json"]) == 0
    text = capsys.readouterr().out
    assert "rows of mine.json, theirs.json: suite smoke" in text
    assert f"#2 mlxhog mad bench --layers '{MIXED}' --suite smoke --seeds 0,1,2" in text
    assert main(["mad", "table", "mine.json", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["candidates"]) == 2
    assert main(["mad", "table", "mine.json", "--markdown", "t.md", "--csv", "-"]) == 0
    assert Path("t.md").read_text().count("mlxhog mad bench") == 2


def test_rows_selected_by_validation_rows_are_ordered_by_them(tmp_path):
    def val(record):
        return replace(record, val_macro=1 - record.acc_macro, val_token=0.5)

    store = study(tmp_path, change=val, protocol={"select": "val"})
    table = merged([written("val.json", row_of(store))])
    assert [one.candidate for one in table.rows] == [CHANNELS, MIXED, CONV]
    assert [one.candidate for one in read_ranking(store).rows] == [CHANNELS, MIXED, CONV]


def test_two_rows_of_one_candidate_are_told_apart_by_width_or_file(tmp_path):
    first = written("a.json", row(tmp_path, CONV))
    again = written("b.json", row(tmp_path, CONV, name="second"))
    assert [one.candidate for one in merged([first, again]).rows] == [
        f"{CONV}, a.json",
        f"{CONV}, b.json",
    ]
    wide = written("c.json", row(tmp_path, CONV, name="third", dim=32))
    assert [one.candidate for one in merged([first, wide]).rows] == [
        f"{CONV}, width 32",
        f"{CONV}, width 64",
    ]


def test_a_row_of_another_suite_or_protocol_is_refused_by_name(tmp_path):
    first = written("a.json", row(tmp_path, CONV))
    other = written("b.json", row(tmp_path, CONV, name="s", protocol={"clip": 2.0}))
    with pytest.raises(ConfigError, match=r"^b.json has the protocol .*2.0.*, a.json .*1.0"):
        merged([first, other])
    content = {k: v for k, v in json.loads(first.read_text()).items() if k != "digest"}
    content["suite"] = "lite"
    lite = written("c.json", {**content, "digest": results_row.digest(content)})
    with pytest.raises(ConfigError, match=r"^c.json has the suite 'lite', a.json 'smoke'"):
        merged([first, lite])


def test_an_edited_row_is_refused_and_a_reformatted_one_is_not(tmp_path):
    content = row(tmp_path, CONV)
    Path("sorted.json").write_text(json.dumps(content, indent=4, sort_keys=True))
    assert read_row(Path("sorted.json")) == content
    content["candidates"][0]["score"] = 0.99
    with pytest.raises(ConfigError, match=r"^edited.json was edited"):
        read_row(written("edited.json", content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mlxhog": "0.1.0"}, "was made by mlxhog '0.1.0', this is"),
        ({"generator": 0}, "was made by generator 0, this is"),
        ({"row": 9}, "was made by a row of format 9, this is 1"),
        ({"candidates": []}, "lacks parts of a row"),
        ({"candidates": [{"score": "best"}]}, "has a candidate with layers"),
        ({"candidates": [1]}, "has a candidate with layers"),
    ],
)
def test_a_row_of_another_version_or_form_is_refused_by_name(tmp_path, change, message):
    content = {**row(tmp_path, CONV), **change}
    del content["digest"]
    content["digest"] = results_row.digest(content)
    with pytest.raises(ConfigError, match=f"^it.json {message}"):
        read_row(written("it.json", content))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "it.json is not JSON: "),
        ("[1]", "it.json has no row; write one with"),
        ('{"study": "s", "row": null}', "it.json has no row: runs of its study are missing"),
        (None, "it.json cannot be read: No such file or directory\n"),
    ],
)
def test_a_file_without_a_row_is_refused_by_name(capsys, text, message):
    if text is not None:
        Path("it.json").write_text(text)
    assert main(["mad", "table", "it.json"]) == 2
    assert message in capsys.readouterr().err


def test_a_study_that_lacks_runs_has_no_row(tmp_path):
    def lacking(record):
        return None if (record.candidate, record.seed) == (CONV, 2) else record

    assert row_of(study(tmp_path, change=lacking)) is None
    assert row_of(study(tmp_path, "shared", share_embedding=True)) is None


@pytest.mark.parametrize(
    "definition",
    [
        {},
        {"seeds": (7,), "rates": (5e-4, 1e-3), "tasks": ("selective-copying", "memorization")},
        {"dim": 32, "position": "learned", "workers": "mlx:cpu", "threads": 2},
        {"workers": "mlx:cpu,torch:cpu", "protocol": {"steps": 5, "epochs": None, "wd_all": True}},
        {"protocol": {"lr": 1e-3, "patience": None, "select": "val", "stop_accuracy": 0.9}},
        {"protocol": {"weight_decay": 0.1, "beta2": 0.95}},
        {"protocol": {"lr": None, "eval_every": None}},
        {"protocol": {"optimizer": "muon(nesterov=0.3)"}},
    ],
)
def test_the_command_of_a_candidate_makes_the_same_study(tmp_path, definition, capsys):
    one = Study(candidates=(CONV,), **{"seeds": (0, 1), **definition})
    create(tmp_path / "studies", "s", one.to_dict())
    words = shlex.split(command(replace(one, candidates=(MIXED, CONV)), CONV))
    assert words[0] == "mlxhog"
    assert main([*words[1:], "--study", "s", "--dry-run"]) == 0, capsys.readouterr().err


def test_the_command_of_a_candidate_that_a_gpu_trained_names_the_cpu():
    of_gpu = Study(candidates=(CONV,), workers="mlx:gpu,torch:mps")
    assert "--workers mlx:cpu,torch:cpu" in command(of_gpu, CONV)
