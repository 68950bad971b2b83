"""Each recipe of exports.md gives a file that `train` reads."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mlxhog.data import corpora
from tests.data.token_files import documents_of

PAGE = Path(__file__).resolve().parents[2] / "examples" / "exports.md"
CHATGPT, CLAUDE, MESSENGERS, MAIL = re.findall(r"```sh\n(.*?)```", PAGE.read_text("utf-8"), re.S)
needs_jq = pytest.mark.skipif(shutil.which("jq") is None, reason="no jq: apt-get install jq")


def pasted(block, folder, **files):
    """Write exported files, paste a block, and return the documents of the files that it writes."""
    for name, content in files.items():
        (folder / name.replace("_", ".")).write_bytes(content)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["sh", "-ec", block], cwd=folder, env={**os.environ, "PATH": path}, check=True)
    files = [str(folder / name) for name in re.findall(r"> (\S+)", block)]
    return [[text.decode() for text in documents_of(corpora.find(file))] for file in files]


def said(author, *contents):
    return [author(role, text) for role, text in zip(("user", "assistant"), contents, strict=False)]


TALKS = (
    ["Hi?", "Hello."],
    ["Is anybody there?"],
    [],
    ["See the file.", ""],
    ["And?", " \n"],
    ["1", "2"],
)
ANSWERED = ["User: Hi?\nAssistant: Hello.", "User: 1\nAssistant: 2"]


@needs_jq
def test_a_chat_without_an_answer_is_left_out_of_the_training_data(tmp_path):
    def of_chatgpt(role, text):
        return {"message": {"author": {"role": role}, "content": {"parts": [text, {"image": 1}]}}}

    def of_claude(role, text):
        return {"sender": {"user": "human"}.get(role, role), "text": text}

    root = {"root": {"message": None}, "system": of_chatgpt("system", "Be brief.")}
    for block, chats in {
        CHATGPT: [{"mapping": root | dict(enumerate(said(of_chatgpt, *talk)))} for talk in TALKS],
        CLAUDE: [{"chat_messages": said(of_claude, *talk)} for talk in TALKS],
    }.items():
        (read,) = pasted(block, tmp_path, conversations_json=json.dumps(chats).encode())
        assert read == ANSWERED


@needs_jq
def test_messages_of_messengers_have_their_authors(tmp_path):
    discord = [{"author": {"name": "A"}, "content": "Hi"}]
    telegram = [
        {"from": "A", "text": "Hi"},
        {"from": "B", "text": ""},
        {"text": [{"type": "link"}]},
    ]
    files = {"discord_json": discord, "result_json": telegram}
    files = {name: json.dumps({"messages": said}).encode() for name, said in files.items()}
    assert pasted(MESSENGERS, tmp_path, **files) == [["A: Hi\n"], ["A: Hi\n"]]


def test_a_mail_of_an_unknown_charset_is_read_with_those_around_it(tmp_path):
    mails = [
        f"From a@b Thu Jan  1 00:00:00 2026\nContent-Type: text/plain; charset={one}\n\n{one}\n\n"
        for one in ("utf-8", "x-unknown", "latin-1")
    ]
    assert pasted(MAIL, tmp_path, box_mbox="".join(mails).encode()) == [
        ["utf-8\n", "x-unknown\n", "latin-1\n"]
    ]
