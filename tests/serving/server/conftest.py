"""A checkpoint that knows five letters and newlines, and a server for each file of tests."""

import pytest

from tests.browser import chromium, visit
from tests.saved import letters, saved_run
from tests.serving.server.servers import MLX, serving

__all__ = ["chromium", "client", "folder", "server", "visit"]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A folder whose `runs` hold one run, saved after 7 updates."""
    folder = tmp_path_factory.mktemp("serving")
    saved_run(folder / "runs", "letters", params=letters(), step=7)
    return folder


@pytest.fixture(scope="module")
def server(folder):
    """A server with small limits, so that tests reach them."""
    limits = ("--batch-size=8", "--queue=4", "--max-new-tokens=200000")
    with serving("latest", MLX, *limits, cwd=folder) as server:
        yield server


@pytest.fixture
def client(server):
    """OpenAI's own client."""
    return server.openai()
