"""The tree is the architecture: imports point one way, and frameworks stay at the edge."""

import pytest

from tests.mad.report.sample import study
from tests.processes import python
from tools.structure import ORDER, ROOT, circles, imports, modules, part

NATIVE_USERS = {
    "arena", "data", "models", "optim", "strategies", "training", "mad", "research",
}  # fmt: skip
FRAMEWORKS = {"torch", "torchft", "mlx", "transformers", "xlstm", "mlstm_kernels"}


@pytest.mark.slow
def test_imports_point_one_way_without_circles_and_only_some_parts_use_the_native_module():
    assert {part(module) for module in modules() if module != "mlxhog"} <= set(ORDER)
    assert not circles()
    wrong = [
        str(edge)
        for edge in imports()
        if edge.points_up
        or edge.target == "mlxhog"
        or (edge.target == "mlxhog._native" and part(edge.module) not in NATIVE_USERS)
    ]
    assert not wrong, "\n".join(wrong)


def test_training_has_three_floors_of_which_none_imports_the_one_above():
    floors = [f"mlxhog.training.{name}." for name in ("plan", "worker", "supervisor")]
    above = {floor: tuple(floors[k + 1 :]) for k, floor in enumerate(floors)}
    wrong = [str(edge) for edge in imports() for floor, higher in above.items()
             if edge.module.startswith(floor) and edge.target.startswith(higher)]  # fmt: skip
    assert not wrong, "\n".join(wrong)


def test_only_backends_operators_and_files_named_for_it_import_a_framework():
    wrong = [
        str(edge)
        for edge in imports()
        if edge.target.split(".")[0] in FRAMEWORKS
        and part(edge.module) not in ("backends", "nn")
        and not (
            edge.file.stem.endswith(("_mlx", "_torch", "_float64", "torchft_group"))
            and (part(edge.module) != "models" or edge.module.startswith("mlxhog.models.ops."))
            or edge.file.stem.endswith("_float64")
        )
    ]
    assert not wrong, "\n".join(wrong)


def loaded_after(code, folder=ROOT):
    """The modules of a fresh process, started where `import models` would work by accident."""
    process = python("-c", f"{code}\nimport sys\nprint(*sys.modules)", cwd=folder)
    assert process.returncode == 0, process.stderr
    return set(process.stdout.splitlines()[-1].split())


LIGHT = """
import contextlib, sys
from pathlib import Path
import mlxhog
from mlxhog.cli import main
mlxhog.TrainConfig, mlxhog.ConfigError, mlxhog.mad
for words in (["--help"], ["train", "--help"], ["train", "--lrr", "1"], ["trian"],
              ["research", "classic"], ["completion", "bash", "--", "train", "--st"]):
    with contextlib.suppress(SystemExit):
        main(words)
assert not {"torch", "mlx", "numpy", "rich", "transformers"} & set(sys.modules)
import mlxhog.nn.layers
from mlxhog.models import families, registry
from mlxhog.models.ops import kernels
from mlxhog.display.tensorboard import TensorBoard
families.init_params(registry.load_architecture("tiny"), 0)
TensorBoard(Path.cwd())
main(["mad", "train", "--layers", "swigl"])
assert main(["mad", "leaderboard", "first"]) == 0
"""


@pytest.mark.slow
def test_the_front_door_help_lists_and_reading_load_no_framework_and_nothing_slow(tmp_path):
    study(tmp_path / "studies")
    loaded = loaded_after(LIGHT, tmp_path)
    assert "mlxhog.mad.report.leaderboard" in loaded
    assert not loaded & {"torch", "mlx.core", "matplotlib", "tensorflow"}  # rich sets the table


@pytest.mark.slow
def test_importing_everything_makes_no_second_copy_of_models_or_metal():
    names = [name for name in modules() if name != "mlxhog.__main__"]
    loaded = loaded_after("\n".join(f"import {name}" for name in names))
    assert set(names) <= loaded
    assert not loaded & {"models", "metal"}


def test_the_front_door_offers_what_it_lists():
    import mlxhog

    for name in mlxhog.__all__:
        assert getattr(mlxhog, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Arenaa'"):
        mlxhog.Arenaa  # noqa: B018
