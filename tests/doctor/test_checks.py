"""Facts of a machine, Metal kernels on the emulated engine, and a gradient of every backend."""

import math
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest

from mlxhog.arena.child import Failed, Lane, TimedOut
from mlxhog.base import capabilities, machine
from mlxhog.base.capabilities import CapabilityRecord, CellShape, CellTimes
from mlxhog.base.load import Load, LoadWatch
from mlxhog.base.machine import Machine
from mlxhog.base.resources import MemoryLimit
from mlxhog.base.workers import BACKENDS
from mlxhog.doctor import backends, checks, kernels, pair
from mlxhog.doctor import record as records
from mlxhog.doctor.checks import CheckResult
from mlxhog.doctor.record import option_values
from mlxhog.errors import WorkerFailed
from mlxhog.experiments import paired_test
from mlxhog.metal import engines
from mlxhog.metal.emulator.engine import EmulatorEngine
from mlxhog.metal.kernel import FUSED_RTOL
from mlxhog.models.ops import kernels as choose_kernels
from tests.base.test_capabilities import adds, kernel, reads
from tests.metal.fake_gpu import FaultyEngine
from tests.pairs import each_of

MAC = Machine("macos", "arm64", 10, 8 << 30, "Apple M4 Pro", frozenset({"mlx", "torch"}))
LINUX = Machine("linux", "x86_64", 2, 8 << 30, "", frozenset({"mlx", "torch"}))
M2 = replace(MAC, chip="Apple M2 Max")
NEW = {"mlx": "0.32.4", "torch": "2.14.1"}
RIGHT = {"loss": np.array(5.5), "w": np.array([1.0, -2.0])}


@each_of(
    ("name", "here", "facts", "environ", "result", "words"),
    [
        ("page size", MAC, {"page_bytes": 4096}, {}, "FAIL", "4096 bytes"),
        ("torch's long sums", M2, {"versions": NEW | {"torch": "2.13.0"}}, {}, "WARN",
         "mlxhog splits such sums"),
        ("torch's long sums", M2, {"versions": NEW | {"torch": "2.14.1"}}, {}, "PASS", ""),
        ("version of torch", LINUX, {"versions": NEW | {"torch": "2.15.0"}}, {}, "WARN",
         "2.15.0 it may work as well; the tested one: python -m pip install -c"),
        ("version of mlx", MAC, {"versions": NEW | {"mlx": "0.33.0"}}, {}, "WARN", "0.33.0"),
        ("MLX_METAL_FAST_SYNCH", MAC, {}, {"MLX_METAL_FAST_SYNCH": "1"}, "FAIL", "unset it"),
        ("Rosetta", replace(MAC, translated=True), {}, {}, "FAIL", "for Apple silicon"),
    ],
)  # fmt: skip
def test_what_is_known_to_be_wrong_is_found_with_its_consequence(
    name, here, facts, environ, result, words, monkeypatch
):
    good = {"page_bytes": 16_384, "versions": NEW}
    for variable in ("MLX_METAL_FAST_SYNCH", "MLX_ENABLE_TF32"):
        monkeypatch.delenv(variable, raising=False)
    assert {check.result for check in checks.check_facts(MAC, good)} == {CheckResult.PASS}
    for variable, value in environ.items():
        monkeypatch.setenv(variable, value)
    found = {one.name: one for one in checks.check_facts(here, {**good, **facts})}
    check = found[name]
    assert check.result == result
    assert words in f"{check.found} {check.consequence}"
    assert bool(check.consequence) == (result in ("FAIL", "WARN"))


def test_the_facts_name_the_wheels_and_the_compiler(monkeypatch):
    facts = checks.collect_facts(machine.here())
    (tag,) = facts["wheels"]["mlx"]
    assert tag.startswith("cp3")
    assert "manylinux" in tag or "macosx" in tag
    assert "mlx-metal" not in facts["wheels"] or sys.platform == "darwin"
    assert checks.wheel_tags("no-such-package") == []
    monkeypatch.setattr(capabilities.darwin, "sysctl_text", {"kern.osproductversion": "26.4"}.get)
    assert capabilities.identity().system.endswith(" 26.4"), "not the number that Python was told"


def test_shared_memory_here_is_enough_for_a_run(monkeypatch):
    monkeypatch.setattr(checks, "LARGE_BYTES", 1 << 20)
    assert checks.check_shared_memory().result == CheckResult.PASS
    little = MemoryLimit(1 << 20, "/dev/shm has 1,048,576 free", "enlarge it")
    monkeypatch.setattr(checks, "available_shared_memory", lambda: little)
    small = checks.check_shared_memory()
    assert (small.result, small.found) == (CheckResult.WARN, "0.00 GiB")
    assert "/dev/shm has 1,048,576 free; enlarge it" in small.consequence


def test_an_engine_that_works_has_a_row_of_its_steps_and_one_per_operator(monkeypatch):
    only = {"causal_conv": kernels.probes.CHECKS["causal_conv"]}
    monkeypatch.setattr(kernels.probes, "CHECKS", only)
    told = []
    check, rows = kernels.check_engine("emulated", told.append)
    assert check.result == CheckResult.PASS
    row = {"engine": "emulated", "ok": True}
    seconds, cases = [row.pop("seconds") for row in rows], [row.pop("cases") for row in rows]
    assert rows == [
        {**row, "name": "steps", "max_error": 0.0, "tolerance": FUSED_RTOL},
        {**row, "name": "causal_conv", "max_error": None, "tolerance": 0.0},
    ]
    assert min(seconds) > 0
    assert [len(each) for each in cases] == [0, len(kernels.probes.SIZES)]
    for case in cases[1]:
        assert 0 <= case["error"] <= case["allowed"], "also where it is right"
        assert (case["fault"], bool(case["where"])) == ("", True)
    assert told == ["steps on emulated", "causal_conv on emulated"]


def test_an_engine_that_cannot_start_is_told_and_runs_nothing():
    check, rows = kernels.check_engine("nothing", lambda step: None)
    assert (check.result, rows) == (CheckResult.WARN, [])
    assert "no Metal engine 'nothing'" in check.found
    assert "no --gpu-write metal" in check.consequence


@each_of(("busy", "result"), [(True, "inconclusive"), (False, "WARN")])
def test_a_late_engine_or_kernel_is_inconclusive_on_a_busy_machine(busy, result, monkeypatch):
    def call(limit_s, function, *arguments):
        if function in late:
            raise TimedOut("no answer within 240 s")

    late, child = [kernels.step_error], SimpleNamespace(call=call, close=lambda: None)
    monkeypatch.setattr(kernels, "Child", lambda: child)
    monkeypatch.setattr(kernels.probes, "CHECKS", {})
    monkeypatch.setattr(LoadWatch, "look", lambda watch: Load(1.8 * busy, 2, 9.3))
    check, (row,) = kernels.check_engine("mlx", lambda step: None)
    assert (check.result, row["ok"], row["error"]) == ("PASS", False, "no answer within 240 s")
    assert ("inconclusive" in row) == busy
    late.append(kernels.start)
    check, rows = kernels.check_engine("mlx", lambda step: None)
    assert (check.result, rows) == (result, [])


@each_of("late", [True, False])
def test_a_kernel_that_had_no_time_is_neither_a_failure_nor_usable(late, monkeypatch):
    row = {"name": "steps", "engine": "mlx", "ok": False, "error": "no answer"}
    row |= {"inconclusive": "busy"} if late else {}
    started, agreed = checks.Check("Metal engine mlx", CheckResult.PASS, "", ""), []

    def check_backends(machine, gradients, usable, cells):
        agreed.extend(usable)
        return backends.MeasuredGradients()

    with_mlx = replace(MAC, frameworks=frozenset({"mlx"}))
    monkeypatch.setattr(records.machines, "here", lambda: with_mlx)
    monkeypatch.setattr(records.metal, "check_engine", lambda *_: (started, [row]))
    monkeypatch.setattr(records.backends, "check_backends", check_backends)
    monkeypatch.setattr(records, "cases", lambda usable: [])
    monkeypatch.setattr(records, "all_readers", lambda machine: [])
    found = records.examine(True, lambda part, step: None)
    assert ("kernel steps on mlx" in found["failed"]) == (not late)
    assert agreed == []


@each_of("fault", ["step_recorded", "step_rows", "wrap"])
def test_a_step_or_an_import_that_is_off_is_caught(fault, monkeypatch):
    class Wrong(EmulatorEngine):
        def run(self, launch):
            if launch.kernel.name == fault:
                g = launch.inputs["g"] * np.float32(1.01)
                launch = replace(launch, inputs={**launch.inputs, "g": g})
            return super().run(launch)

        def wrap(self, host):
            return host.copy() if fault == "wrap" else super().wrap(host)

    monkeypatch.setattr(engines, "create", lambda name: Wrong())
    assert kernels.step_error(Lane(None, 0), "emulated") > 1e-3


def test_an_operator_that_is_off_is_caught(monkeypatch):
    monkeypatch.setattr(engines, "create", lambda name: FaultyEngine("conv_forward"))
    monkeypatch.setattr(choose_kernels, "_metal", choose_kernels._metal.__wrapped__)  # uncached
    case, *_ = kernels.operator_cases(Lane(None, 0), "emulated", "causal_conv")
    assert "is off by" in case.fault
    assert case.error > case.allowed


class Children:
    """Children that compute RIGHT and a speed, unless planned otherwise by (backend, form)."""

    def __init__(self, planned):
        self.planned, self.speeds = planned, []

    def __call__(self, **_):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def start(self, function, *form):
        self.form = form

    def await_result(self, timeout_s):
        planned = self.planned.get(self.form)
        if planned == "the GPU is gone":
            raise Failed(planned)
        return {**RIGHT, **planned.pop(0)} if planned else RIGHT

    def call(self, limit_s, function, name, form, *n):
        if function is backends.cell_times:
            planned = self.planned.get("cells", [CellTimes(name, cell, 2.0, 1.0) for cell in form])
            if planned == "the GPU is gone":
                raise Failed(planned)
            return planned
        if function is backends.measure_decoder:
            planned = self.planned.get("decoder", {"mlx:gpu": 50.0, "mlx:cpu": 200.0})
            if name not in planned:
                raise Failed("the GPU is gone")
            return planned[name]
        self.speeds.append((name, form))
        return {"tokens_per_s": 300.0 if form == "metal" else 200.0}


@pytest.fixture
def measure(monkeypatch):
    def check(planned, agreed=(), cells=()):
        children = Children(planned)
        monkeypatch.setattr(backends, "Child", children)
        monkeypatch.setattr(backends, "reference", lambda: RIGHT)
        measured = backends.check_backends(MAC, 4, agreed, cells)
        bad = [check for check in measured.checks if check.result != CheckResult.PASS]
        return measured, bad, children.speeds

    return check


def test_cells_are_measured_on_a_gpu_whose_kernels_agreed_and_a_failure_is_a_warning(measure):
    cell = CellShape("slstm_cell", (4, 32))
    measured, bad, _ = measure({}, {"mlx"}, [cell])
    assert (measured.cells, bad) == ([CellTimes("mlx:gpu", cell, 2.0, 1.0)], [])
    found = {check.name: check.found for check in measured.checks}
    assert found["cells of mlx:gpu"] == "Metal kernels are faster in 1 of 1"
    measured, (bad,), _ = measure({"cells": "the GPU is gone"}, {"mlx"}, [cell])
    assert (measured.cells, bad.result, bad.name) == ([], CheckResult.WARN, "cells of mlx:gpu")
    assert "a worker measures those of its model" in bad.consequence
    assert measure({}, (), [cell])[0].cells == []


def test_a_gpu_is_measured_with_both_forms_where_the_kernels_agreed(measure):
    measured, bad, speeds = measure({}, {"mlx"})
    assert speeds == [
        ("mlx:gpu", "eager"), ("mlx:gpu", "metal"), ("mlx:cpu", "auto"),
        ("torch:mps", "eager"), ("torch:cpu", "auto"),
    ]  # fmt: skip
    assert measured.tokens_per_s == dict.fromkeys(BACKENDS, 200.0)
    assert measured.metal == {"mlx:gpu": 300.0}
    assert measured.repeats == {
        "mlx:gpu": {"eager": True, "metal": True}, "torch:mps": {"eager": True},
    }  # fmt: skip
    assert bad == []


def test_both_decoders_of_a_mac_are_measured_and_decide_who_writes_text(measure):
    measured, bad, _ = measure({})
    assert bad == []
    row = measured.decoding
    assert row["tokens_per_s"] == {"mlx:gpu": 50.0, "mlx:cpu": 200.0}
    known = record(decoding=row)
    for n_params, on_cpu in ((row["n_params"], True), (5 * row["n_params"], False)):
        assert known.decodes_on_cpu(n_params).ok == on_cpu
    assert "200 tokens/s on the CPU, 50 on the GPU" in known.decodes_on_cpu(1).reason
    measured, (bad,), _ = measure({"decoder": {"mlx:cpu": 200.0}})
    assert (measured.decoding, bad.result) == (None, CheckResult.WARN)
    known = record(decoding=None)
    for n_params, on_cpu in ((2_500_000, True), (160_000_000, False)):
        assert known.decodes_on_cpu(n_params).ok == on_cpu


def test_a_decoder_is_measured_by_writing(monkeypatch):
    monkeypatch.setattr(backends, "DECODED", "tiny")
    assert backends.measure_decoder(Lane(None, 0), "mlx:cpu", 0.0) > 0


@each_of(("form", "result"), [("metal", "WARN"), ("eager", "FAIL")])
def test_a_form_that_fails_on_a_gpu_is_told_with_what_follows(measure, form, result):
    measured, (bad,), _ = measure({("mlx:gpu", form): "the GPU is gone"}, {"mlx"})
    assert (bad.result, bad.found) == (result, "the GPU is gone")
    assert "mlx:gpu" in bad.consequence
    assert ("mlx:gpu" in measured.tokens_per_s) == (form == "metal")
    assert ("mlx:gpu" in measured.metal) == (form == "eager")
    assert form not in measured.repeats["mlx:gpu"]


@each_of("wrong", [[1.0, -2.01], [np.nan, -2.0], [1.0, np.inf], [0.0, 0.0]])
def test_a_wrong_gradient_fails_and_names_the_parameter(measure, wrong):
    measured, (bad,), _ = measure({("torch:cpu", "auto"): [{"w": np.array(wrong)}]})
    assert (bad.name, bad.result) == ("backend torch:cpu", CheckResult.FAIL)
    assert "(w)" in bad.found
    assert "mlxhog parity" in bad.consequence
    assert "torch:cpu" not in measured.tokens_per_s


def test_a_form_whose_bits_differ_is_not_recorded(measure):
    other = {"w": RIGHT["w"] * (1 + 1e-6)}
    measured, (bad,), _ = measure({("torch:mps", "eager"): [{}, other]})
    assert measured.repeats == {"mlx:gpu": {"eager": True}, "torch:mps": {"eager": False}}
    assert bad.result == CheckResult.WARN
    assert "--determinism record" in bad.consequence


NOISE = (1.0, 1.01, 0.99, 1.005, 0.995, 1.0)


@pytest.fixture
def measured(monkeypatch):
    """Doctor's check where a run with torch:mps is faster by each of some factors, in turn."""

    def check(gains, here=MAC, *, busy=False):
        teams = []

        def compared(together, alone, tell):
            teams[:] = [together, alone]
            return paired_test.decide([math.log(one) for one in gains], pair.PAIRS)

        monkeypatch.setattr(pair, "compared", compared)
        monkeypatch.setattr(LoadWatch, "look", lambda watch: Load(1.8 * busy, 2, 9.3))
        return *pair.check_pair(here, LoadWatch(), lambda part, step: None), teams

    return check


def test_a_gain_is_kept_with_its_interval_beside_the_gpu_workers_of_auto(measured):
    check, row, teams = measured(1.3 * one for one in NOISE)
    assert check.result == CheckResult.PASS
    assert 1 < row["low"] < row["gain"] < row["high"]
    assert row["gain"] == pytest.approx(1.3, rel=0.01)
    assert row["model"] in check.found
    assert teams == ["mlx:gpu,torch:mps", "mlx:gpu"]
    *_, teams = measured(NOISE, replace(MAC, chip="Apple M2 Ultra", cores=16))
    assert teams == ["mlx:gpu,mlx:gpu,torch:mps", "mlx:gpu,mlx:gpu"]


def test_a_busy_machine_and_one_without_both_engines_have_no_result(measured):
    check, row, _ = measured(NOISE, busy=True)
    assert (check.result, row) == (CheckResult.INCONCLUSIVE, None)
    assert check.found.startswith("inconclusive: busy machine")
    for here, lack in (
        (LINUX, "macOS on Apple silicon"),
        (replace(MAC, frameworks=frozenset({"mlx"})), "torch:mps needs torch"),
    ):
        check, row, teams = measured(NOISE, here)
        assert (check.result, row, teams) == (CheckResult.ABSENT, None, [])
        assert lack in check.found


def test_a_pair_that_cannot_train_fails_with_the_reason_unless_it_had_no_time(monkeypatch):
    failed = WorkerFailed("worker 2 lost its GPU")
    monkeypatch.setattr(pair, "compared", mock.Mock(side_effect=failed))
    monkeypatch.setattr(LoadWatch, "look", lambda watch: Load(0.0, 2, 9.3))
    check, row = pair.check_pair(MAC, LoadWatch(), lambda part, step: None)
    assert (check.result, check.found, row) == (CheckResult.FAIL, "worker 2 lost its GPU", None)
    assert "--workers mlx:gpu,torch:mps" in check.consequence
    monkeypatch.setattr(LoadWatch, "look", lambda watch: Load(1.8, 2, 9.3))
    check, row = pair.check_pair(MAC, LoadWatch(), lambda part, step: None)
    assert (check.result, row) == (CheckResult.INCONCLUSIVE, None)
    assert check.found.endswith("worker 2 lost its GPU")


BARE = Machine("linux", "x86_64", 2, 8 << 30, "", frozenset())
FAST_GPU = {"mlx:gpu": 100_000.0, "mlx:cpu": 1_000.0, "torch:cpu": 1_000.0}
METAL = {"litmus": adds("metal:mlx", "metal:mlx")}
GOOD = {**METAL, "kernels": [kernel("mlx")], "tokens_per_s": FAST_GPU}


def record(**parts):
    empty = {"litmus": [], "reads": [], "kernels": [], "tokens_per_s": {}}
    return CapabilityRecord(Path("record.json"), None, empty | parts)


@each_of(
    ("machine", "parts", "workers", "gpu_write", "why"),
    [
        (LINUX, {"litmus": adds("native", "native")}, "mlx:cpu,torch:cpu", "cpu", ""),
        (MAC, METAL, "mlx:gpu,mlx:cpu,mlx:cpu", "cpu", "CPU workers"),
        (MAC, GOOD, "mlx:gpu", "metal", ""),
        (MAC, GOOD | {"kernels": []}, "mlx:gpu", "cpu", "ran no kernel on mlx"),
        (BARE, {}, "", "cpu", ""),
    ],
)  # fmt: skip
def test_a_record_decides_workers_and_who_writes(machine, parts, workers, gpu_write, why):
    options = option_values(record(**parts), machine)
    assert options["workers"]["auto"] == workers
    assert options["gpu_write"]["auto"] == gpu_write
    assert why in options["gpu_write"]["why"]
    assert ("pip install" in options["workers"]["why"]) == (machine is BARE)


def test_every_backend_has_a_verdict_with_its_reason():
    right = {**GOOD, "tokens_per_s_metal": {"mlx:gpu": 150_000.0}}
    options = option_values(record(**right, reads=[reads("torch:cpu")]), MAC)
    assert {name: each["auto"] for name, each in options["kernels"].items()} == {
        "mlx:gpu": "metal", "mlx:cpu": "native", "torch:mps": "eager", "torch:cpu": "native",
    }  # fmt: skip
    assert "1 kernels agree with their references" in options["kernels"]["mlx:gpu"]["why"]
    assert "mlx:cpu left out" in options["workers"]["why"]
    for name, expected in (
        ("gpu_write_metal", {"mlx:gpu": True, "torch:mps": False}),
        ("read_live", {"mlx:gpu": False, "torch:cpu": True}),
    ):
        assert {backend: each["ok"] for backend, each in options[name].items()} == expected
    linux = option_values(record(), LINUX)
    assert (linux["gpu_write_metal"], set(linux["read_live"])) == ({}, {"torch:cpu"})
    assert set(linux["kernels"]) == {name for name in BACKENDS if name.endswith(":cpu")}
