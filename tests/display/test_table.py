"""Tables as text, at any width of a window."""

from rich.cells import cell_len

from mlxhog.display.table import FailureNote, Section, lines

RUNS = Section(
    "", ["run", "bits per byte", "why"],
    [["演示", "1.7304", "its folder /a/long/path/of/a/run is full"], ["[b]", "2", "PASS"]],
)  # fmt: skip


def test_columns_are_aligned_by_the_cells_that_characters_take_and_brackets_are_text():
    assert [*lines(RUNS, 100)] == [
        "run   bits per byte  why",
        "演示         1.7304  its folder /a/long/path/of/a/run is full",
        "[b]               2  PASS",
    ]


def test_a_narrow_window_breaks_headings_and_reasons_and_then_repeats_the_names():
    assert [*lines(RUNS, 32)] == [
        "        bits",
        "         per",
        "run     byte  why",
        "演示  1.7304  its folder",
        "              /a/long/path/of/a/",
        "              run is full",
        "[b]        2  PASS",
    ]
    text = [*lines(RUNS, 24)]
    assert [line.split()[0] for line in text if line.startswith(("run", "演", "["))] == [
        "run", "演示", "[b]",
    ] * 2  # fmt: skip
    assert max(map(cell_len, text)) <= 24


def test_colors_are_those_of_words_of_a_verdict_and_of_notes_only():
    part = Section("", ["why"], [["PASS"], ["passed"]], [FailureNote("one failed")])
    heading, *rest = lines(part, 80, colored=True)
    assert heading.startswith("\x1b[2mwhy")
    assert rest == ["\x1b[32mPASS  \x1b[0m", "passed", "\x1b[1;31mone failed\x1b[0m"]
