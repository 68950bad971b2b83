"""`mlxhog doctor --report`: one file with all that an issue about a Mac needs, and no more."""

import json
import os
import sys
import zipfile
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest

from mlxhog.arena.child import Lane, TimedOut
from mlxhog.base import darwin, plain_json
from mlxhog.base.load import Load, LoadWatch
from mlxhog.base.machine import Machine
from mlxhog.base.workers import BACKENDS
from mlxhog.cli import main
from mlxhog.doctor import report, system
from mlxhog.doctor.checks import Check, CheckResult
from mlxhog.errors import EnvironmentLacks
from tests.pairs import each_of
from tests.test_errors import ERROR, compiler_text

SETTINGS = {
    "kern.osproductversion": "26.4", "kern.osversion": "25E123", "hw.model": "Mac16,8",
    "hw.perflevel0.name": "Super", "hw.perflevel1.name": "Performance",
}  # fmt: skip
NUMBERS = {"hw.nperflevels": 2, "hw.perflevel0.physicalcpu": 6, "hw.perflevel1.physicalcpu": 12}
PMSET = """#!/bin/sh
[ "$*" = "-g" ] && echo "System-wide power settings:" && echo " lowpowermode         1" && exit
[ "$*" = "-g batt" ] && echo "Now drawing from 'Battery Power'" && exit
[ "$*" = "-g therm" ] && echo "CPU_Speed_Limit = 80" && exit
exit 64
"""


@pytest.fixture
def mac(monkeypatch, tmp_path):
    """A Mac's answers to doctor, in the place of this system's."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("pmset", PMSET), ("caffeinate", "#!/bin/sh\nexec sleep 600\n")):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setattr(darwin, "sysctl_text", lambda name: SETTINGS.get(name, ""))
    monkeypatch.setattr(darwin, "sysctl_int", NUMBERS.get)
    monkeypatch.setattr(darwin, "displays", lambda: 2)
    monkeypatch.setattr(darwin, "ask_for_performance_cores", lambda: True)
    monkeypatch.setattr(darwin, "sys", SimpleNamespace(platform="darwin"))
    return programs


def test_on_a_mac_every_fact_of_the_system_is_known(mac):
    values, unknown = system.collect(system.FACTS)
    assert unknown == {}
    assert {name: values[name] for name in (
        "macos", "macos_build", "mac", "metal_language", "performance_cores_granted", "caffeinate",
        "displays", "power", "low_power_mode", "thermal",
    )} == {
        "macos": "26.4", "macos_build": "25E123", "mac": "Mac16,8", "metal_language": "4.0",
        "performance_cores_granted": True, "caffeinate": "caffeinate runs", "displays": 2,
        "power": "Now drawing from 'Battery Power'", "low_power_mode": True,
        "thermal": "CPU_Speed_Limit = 80",
    }  # fmt: skip
    assert values["core_levels"] == [
        {"name": "Super", "cores": 6}, {"name": "Performance", "cores": 12},
    ]  # fmt: skip
    assert values["memory"]["total"] > values["memory"]["available"] > 0
    json.dumps(values)


def test_a_fact_that_this_machine_cannot_tell_is_none_with_the_reason(mac):
    (mac / "pmset").write_text("#!/bin/sh\nexit 1\n")
    (mac / "caffeinate").unlink()
    values, unknown = system.collect(system.FACTS)
    assert values["thermal"] is values["low_power_mode"] is None
    assert unknown["thermal"] == "pmset -g therm ended with code 1"
    assert "may fall asleep" in values["caffeinate"]
    values, unknown = system.collect({"bad": lambda: 1 // 0, "good": lambda: 7})
    assert (values, unknown.keys()) == ({"bad": None, "good": 7}, {"bad"})


@pytest.mark.skipif(sys.platform != "linux", reason="what Linux cannot tell")
def test_linux_says_that_it_is_not_macos():
    values, unknown = system.collect(system.FACTS)
    assert unknown["macos"] == unknown["displays"] == "this is not macOS"
    assert values["python"] == sys.version
    assert {name for name, value in values.items() if value is None} == unknown.keys()


@each_of(
    ("name", "words"),
    [
        ("mac", "it is a zip archive; write --report mac.zip"),
        ("no/folder/mac.zip", "in a folder that does not exist"),
        ("here.zip", "a folder"),
        ("", "it is a zip archive; write --report mac.zip"),
        ("locked/mac.zip", "its folder cannot be written; name another file"),
    ],
)
def test_a_bad_name_is_refused_before_anything_is_measured(
    name, words, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mlxhog.doctor.record.examine", lambda *_: pytest.fail("measured"))
    (tmp_path / "here.zip").mkdir()
    (tmp_path / "locked").mkdir()
    access = os.access  # root may write anywhere
    monkeypatch.setattr(
        os, "access", lambda path, mode: "locked" not in str(path) and access(path, mode)
    )
    assert main(["doctor", "--report", name]) == 2
    assert words in capsys.readouterr().err


@each_of("home", ["/Users/anna", "/Users/josé"])
def test_no_text_has_the_home_directory_as_it_is_or_as_json_has_it(home, monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: Path(home))
    text = f"{home}/x {plain_json.dumps({'at': home + '/y'}).decode()}"
    assert report.without_home(text) == '~/x {"at": "~/y"}'
    monkeypatch.setattr(Path, "home", lambda: Path("/"))
    assert report.without_home("/usr/bin/c++") == "/usr/bin/c++"


def a_record(quick=True):
    """A record of doctor, without measurements; its path is private."""
    private = {"name": "page size", "result": "PASS", "found": f"{Path.home()}/x", "expected": ""}
    return {
        "effort": {"quick": quick}, "checks": [private | {"consequence": ""}], "failed": [],
        "identity": {}, "litmus": [], "reads": [], "kernels": [], "facts": {"wheels": {}},
        "tokens_per_s": {},
    }  # fmt: skip


@pytest.fixture
def quickly(monkeypatch, tmp_path):
    """Doctor without its own measurements, in a folder that is a home, too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr("mlxhog.doctor.record.examine", lambda *_: a_record())
    monkeypatch.setattr(report, "_measures", lambda *_: {"speed": lambda: 7.0})
    return tmp_path


def contents(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name).decode() for name in archive.namelist()}


@pytest.mark.slow
@pytest.mark.usefixtures("prepared_sotu")
def test_the_report_is_one_file_with_the_record_and_a_training_and_nothing_of_the_user(
    quickly, capsys
):
    (quickly / "mac.zip").write_text("the last one")
    assert main(["doctor", "--quick", "--report", "mac.zip", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["report"] == "mac.zip"
    assert "default training ..." in err
    assert [one.name for one in quickly.iterdir() if "mac.zip" in one.name] == ["mac.zip"]
    files = contents("mac.zip")
    logs = {name for name in files if name.startswith("train/logs/worker-")}
    assert files.keys() == {"doctor.json", "train/output.txt", "train/run.json"} | logs
    assert logs
    assert all(text for text in files.values())
    record = json.loads(files["doctor.json"])
    assert record["details"]["speed"] == 7.0
    assert record["checks"][-1]["name"] == "default training"
    assert record["checks"][-1]["result"] == "PASS"
    run = json.loads(files["train/run.json"])
    assert (run["status"], run["result"]["sample"]) == ("done", None)
    assert not any(str(quickly) in text for text in files.values())
    assert "~/x" in files["doctor.json"]
    assert (quickly / "mac.zip").stat().st_size < 1 << 20


def test_a_training_that_fails_is_in_the_report_and_the_exit_code_is_1(
    quickly, monkeypatch, capsys
):
    def failed(folder, seconds):
        (folder / "output.txt").write_text(f"error: {compiler_text()}")
        logs = folder / "runs" / "1" / "logs"
        logs.mkdir(parents=True)
        (logs.parent / "run.json").write_text('{"status": "failed"}')
        (logs / "worker-1.log").write_text("old\n" * 100_000 + compiler_text())
        return Check("default training", CheckResult.FAIL, "lost its GPU", "trains", "see the logs")

    monkeypatch.setattr(report, "_train", failed)
    assert main(["doctor", "--quick", "--report", "mac.zip"]) == 1
    text = capsys.readouterr().out
    assert "lost its GPU" in text
    assert "mac.zip has all of this for an issue" in " ".join(text.split())
    files = contents("mac.zip")
    log = files["train/logs/worker-1.log"]
    assert ERROR in log
    assert len(log) <= report.MAX_LOG
    assert ERROR in files["train/output.txt"]


@pytest.mark.parametrize(("busy", "result"), [(True, "inconclusive"), (False, "FAIL")])
def test_a_training_that_is_late_on_a_busy_machine_is_inconclusive(
    busy, result, tmp_path, monkeypatch
):
    late = mock.Mock(side_effect=TimedOut("no answer within 423 s"))
    child = nullcontext(SimpleNamespace(call=late))
    monkeypatch.setattr(report, "Child", lambda **_: child)
    monkeypatch.setattr(LoadWatch, "look", lambda watch: Load(1.8 * busy, 2, 9.3))
    check = report._train(tmp_path, 3)
    assert check.result == result
    assert check.found.endswith("no answer within 423 s")


def test_if_doctor_itself_breaks_the_report_has_the_error(quickly, monkeypatch, capsys):
    def breaks(quick, tell, model):
        raise EnvironmentLacks("no memory is left")

    monkeypatch.setattr("mlxhog.doctor.record.examine", breaks)
    passed = Check("default training", CheckResult.PASS, "done", "trains")
    monkeypatch.setattr(report, "_train", lambda *_: passed)
    assert main(["doctor", "--report", "mac.zip"]) == 3
    err = capsys.readouterr().err
    assert "mac.zip has this error and what else is known" in err
    assert "no memory is left" in err
    record = json.loads(contents("mac.zip")["doctor.json"])
    assert "no memory is left" in record["error"]
    assert record["details"]["speed"] == 7.0


def test_every_backend_of_this_machine_is_measured_and_others_have_a_reason(monkeypatch):
    asked = []

    def call(limit_s, function, *arguments):
        asked.append((function.__name__, *arguments))
        return 1.0

    child = nullcontext(SimpleNamespace(call=call))
    monkeypatch.setattr(report, "Child", lambda **_: child)
    mac = Machine("macos", "arm64", 10, 8 << 30, "Apple M4", frozenset({"mlx", "torch"}))
    values, unknown = system.collect(report._measures(mac, True, lambda step: None))
    assert unknown == {}
    assert len(values) == len(asked)
    assert {tuple(of[:2]) for name, *of in asked if name == "measure_speed"} == {
        (name, form)
        for name in BACKENDS
        for form in ("eager", "native" if name.endswith("cpu") else "metal")
    }
    linux = Machine("linux", "x86_64", 2, 8 << 30, "", frozenset({"torch"}))
    values, unknown = system.collect(report._measures(linux, True, lambda step: None))
    assert {name for name in values if values[name] is None} == unknown.keys()
    assert "mlx:gpu needs macOS" in unknown["mlx_imports"]
    assert values["import_s torch"] == 1.0


@pytest.mark.slow
def test_what_children_measure_is_a_number():
    lane = Lane(None, 0)
    assert report.polar_distance(lane, "torch:cpu") < 1e-4
    numbers = report.measure_speed(lane, "torch:cpu", "native", 1, "tiny")
    assert min(numbers.values()) > 0
    assert system.import_seconds(lane, "json") >= 0


def test_imports_of_shared_memory_say_whether_the_framework_made_a_copy(monkeypatch):
    import mlx.core as mx
    import torch

    from mlxhog.doctor import probes_mlx, probes_torch

    size = 1 << 14
    (row,) = report.framework(Lane(None, 0), "mlx", "imports", [size])
    assert row == {"bytes": size, "error": row["error"]}, "there is no Metal"
    monkeypatch.setattr(mx, "asarray", lambda host, copy: mx.array(host))
    (row,) = probes_mlx.imports([size])
    assert (row["same_address"], row["seconds"] > 0) == (False, True)
    monkeypatch.setattr(mx, "device_info", lambda device: {"architecture": "applegpu_g16s"})
    assert probes_mlx.device() == {"architecture": "applegpu_g16s"}
    monkeypatch.setattr(torch.mps, "synchronize", lambda: None)
    for alias, shares in (
        (lambda storage: storage, True),
        (lambda storage: storage.clone(), False),
    ):
        monkeypatch.setattr(torch.mps, "_host_alias_storage", alias)
        assert probes_torch.shares_memory("cpu") is shares
