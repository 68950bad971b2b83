"""Texts of errors: what a terminal shows of them, and packages that cannot be imported."""

from mlxhog.errors import MAX_CHARACTERS, CheckpointError, message_of, not_imported, one_line
from tests.pairs import each_of


def test_an_error_has_no_control_character_but_line_ends():
    error = CheckpointError("two\nlines of \x1b[2J\x07\x9b and \u202e ä")
    assert str(error) == "two\nlines of \\x1b[2J\\x07\\x9b and \\u202e ä"


ERROR = "program_source:990:7: error: no matching function for call to 'simdgroup_load'"


def compiler_text(errors=1, after=0):
    """What MLX raises: its own line, then Apple's text of 5,000 characters, warnings first."""
    warning = "program_source:{}:9: warning: unused variable 'x' [-Wunused-variable]\n  float x;\n"
    warnings = [warning.format(n) + f"{'^':>9}~~~{'':60}\n" for n in range(30)]
    blocks = [
        *warnings[after:],
        *[f"{ERROR}\n  simdgroup_load(tile);\n"] * errors,
        *warnings[:after],
    ]
    return "[metal::Device] Unable to build metal library from source\n" + "".join(blocks)


@each_of("after", [0, 1, 7, 15, 30])
def test_of_a_compilers_text_the_errors_outlive_every_bound(after):
    text = compiler_text(after=after)
    assert len(text) > 4500
    whole = str(CheckpointError(f"kernel mlstm failed: {text}; use --kernels eager"))
    assert len(whole) <= MAX_CHARACTERS + 100
    assert ERROR in whole.splitlines()
    assert whole.startswith("kernel mlstm failed: [metal::Device]")
    assert whole.endswith("; use --kernels eager")
    short = message_of(RuntimeError(text))
    assert short.startswith(ERROR)
    assert len(short) <= 203
    assert "\n" not in short
    assert ERROR in one_line(text, most=500)


def test_of_hundreds_of_errors_the_first_are_kept():
    whole = str(CheckpointError(compiler_text(errors=500)))
    assert len(whole) <= MAX_CHARACTERS + 100
    assert whole.count(ERROR) > 20


def test_a_text_that_fits_keeps_its_order():
    assert (
        message_of(RuntimeError("a:1: warning: b\na:2: error: c"))
        == "a:1: warning: b a:2: error: c"
    )
    assert message_of(RuntimeError("")) == "RuntimeError"


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
