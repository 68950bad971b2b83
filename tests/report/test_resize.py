"""The live table in a window whose size changes: a pseudo-terminal, and what it would show."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

DRAW = """
import os
import sys
from dataclasses import replace
from mlxhog.report.plain import observer
from tests.report.test_terminal import PROGRESS
with observer(sys.stderr) as view:
    for number, line in enumerate(sys.stdin):
        view(replace(PROGRESS, step=1000 + number, message="worker 2 restarted"))
        os.write(1, b"drawn\\n")  # sys.stdout is the view's
"""
TOKEN = re.compile(r"\x1b\[\??([\d;]*)([A-Za-z])|(.)", re.DOTALL)


class Screen:
    """What a terminal shows that breaks its lines anew when it is resized, as most do."""

    def __init__(self, width):
        self.width = width
        self.rows = [("", False)]  # text, and whether the next goes on
        self.row = self.column = 0

    def feed(self, text):
        for numbers, command, character in TOKEN.findall(text):
            if command:
                self._control(command, int(numbers) if numbers.isdecimal() else 0)
            elif character == "\n":
                self._down()
            elif character == "\r":
                self.column = 0
            else:
                if self.column == self.width:
                    self.rows[self.row] = (self.rows[self.row][0], True)
                    self._down()
                    self.column = 0
                before, goes_on = self.rows[self.row]
                padded = before.ljust(self.column)
                after = padded[self.column + 1 :]
                self.rows[self.row] = (padded[: self.column] + character + after, goes_on)
                self.column += 1

    def _down(self):
        self.row += 1
        if self.row == len(self.rows):
            self.rows.append(("", False))

    def _control(self, command, number):
        if command == "A":
            self.row = max(0, self.row - max(number, 1))
        elif command == "K":
            self.rows[self.row] = ("", False)
        elif command == "J" and number == 2:
            self.rows = [("", False)] * len(self.rows)
        elif command == "H":
            self.row = self.column = 0
        else:
            assert command in "mhl", command

    def resize(self, width):
        joined, goes_on = [""], True
        for text, more in self.rows[: self.row + 1]:  # nothing was written below
            joined = [*joined[:-1], joined[-1] + text] if goes_on else [*joined, text]
            goes_on = more
        self.width, self.rows = width, []
        for text in joined:
            parts = [text[k : k + width] for k in range(0, max(len(text), 1), width)]
            self.rows += [(part, k < len(parts) - 1) for k, part in enumerate(parts)]
        self.row, self.column = len(self.rows) - 1, len(self.rows[-1][0])

    @property
    def text(self):
        return "\n".join(text.rstrip() for text, _ in self.rows).strip()


class Window:
    """A process that draws the table on a terminal of ours."""

    def __init__(self, width):
        self.ours, theirs = pty.openpty()
        self.screen = Screen(width)
        self._tell(width)
        without = ("COLUMNS", "LINES", "NO_COLOR")
        clean = {name: value for name, value in os.environ.items() if name not in without}
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRAW],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=theirs, text=True,
            cwd=Path(__file__).parents[2], env={**clean, "TERM": "xterm-256color"},
        )  # fmt: skip
        os.close(theirs)

    def _tell(self, width):
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))

    def draw(self):
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        output, shown = self.process.stdout, b""
        drawn = False
        while not drawn or select.select([self.ours], [], [], 0)[0]:
            ready = select.select([self.ours, output], [], [], 60)[0]
            assert ready, "it draws nothing"
            if self.ours in ready:
                shown += os.read(self.ours, 1 << 16)
            if output in ready:
                drawn = bool(output.readline())
        self.screen.feed(shown.decode())
        return self.screen.text

    def resize(self, width):
        self._tell(width)
        self.screen.resize(width)


@pytest.fixture
def window():
    result = Window(100)
    yield result
    with result.process:
        assert result.process.stdin is not None
        result.process.stdin.close()
        while select.select([result.ours], [], [], 60)[0]:
            try:
                if not os.read(result.ours, 1 << 16):
                    break
            except OSError:  # the other end is closed: Linux says so by an error
                break
    os.close(result.ours)


def once(text, *words):
    assert [text.count(word) for word in words] == [1] * len(words), text


@pytest.mark.slow
def test_a_table_in_a_window_that_shrinks_and_grows_is_drawn_once(window):
    window.draw()
    for number, width in enumerate((60, 45, 110, 70), start=1):
        window.resize(width)
        text = window.draw()
        once(text, f"step {1000 + number}", "worker  ", "ETA", "worker 2 restarted", "arena  ")
        assert max(map(len, text.splitlines())) <= width
