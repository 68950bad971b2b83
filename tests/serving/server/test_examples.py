"""Examples that a client posts: on the run's disk with the answer, or refused with the reason."""

import json
import resource
import shutil
import sys

import pytest

from mlxhog.data.stream import StreamWriter
from mlxhog.data.tokenizers import ByteTokenizer
from tests.pairs import each_of
from tests.serving.server.servers import MLX, serving

ONE = {"prompt": "2 and 2 is", "answer": " 4"}


class Fed:
    """A server of a run that follows, and the examples that it has kept."""

    def __init__(self, server, run):
        self.server, self.path = server, run / "stream" / "examples.jsonl"

    def kept(self):
        return self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []

    def post(self, body):
        return self.server.http.post(f"{self.server.url}/examples", json=body)


@pytest.fixture(scope="module")
def fed(folder, tmp_path_factory):
    """Of a run with 16 tokens at a time."""
    copy = tmp_path_factory.mktemp("followed")
    shutil.copytree(folder / "runs", copy / "runs", dirs_exist_ok=True)
    (run,) = (copy / "runs").iterdir()
    StreamWriter(run, ByteTokenizer(), seq_len=16, batch_size=1).accept_examples()
    with serving("latest", MLX, cwd=copy) as server:
        yield Fed(server, run)


def test_an_example_is_on_the_disk_when_it_is_acknowledged(fed):
    before = fed.kept()
    reply = fed.post(ONE)
    assert (reply.status_code, reply.json()) == (200, {"object": "examples", "kept": 1})
    two = [{"prompt": "a", "answer": str(k)} for k in range(2)]
    assert fed.post({"examples": two}).json()["kept"] == 2
    assert [json.loads(line) for line in fed.kept()[len(before) :]] == [ONE, *two]


@each_of(
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
def test_what_is_no_example_is_refused_and_nothing_of_it_is_kept(fed, body, message):
    before, reply = fed.kept(), fed.post(body)
    assert reply.status_code == 400
    assert message in reply.json()["error"]["message"]
    assert fed.kept() == before


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS limits no other process")
def test_of_examples_that_the_disk_refuses_in_part_nothing_is_kept(fed):
    fed.post(ONE)
    before = fed.kept()
    pid, limit = fed.server.process.pid, resource.RLIMIT_FSIZE
    _, hard = resource.prlimit(pid, limit)
    size = sum(map(len, before)) + 1000
    resource.prlimit(pid, limit, (size, hard))  # it ends amid a write, as a disk does
    try:
        reply = fed.post({"examples": [ONE] * 100})
    finally:
        resource.prlimit(pid, limit, (hard, hard))
    assert (reply.status_code, reply.json()["error"]["code"]) == (507, "not_kept")
    assert fed.kept() == before
    assert fed.post(ONE).status_code == 200
    assert fed.kept() == [*before, before[-1]]


def test_a_run_that_follows_nothing_takes_none(folder, server):
    reply = Fed(server, folder).post(ONE)
    assert reply.status_code == 409
    assert "mlxhog train --follow FOLDER" in reply.json()["error"]["message"]
