"""A checkpoint that knows five letters and newlines, and a server for each file of tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openai
import pytest

from mlxhog.checkpoint import checkpoint, run
from mlxhog.data.tokenizers import ByteTokenizer
from mlxhog.models.families import init_params
from mlxhog.models.xlstm_large import XLSTMLargeConfig
from tests.live.serving.servers import MLX, Server, serving


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose `runs` hold one run, saved after 7 updates."""
    folder = tmp_path_factory.mktemp("serving")
    config = XLSTMLargeConfig(vocab_size=320, hidden_size=32, num_hidden_layers=2, num_heads=2)
    params = init_params(config, seed=0)
    head = np.zeros_like(params["lm_head.weight"])
    known = 30 * params["lm_head.weight"][:5]
    head[list(b"abcd\n")], head[list(b"efghi")] = known, -known  # one of each pair is likely
    params["lm_head.weight"] = head
    checkpoint.save(
        run.create(folder / "runs", "letters"),
        step=7,
        params=params,
        model_config=config.to_dict(),
        optimizer={},
        state={},
        tokenizer=ByteTokenizer(),
    )
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    """A server with small limits, so that tests reach them."""
    limits = ("--batch-size=8", "--queue=4", "--max-new-tokens=200000", "--max-prompt-tokens=3000")
    with serving("latest", MLX, *limits, "--sessions=4", cwd=folder) as server:
        yield server


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    """OpenAI's own client."""
    return server.openai()
