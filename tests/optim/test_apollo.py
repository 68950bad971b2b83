"""APOLLO and APOLLO-Mini: the trajectories of the authors' package, projections, the zero guard."""

import json
from pathlib import Path

import numpy as np
import pytest

from mlxhog.optim import Apollo, ApolloMini, Use, apollo
from mlxhog.optim.apollo import draw_projection
from tests.optim.small import HIDDEN, MATRIX, Slot, initial, parameter, target
from tests.pairs import each_of
from tests.tolerances import APOLLO_GOLDEN, assert_close

GOLDEN = Path(__file__).parents[1] / "golden" / "apollo"
CASES = sorted(path.stem for path in GOLDEN.glob("*.npz"))


class OfThePackage(Apollo):
    zero_guard = False


class OfThePackageMini(ApolloMini):
    zero_guard = False


class Trajectory:
    """One parameter of a recorded case: how it was moved, and where it went."""

    def __init__(self, data, number, group):
        def read(name):
            return data[f"p{number}_{name}"]

        self.init, self.grads, self.params = map(read, ("init", "grads", "params"))
        self.moments, self.norms = (read("exp_avg"), read("exp_avg_sq")), read("nl_norm")
        self.projections = read("proj") if "rank" in group else None
        self.group, self.lr = group, group["lr"]

    def rule(self):
        """The optimizer of its group, with the package's defaults."""
        group = self.group
        beta1, beta2 = group.get("betas", (0.9, 0.999))
        by_matrix = group.get("scale_type") == "tensor"
        if by_matrix:
            assert group["rank"] == 1
        return (OfThePackageMini if by_matrix else OfThePackage)(
            use=Use(hidden=frozenset({"p"} if self.projections is not None else ())),
            **({} if by_matrix else {"rank": group.get("rank")}),
            scale=group.get("scale"),
            every=group.get("update_proj_gap", 200),
            beta1=beta1,
            beta2=beta2,
            eps=group.get("eps", 1e-6),
            weight_decay=group.get("weight_decay", 0.0),
        )

    def draw_projection(self, slot, rank, number, **_):
        return self.projections[number].astype(np.float32)

    def steps(self):
        """Each step that has a gradient."""
        return [(at, grad) for at, grad in enumerate(self.grads) if not np.isnan(grad).all()]


def trajectories(case):
    data = np.load(GOLDEN / f"{case}.npz")
    config = json.loads(str(data["config"]))
    groups = [{**config["opt"], **group} for group in config["groups"] for _ in group["shapes"]]
    return [Trajectory(data, number, group) for number, group in enumerate(groups)]


def place(rule, values):
    """A target with one parameter, whose values are given."""
    slot = Slot("p", values.shape, 32)
    flat = np.zeros(slot.offset + slot.size + 32, np.float32)
    parameter(flat, slot)[...] = values
    return target(rule, flat, "p", slots={"p": slot}), slot


@pytest.mark.slow
@each_of("case", CASES)
def test_steps_are_those_of_the_authors_package(case, monkeypatch):
    for trajectory in trajectories(case):
        monkeypatch.setattr(apollo, "draw_projection", trajectory.draw_projection)
        rule = trajectory.rule()
        where, slot = place(rule, trajectory.init)
        for count, (at, grad) in enumerate(trajectory.steps(), start=1):
            rule.step(where, {"p": grad.astype(np.float32)}, lr=trajectory.lr, step=count)
            assert_close(parameter(where.flat, slot), trajectory.params[at], APOLLO_GOLDEN)
            for name, expected in zip("mv", trajectory.moments, strict=True):
                assert_close(where.state(name, slot), expected[at], APOLLO_GOLDEN)
            if not np.isnan(trajectory.norms[at]):
                assert_close(where.state("norm", slot)[0], trajectory.norms[at], APOLLO_GOLDEN)


def test_a_projection_is_the_same_in_every_process_and_another_for_every_refresh():
    p = draw_projection(MATRIX, 4, 0, seed=3, right=False)
    assert p.shape == (6, 4)
    assert p.dtype == np.float32
    # As any NumPy draws it: Philox's numbers and the normal ones made of them are fixed.
    np.testing.assert_allclose(p[0, :2], RECORDED, rtol=1e-6)
    np.testing.assert_array_equal(p, draw_projection(MATRIX, 4, 0, seed=3, right=False))
    others = [
        draw_projection(MATRIX, 4, 1, seed=3, right=False),
        draw_projection(MATRIX, 4, 0, seed=4, right=False),
        draw_projection(Slot("other", (6, 9), 0), 4, 0, seed=3, right=False),
    ]
    assert all(not np.isclose(p, other).any() for other in others)


RECORDED = (0.17810124, -0.46952346)


def test_a_gradient_of_zeros_does_not_stop_a_matrix_as_in_the_package():
    rule, flat = Apollo(use=Use(hidden=HIDDEN), rank=2), initial()
    where, lengths = target(rule, flat), []
    for step in range(1, 7):
        before, grad = flat.copy(), np.random.default_rng(step).standard_normal(MATRIX.shape)
        rule.step(where, {"matrix": np.float32(grad * (step != 3))}, lr=0.1, step=step)
        lengths.append(float(np.linalg.norm(flat - before)))
    assert lengths[2] == 0
    assert min(lengths[3:]) > 0.3 * lengths[0]
