"""Names of other tools are answered with ours."""

from mlxhog.config import sources
from mlxhog.config.config import TrainConfig
from mlxhog.config.options import options
from mlxhog.config.sources import suggestion


def test_no_name_of_ours_is_taken_for_one_of_another_tool():
    spec = options(TrainConfig)
    names = {*spec, *(alias for each in spec.values() for alias in each.aliases)}
    assert not names & sources._OURS.keys()


def test_a_typing_error_is_answered_with_the_nearest_name():
    assert suggestion("--lrr", ["--lr", "--out"]) == "; did you mean '--lr'?"
    assert suggestion("--zzz", ["--lr", "--out"]) == ""
