"""`mlxhog chat`: a conversation by lines or on a terminal, with commands and interrupts."""

import contextlib
import io
import json
import os
import pty
import signal
import subprocess
import sys

import pytest

from mlxhog.checkpoint.run import Run
from mlxhog.data import conversations
from tests.cli.command import refused, said, told
from tests.saved import letters, saved_run

LONG = ("--max-new-tokens=20", "--seed=2")


@pytest.fixture
def text_run(tmp_path, monkeypatch):
    """The name of a run of a tiny model of letters and newlines only, trained on text."""
    monkeypatch.chdir(tmp_path)
    run = saved_run(tmp_path / "runs", params=letters())
    return trained_on(run, "plain text")


def trained_on(run, kind):
    with run.lock():
        run.write_status({"status": "done", "data": "notes.jsonl", "text_kind": kind})
    return run.name


@pytest.fixture
def run(text_run, tmp_path):
    """The name of the same run, trained on conversations."""
    return trained_on(Run(tmp_path / "runs" / text_run), "conversations")


def lines(monkeypatch, text):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))


def answers(capsys, monkeypatch, text, *words):
    """The answers to lines of standard input, in order."""
    lines(monkeypatch, text.encode())
    return [
        json.loads(one)
        for one in said(capsys, "chat", *words, *LONG, "--json").out.split("\n")[:-1]
    ]


def generated(capsys, name, prompt):
    stops = [word for stop in conversations.STOPS for word in ("--stop", stop)]
    return told(capsys, "generate", name, "--prompt", prompt, *LONG, *stops)["text"]


def user(text):
    return {"role": "user", "content": text}


def test_each_line_is_a_message_and_the_model_reads_the_whole_conversation(
    run, capsys, monkeypatch
):
    one, two = answers(capsys, monkeypatch, "Hello\n\nAnd now?\n", run)
    assert (one["prompt"], two["prompt"]) == ("Hello", "And now?")
    said_first = [user("Hello"), {"role": "assistant", "content": one["text"]}]
    assert one["text"] == generated(capsys, run, conversations.prompt(said_first[:1])).lstrip()
    whole = conversations.prompt([*said_first, user("And now?")])
    assert two["text"] == generated(capsys, run, whole).lstrip()
    lines(monkeypatch, b"Hello\n")
    out, err = said(capsys, "chat", run, *LONG)
    assert (out, err) == (f"{one['text']}\n", "")


def test_reset_begins_another_conversation_and_system_stands_before_it(run, capsys, monkeypatch):
    text = "Hello\n/reset\nHello\n/system Be brief.\n/reset\nHello\n/exit\nHello\n"
    first, again, told_before = answers(capsys, monkeypatch, text, run)
    assert again["text"] == first["text"]
    prompt = conversations.prompt([{"role": "system", "content": "Be brief."}, user("Hello")])
    assert told_before["text"] == generated(capsys, run, prompt).lstrip()


def test_a_run_of_texts_continues_the_text_and_says_so(text_run, capsys, monkeypatch):
    one, two = answers(capsys, monkeypatch, "The\nThen\n", text_run)
    assert one["text"] == generated(capsys, text_run, "The")
    assert two["text"] == generated(capsys, text_run, f"The{one['text']}\nThen")
    lines(monkeypatch, b"The\n")
    out, err = said(capsys, "chat", text_run, *LONG)
    assert out == f"{one['text']}\n"
    assert "was trained on notes.jsonl (plain text): it continues your text; --chat talks" in err
    lines(monkeypatch, b"/system Be brief.\n")
    assert "this model continues text" in said(capsys, "chat", text_run, code=2).err
    (turn,) = answers(capsys, monkeypatch, "The\n", text_run, "--chat")
    prompt = conversations.prompt([user("The")])
    assert turn["text"] == generated(capsys, text_run, prompt).lstrip()


@pytest.mark.parametrize("line", [b"a\0b\n", b"\xff\xfe\n"])
def test_a_line_that_is_no_text_is_refused(line, run, capsys, monkeypatch):
    lines(monkeypatch, line)
    refused(capsys, "standard input: not UTF-8 text", "chat", run)


@pytest.mark.slow
@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])  # of a locale with a language, C
def test_on_a_terminal_no_text_is_asked_again_and_ctrl_c_ends_an_answer_and_then_the_chat(
    errors, run, tmp_path
):
    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "mlxhog", "chat", run, "--max-new-tokens=10000000", "--seed=2"]
    how = {"stdin": theirs, "stdout": theirs, "stderr": theirs, "cwd": tmp_path}
    how["env"] = os.environ | {"PYTHONIOENCODING": f"utf-8:{errors}"}
    with subprocess.Popen(words, start_new_session=True, **how) as child:
        os.close(theirs)
        shown = until(ours, "> ")
        assert "Ctrl-C ends an answer" in shown
        os.write(ours, b"/what\n")
        assert "no command /what; commands are /reset" in until(ours, "> ")
        os.write(ours, b"caf\xff\n")
        assert "this line is not UTF-8 text" in until(ours, "again\r\n> ")
        os.write(ours, b"Hello\n")
        until(ours, "ggg", "fff", "hhh", "iii", "eee")  # the answer has begun
        os.kill(child.pid, signal.SIGINT)
        until(ours, "\r\n> ")
        os.write(ours, b"/reset\n")
        until(ours, "> ")
        # Python's readline notices a signal that comes before it waits for a key at the next one.
        while child.poll() is None:
            os.kill(child.pid, signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(1)
        assert child.returncode == 130
    os.close(ours)


def until(terminal, *ends):
    """What a program shows up to one of some texts."""
    shown = ""
    while not any(end in shown for end in ends):
        shown += os.read(terminal, 4096).decode(errors="replace")
    return shown
