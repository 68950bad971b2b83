"""`mlxhog generate`: one prompt or many, the end of an answer, the pace."""

import io
import json
import re
from pathlib import Path

import pytest

from mlxhog.checkpoint.run import Run
from mlxhog.cli.generate import Answer, read_prompt, read_prompts, write
from mlxhog.data import textfiles
from mlxhog.data.conversations import STOPS
from mlxhog.decoding.engine import Piece
from mlxhog.display.streams import PrintableStream
from mlxhog.errors import ConfigError
from mlxhog.serving.source import LoadedWeights, WeightSource
from tests.cli.command import said, told
from tests.saved import letters, saved_run

LONG = "--max-new-tokens=40"


@pytest.fixture
def model(tmp_path, monkeypatch):
    """The name of a run with a checkpoint of a tiny model of letters and newlines only."""
    monkeypatch.chdir(tmp_path)
    return saved_run(tmp_path / "runs", params=letters()).name


def test_the_pace_stands_beside_the_text_and_json_tells_why_the_answer_ended(model, capsys):
    words = ("generate", model, "--prompt", "The ", LONG, "--seed=2")
    text, beside = said(capsys, *words)
    assert re.search(r"tokens at \d+ tok/s; the first after \d+\.\d+ s", beside)
    result = told(capsys, *words)
    assert result["tokens"] == len(result["ids"]) == 40
    assert bytes(result["ids"]).decode() == result["text"]
    assert text == f"{result['prompt']}{result['text']}\n"
    assert (result["prompt"], result["finish_reason"]) == ("The ", "length")
    assert 0 < result["ttft_s"] <= result["seconds"] + 1e-3
    assert result["tokens_per_s"] > 0
    stop = result["text"][11:13]
    ended = told(capsys, *words, "--stop", stop, "--stop", "never said")
    assert ended["text"] == result["text"].partition(stop)[0]
    assert ended["finish_reason"] == "stop"


def test_prompts_of_a_file_are_answered_as_each_alone(model, capsys):
    prompts = ["The ", "A much longer beginning of a text", "x", "yes, and"]
    Path("prompts.txt").write_text("\n".join(prompts) + "\n\n")
    words = ("generate", model, LONG, "--temperature=0")
    many = told(capsys, *words, "--prompt-file", "prompts.txt")
    assert [actual["prompt"] for actual in many["answers"]] == prompts
    assert many["tokens"] == sum(actual["tokens"] for actual in many["answers"])
    assert many["tokens_per_s"] > 0
    same = ("ids", "text", "finish_reason")
    for prompt, actual in zip(prompts, many["answers"], strict=True):
        alone = told(capsys, *words, "--prompt", prompt)
        assert [actual[name] for name in same] == [alone[name] for name in same]
    text, beside = said(capsys, *words, "--prompt-file", "prompts.txt")
    assert text == "".join(
        f"--- {n} of 4\n{actual['prompt']}{actual['text']}\n"
        for n, actual in enumerate(many["answers"], 1)
    )
    assert "tok/s" in beside


def test_conversations_are_prompts_with_the_text_and_the_ends_of_the_server(model, capsys):
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    talks = [messages[:1], [*messages, *messages[:1]]]
    lines = [json.dumps({"messages": talk}) + "\n" for talk in talks]
    Path("talks.jsonl").write_text("".join(lines))
    many = told(capsys, "generate", model, LONG, "--prompt-file", "talks.jsonl")
    texts = ["User: hi\nAssistant:", "User: hi\nAssistant: yo\nUser: hi\nAssistant:"]
    assert [result["prompt"] for result in many["answers"]] == texts
    assert read_prompts("talks.jsonl") == (texts, STOPS)
    Path("mixed.jsonl").write_text(lines[0] + '{"prompt": "a"}\n')
    with pytest.raises(ConfigError, match="some lines have a prompt and others have messages"):
        read_prompts("mixed.jsonl")
    for half in ("cut \ud83d", "zero\0"):  # half of an emoji, as a cut by UTF-16 units leaves it
        talk = {"messages": [{"role": "user", "content": half}]}
        Path("half.jsonl").write_text(lines[0] + json.dumps(talk))
        with pytest.raises(ConfigError, match="half.jsonl:2: not UTF-8 text, or it has a zero"):
            read_prompts("half.jsonl")


def test_a_model_says_what_it_was_trained_on_and_how_to_ask_it_otherwise(model, capsys):
    words = ("generate", model, "--prompt=hi", LONG)
    run = Run(Path("runs", model).absolute())
    for kind, plain, chat in (
        ("plain text", "", "; without --chat it continues the prompt"),
        ("conversations", "; --chat asks it as a user", ""),
    ):
        texts = "/home/me/private/notes\nold/b.txt"
        with run.lock():
            run.write_status({"status": "done", "data": texts, "text_kind": kind})
        for more, hint in (((), plain), (("--chat",), chat)):
            text, beside = said(capsys, *words, *more)
            assert beside.splitlines()[:2] == [
                f"trained on notes, b.txt ({kind}){hint}",
                f"weights of checkpoint step-00000000 of run {model}, step 0 (no update yet)",
            ]
            assert text.startswith("User: hi\nAssistant:" if more else "hi")


def test_an_answer_is_consistent_if_the_weights_of_each_of_its_tokens_are():
    source = WeightSource()
    source.name, source.mode = "run a", "double_buffer"
    for oldest, is_consistent in ((12, True), (10, False)):
        answer = Answer("p")
        answer.add(Piece(0, 5, "a"), LoadedWeights(version=12, oldest=oldest), 0.1)
        answer.add(Piece(0, 6, "b", "length"), LoadedWeights(version=13, oldest=13), 0.2)
        weights = answer.to_json(source)["weights"]
        assert (weights["version_first"], weights["version_last"]) == (12, 13)
        assert weights["consistent"] == is_consistent


def test_a_prompt_is_read_as_training_reads_its_text(tmp_path, monkeypatch):
    path, lines = tmp_path / "a", tmp_path / "a.ndjson"
    for content in (b"\xef\xbb\xbfone\r\ntwo\r\n", b"one\ntwo\n"):
        path.write_bytes(content)
        ((_, document),) = textfiles.documents(path, None)
        assert read_prompt(f"@{path}").encode() == document == b"one\ntwo\n"
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
        assert read_prompts("-") == read_prompts(str(path)) == (["one", "two"], ())
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_prompt("@~/a").encode() == document
    assert read_prompts("~/a") == (["one", "two"], ())
    assert read_prompt("one\r\ntwo\n").encode() == document
    lines.write_text('\ufeff{"prompt": "one\\r\\ntwo\\n"}\r\n')
    for spec in (str(lines), "~/a.ndjson"):
        assert read_prompts(spec) == ([document.decode()], ())
    path.write_bytes("never wait, never lock".encode("utf-16-le"))
    with pytest.raises(ConfigError, match="zero byte.*save it as UTF-8"):
        read_prompt(f"@{path}")


def test_a_terminal_gets_tabs_and_joiners_of_an_answer_and_nothing_that_moves_its_cursor(
    monkeypatch,
):
    kept = "if a:\n\tb\u00a0c\u3000d \u0646\u0645\u06cc\u200c\u062e \U0001f469\u200d\U0001f52c"
    for is_terminal in (True, False):
        stream = io.StringIO()
        stream.isatty = lambda is_terminal=is_terminal: is_terminal
        monkeypatch.setattr("sys.stdout", PrintableStream(stream))
        hostile = "\x1b[2J\r\x07\x9b\x7f\x08\u202e\u2066\u2028\0"
        write(kept + hostile)
        assert stream.getvalue() == kept + (" [2J" + " " * 9 if is_terminal else hostile)
