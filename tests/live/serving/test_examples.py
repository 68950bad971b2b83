"""Examples that a client posts: on the run's disk with the answer, or refused with the reason."""

import json
import resource
import shutil
import sys

import pytest

from mlxhog.data.stream import StreamWriter
from mlxhog.data.tokenizers import ByteTokenizer
from tests.live.serving.servers import MLX, serving

ONE = {"prompt": "2 and 2 is", "answer": " 4"}


@pytest.fixture(scope="module")
def followed(folder, tmp_path_factory):
    """A folder whose `runs` hold one run that follows; of 16 tokens at a time."""
    copy = tmp_path_factory.mktemp("followed")
    shutil.copytree(folder / "runs", copy / "runs", dirs_exist_ok=True)
    (directory,) = (copy / "runs").iterdir()
    StreamWriter(directory, ByteTokenizer(), seq_len=16, batch_size=1).accept_examples()
    return copy


@pytest.fixture(scope="module")
def fed(followed):
    with serving("latest", MLX, cwd=followed) as server:
        yield server


def kept(folder):
    (directory,) = (folder / "runs").iterdir()
    path = directory / "stream" / "examples.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def posted(server, body):
    return server.http.post(f"{server.url}/examples", json=body)


def test_an_example_is_on_the_disk_when_it_is_acknowledged(fed, followed):
    before = kept(followed)
    reply = posted(fed, ONE)
    assert (reply.status_code, reply.json()) == (200, {"object": "examples", "kept": 1})
    two = [{"prompt": "a", "answer": str(k)} for k in range(2)]
    assert posted(fed, {"examples": two}).json()["kept"] == 2
    assert kept(followed) == [*before, ONE, *two]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"prompt": "a"}, "example 1 is {'prompt': 'a'}; expected prompt and answer"),
        ({"examples": [ONE, {"prompt": "a", "answer": ""}]}, "example 2: the completion is empty"),
        ({"examples": [ONE, 3]}, "example 2 is 3"),
        ({"prompt": "a" * 16, "answer": "b"}, "has 19 tokens, and a row of the run has at most 16"),
        ({"examples": []}, "wanted a list of 1 to 1000"),
        ({"examples": [ONE] * 1001}, "wanted a list of 1 to 1000"),
        ({"examples": [ONE], "prompt": "a"}, "the body has fields besides"),
        ([ONE], "wanted a JSON object"),
    ],
)
def test_what_is_no_example_is_refused_and_nothing_of_it_is_kept(fed, followed, body, message):
    before = kept(followed)
    reply = posted(fed, body)
    assert reply.status_code == 400
    assert message in reply.json()["error"]["message"]
    assert kept(followed) == before


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS limits no other process")
def test_of_examples_that_the_disk_refuses_in_part_nothing_is_kept(fed, followed):
    posted(fed, ONE)
    (directory,) = (followed / "runs").iterdir()
    path = directory / "stream" / "examples.jsonl"
    before = path.read_bytes()
    pid, limit = fed.process.pid, resource.RLIMIT_FSIZE
    _, hard = resource.prlimit(pid, limit)
    resource.prlimit(pid, limit, (len(before) + 1000, hard))  # it ends amid a write, as a disk does
    try:
        reply = posted(fed, {"examples": [ONE] * 100})
    finally:
        resource.prlimit(pid, limit, (hard, hard))
    assert (reply.status_code, reply.json()["error"]["code"]) == (507, "not_kept")
    assert path.read_bytes() == before
    assert posted(fed, ONE).status_code == 200
    assert path.read_bytes() == before + before.splitlines(keepends=True)[0]


def test_a_run_that_follows_nothing_takes_none(folder):
    with serving("latest", MLX, cwd=folder) as server:
        reply = posted(server, ONE)
    assert reply.status_code == 409
    assert "mlxhog train --follow FOLDER" in reply.json()["error"]["message"]
