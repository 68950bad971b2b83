"""Texts of errors: what a terminal shows of them, and packages that cannot be imported."""

from mlxhog.errors import CheckpointError, not_imported
from tests.pairs import each_of


def test_an_error_has_no_control_character_but_line_ends():
    error = CheckpointError("two\nlines of \x1b[2J\x07\x9b and \u202e ä")
    assert str(error) == "two\nlines of \\x1b[2J\\x07\\x9b and \\u202e ä"


@each_of(
    "error",
    [
        ImportError("libtorch.so: cannot allocate memory", name="torch"),
        OSError("libtorch.so: cannot allocate memory"),
        MemoryError("cannot allocate memory"),
        ModuleNotFoundError("cannot allocate memory", name="typing_extensions"),
    ],
)
def test_a_package_that_is_installed_and_cannot_be_loaded_is_named_as_that(error):
    message = str(not_imported("torch", error, "install torch"))
    assert "torch is installed and cannot be loaded: " in message
    assert "cannot allocate memory" in message
    assert "install torch" not in message
    absent = ModuleNotFoundError("No module named 'torch'", name="torch")
    assert str(not_imported("torch", absent, "install torch")) == "install torch"
