"""A quick comparison: every side, every kind of number, some rows, and two backends at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from mlxhog.errors import ConfigError, EnvironmentLacks
from mlxhog.models.families import param_spec
from mlxhog.models.registry import load_architecture
from mlxhog.parity import compute, quick, sources
from mlxhog.parity.comparison import compare_sides
from mlxhog.parity.sources import (
    TrialSettings,
    bytes_needed,
    check_memory,
    model_subject,
    open_source,
    perturbed_init,
)
from mlxhog.parity.subject import ModelPlan, ParitySide, ParitySubject, choose
from tests.models.sample import config, v1_config
from tests.pairs import each_of
from tests.parity.here import Here

HEAD, EMBEDDING = "lm_head.weight", "backbone.embeddings.weight"
MOST = 100
SIDES = (
    ParitySide("numpy", "numpy"),
    ParitySide("torch:cpu", "torch:cpu", "native"),
    ParitySide("torch:cpu+reference", "torch:cpu", "reference"),
    ParitySide("mlx:cpu", "mlx:cpu", "native"),
    ParitySide("transformers", "transformers"),
)


def ignore(side: str, step: str) -> None:
    """No output."""


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tensors count as large ones."""
    monkeypatch.setattr(quick, "MOST", MOST)
    monkeypatch.setattr(quick, "LARGEST_STEPPED", 300)


def subject(cfg: Any = None) -> ParitySubject:
    cfg = cfg or config()
    sizes = TrialSettings(batch_size=1, seq_len=9, steps=1, quick=True)
    return model_subject("small", cfg, perturbed_init(cfg, 0), sizes, "")


@pytest.mark.slow
@pytest.mark.usefixtures("sides_here", "large")
@each_of("cfg", [config(), v1_config()], ids=["large", "v1"])
def test_every_side_agrees_in_every_kind_of_number_but_those_token_by_token(cfg: Any) -> None:
    sides = [side for side in SIDES if side.name != "transformers" or cfg.model_type == "xlstm"]
    whole = subject(cfg)
    comparison = compare_sides(whole, sides, ignore)
    assert comparison.ok, comparison.first_bad
    assert {row.a for row in comparison.rows} >= {side.name for side in sides[1:]}
    kinds = {row.kind for row in comparison.rows}
    assert kinds >= {"operator", "products", "hidden", "logits", "loss", "state", "grad", "after"}
    assert not any(row.what.startswith("stepwise/") for row in comparison.rows)
    gradients = {row.what.removeprefix("grad/") for row in comparison.rows if row.kind == "grad"}
    assert gradients == set(param_spec(cfg))
    assert quick.left_out(whole.plan) in whole.notes  # type: ignore[arg-type]


@pytest.mark.usefixtures("large")
def test_of_a_large_gradient_every_nth_row_is_kept_and_of_an_embedding_the_rows_of_tokens() -> None:
    small = subject()
    plan, tokens = small.plan, small.fixed["tokens"]
    assert isinstance(plan, ModelPlan)
    reduced = quick.reduction(plan, small.fixed)
    grad = np.arange(23 * 16.0).reshape(23, 16)
    assert np.array_equal(reduced(HEAD, grad), grad[::4])  # 368 numbers, at most 100
    kept = sorted({*range(0, 23, 4), *tokens.ravel().tolist()})
    assert np.array_equal(reduced(EMBEDDING, grad), grad[kept])
    assert reduced(HEAD, grad[:6]) is not None
    assert len(reduced(HEAD, grad[:6])) == 6
    assert len(quick.reduction(replace(plan, quick=False), small.fixed)(HEAD, grad)) == 23


@pytest.mark.usefixtures("large")
def test_optimizers_move_one_parameter_of_each_role_whose_gradient_is_whole() -> None:
    small = subject()
    assert isinstance(small.plan, ModelPlan)
    moved = quick.stepped(small.plan, small.inputs)
    spec = param_spec(small.plan.cfg)
    small_ones = {name for name, one in spec.items() if one.size <= 300}
    assert set(moved) == {name for name in small_ones if ".blocks.0." not in name}
    reduced = quick.reduction(small.plan, small.fixed)
    assert all(len(reduced(name, value)) == len(value) for name, value in moved.items())
    assert quick.stepped(replace(small.plan, quick=False), small.inputs) is small.inputs


@pytest.mark.usefixtures("sides_here", "large")
@each_of("name", [HEAD, "backbone.blocks.1.ffn.proj_down.weight", EMBEDDING])
def test_a_perturbed_parameter_is_noticed(name: str) -> None:
    assert compare_sides(subject(), SIDES[:2], ignore, perturb=name).first_bad is not None


@pytest.mark.usefixtures("sides_here", "large")
@each_of("name", [HEAD, "backbone.blocks.0.mlstm_layer.q.weight"])
def test_a_gradient_that_is_wrong_in_all_rows_is_noticed(name: str) -> None:
    right = compute.side_results

    def wrong(side: ParitySide, *arguments: Any) -> Iterator[tuple[str, Any]]:
        for what, x in right(side, *arguments):
            yield what, -x if side.name == "torch:cpu" and what == f"grad/{name}" else x

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compute, "side_results", wrong)
        comparison = compare_sides(subject(), SIDES[:2], ignore)
    assert comparison.first_bad is not None
    assert comparison.first_bad.what == f"grad/{name}"


class Counted(Here):
    """A child that counts how many are there."""

    there: ClassVar[int] = 0
    most: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        self._open = True
        Counted.there += 1
        Counted.most = max(Counted.most, Counted.there)

    def close(self) -> None:
        """End it, once."""
        if self._open:
            Counted.there -= 1
            super().close()
        self._open = False


@pytest.mark.slow
@pytest.mark.usefixtures("sides_here")
def test_two_backends_compute_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "Child", Counted)
    for plan, most in ((replace(subject().plan, quick=False), 4), (subject().plan, 2)):  # type: ignore[type-var]
        Counted.there = Counted.most = 0
        sides = [side for side in SIDES if not side.name.endswith("reference")]
        with compute.computed_results(replace(subject(), plan=plan), sides, None, ignore):
            assert (Counted.there, Counted.most) == (0, most)


class Threaded(Here):
    """A child that computes beside its parent."""

    def start(self, lane: Any, function: Callable[..., Any], *arguments: Any) -> None:
        """Compute in a thread, and then make the pipe ready to be read."""
        begin = super().start
        threading.Thread(target=lambda: begin(lane, function, *arguments)).start()


def test_a_side_that_takes_long_says_what_it_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = threading.Event()

    def slow(*arguments: Any) -> Iterator[tuple[str, Any]]:
        arguments[-1]("the hard part")
        assert seen.wait(30)
        yield "loss", np.zeros(())

    def tell(side: str, step: str) -> None:
        if step == "numpy: the hard part":
            seen.set()

    monkeypatch.setattr(compute, "Child", Threaded)
    monkeypatch.setattr(compute, "LOOK_S", 0.01)
    monkeypatch.setattr(compute, "side_results", slow)
    with compute.computed_results(subject(), SIDES[:1], None, tell):
        assert seen.is_set()


def test_a_quick_comparison_that_does_not_fit_wants_a_smaller_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sources, "MEMORY_SHARE", 0.0)
    settings = TrialSettings(quick=True)
    with pytest.raises(EnvironmentLacks, match="in 2 processes, .* use a smaller model, or a"):
        check_memory(open_source("config", "tiny", settings, Path("runs")), SIDES)


def test_160m_fits_into_8_gb_and_a_recorded_case_is_never_quick() -> None:
    plan = ModelPlan(load_architecture("160m"), steps=1, quick=True)
    sides, _ = choose("auto", "all", plan)
    assert (
        bytes_needed(plan, (1, 67), sides)
        < 8e9
        < bytes_needed(replace(plan, quick=False), (1, 67), sides)
    )
    with pytest.raises(ConfigError, match="the recorded case x.safetensors is compared whole"):
        open_source("case", "x.safetensors", TrialSettings(quick=True), Path("runs"))
