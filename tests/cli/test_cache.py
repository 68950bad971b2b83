"""`mlxhog cache`: what is kept, with its text and size; `cache clear` removes what nobody uses."""

import fcntl
from pathlib import Path

import pytest

from mlxhog.base.cache import user_cache_directory
from mlxhog.data.prepare import max_bytes, prepare
from tests.cli.command import refused, said, told
from tests.data.token_files import written


@pytest.fixture
def texts(tmp_path):
    """Two prepared texts that no process has open, and other things of the cache."""
    cache = user_cache_directory()
    (cache / "metal").unlink()  # the tests' own
    for name in ("metal", "named-files"):
        (cache / name).mkdir()
        (cache / name / "file").write_text("x" * 100)
    for name in ("doctor-m4.json", "mine.txt"):
        (cache / name).write_text("{}")
    paths = [written(tmp_path / name, {f"{k}.txt": f"{name} adds " * 99 for k in range(12)})
             for name in ("one", "two")]  # fmt: skip
    for path in paths:
        prepare(str(path))
    return list(map(str, paths))


def test_the_list_has_every_text_and_kind_with_its_size_and_the_bound(texts, monkeypatch, capsys):
    monkeypatch.chdir(Path(texts[0]).parent)
    facts = told(capsys, "cache")
    assert [(one["kind"], one["name"], one["text"]) for one in facts["entries"][2:]] == [
        ("doctor", "doctor-m4.json", None), ("kernels", "metal", None), ("other", "mine.txt", None),
        ("named-files", "named-files", None),
    ]  # fmt: skip
    assert [one["text"] for one in facts["entries"][:2]] == texts[::-1]
    assert facts["bytes"] == sum(one["bytes"] for one in facts["entries"])
    assert facts["max_token_bytes"] == max_bytes(user_cache_directory()) >= 10e9
    header, *lines = said(capsys, "cache").out.splitlines()
    assert header.split() == ["name", "kind", "text", "tokenizer", "size", "last", "used"]
    assert "100 B" in lines[3]
    assert f"in {user_cache_directory()}: tokens" in lines[-1]


def test_clear_removes_what_is_made_again_or_named_but_not_what_is_in_use(texts, capsys):
    refused(capsys, "would remove", "cache", "clear")
    refused(capsys, "nothing in the cache is called 'tokns'; did you mean 'tokens'?",
            "cache", "clear", "tokns")  # fmt: skip
    in_use = prepare(texts[0])
    facts = told(capsys, "cache", "clear", "--yes")
    assert [(one["kind"], one["text"]) for one in facts["removed"]] == [
        ("tokens", texts[1]), ("kernels", None),
    ]  # fmt: skip
    assert [one["text"] for one in facts["kept"]] == [texts[0]]
    assert in_use.train.path.exists()
    del in_use
    assert f"removed {texts[0]} (" in said(capsys, "cache", "clear", texts[0], "--yes").out
    assert {one["name"] for one in told(capsys, "cache")["entries"]} == {
        "doctor-m4.json", "mine.txt", "named-files",
    }  # fmt: skip
    assert list((user_cache_directory() / "locks").iterdir()) == []  # those of both texts
    said(capsys, "cache", "clear", "doctor", "--yes")
    refused(capsys, "nothing in the cache is called 'other'", "cache", "clear", "other", "--yes")
    assert [one["name"] for one in told(capsys, "cache")["entries"]] == ["mine.txt", "named-files"]


def test_a_text_is_cleared_by_the_name_that_the_list_has_here(texts, monkeypatch, capsys):
    one, two = (Path(text).name for text in texts)
    monkeypatch.chdir(Path(texts[0]).parent)
    prepare("\n".join(texts))
    assert told(capsys, "cache")["entries"][0]["text"].split("\n") == texts
    assert f"  {one} {two}  " in said(capsys, "cache").out
    refused(capsys, "nothing in the cache is called ''", "cache", "clear", "")
    refused(capsys, f"would remove {one} {two} (", "cache", "clear", f"{one}/")
    removed = told(capsys, "cache", "clear", two, "--yes")["removed"]
    assert [each["text"] for each in removed] == ["\n".join(texts), texts[1]]
    assert f"removed {one} (" in said(capsys, "cache", "clear", f"./{one}", "--yes").out


def test_a_converted_base_is_listed_and_stays_while_a_process_uses_it(capsys):
    bases = user_cache_directory() / "bases"
    for name in ("b" * 64 + "-4bit", "a" * 64 + "-8bit", "c" * 64 + "-4bit.part"):
        (bases / name).mkdir(parents=True)
        (bases / name / "00000.safetensors").write_bytes(b"x" * 100)
        (bases / f"{name}.lock").touch()
    listed = [one for one in told(capsys, "cache")["entries"] if one["kind"] == "bases"]
    names = ["a" * 12 + "-8bit", "b" * 12 + "-4bit", "c" * 12 + "-4bit.part"]
    assert [(one["name"], one["bytes"]) for one in listed] == [(name, 100) for name in names]
    with open(bases / ("b" * 64 + "-4bit") / "00000.safetensors") as used:
        fcntl.flock(used, fcntl.LOCK_SH)
        facts = told(capsys, "cache", "clear", "bases", "--yes")
    assert [one["name"] for one in facts["removed"]] == names[::2]
    assert [(one["name"], one["in_use"]) for one in facts["kept"]] == [(names[1], True)]
    assert [
        one["name"] for one in told(capsys, "cache", "clear", names[1], "--yes")["removed"]
    ] == [names[1]]


def test_a_cache_that_does_not_exist_is_empty(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "none"))
    assert told(capsys, "cache")["entries"] == []
    assert "0 B in" in said(capsys, "cache").out
    assert said(capsys, "cache", "clear").out == "nothing is removed\n"
