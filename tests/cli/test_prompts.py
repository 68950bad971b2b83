"""Prompts of files are read as training reads its text."""

import pytest

from mlxhog.cli import generate
from mlxhog.data import textfiles
from mlxhog.errors import ConfigError
from tests.pairs import each_of

PROMPTS = {
    "marked": b"\xef\xbb\xbfone\r\ntwo\r\n",
    "plain": b"one\ntwo\n",
}


@each_of("name", PROMPTS)
def test_a_prompt_is_read_as_training_reads_its_text(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(PROMPTS[name])
    (document,) = textfiles.documents(path, None)
    assert generate.read_prompt(f"@{path}").encode() == document == b"one\ntwo\n"
    assert generate.read_prompts(str(path)) == (["one", "two"], ())
    assert generate.read_prompt("one\r\ntwo\n").encode() == document
    lines = tmp_path / "a.ndjson"
    lines.write_text('\ufeff{"prompt": "one\\r\\ntwo\\n"}\r\n')
    assert generate.read_prompts(str(lines)) == ([document.decode()], ())


def test_a_prompt_in_utf16_without_a_mark_is_named(tmp_path):
    (tmp_path / "a").write_bytes("never wait, never lock".encode("utf-16-le"))
    with pytest.raises(ConfigError, match="zero byte.*save it as UTF-8"):
        generate.read_prompt(f"@{tmp_path / 'a'}")
