"""`mlxhog serve`: OpenAI's HTTP interface to a checkpoint, or to a run while it trains."""

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlxhog.cli.flags import Json, Plugins, run_argument
from mlxhog.cli.frame import command, print_json
from mlxhog.live.serving.config import ServeConfig

if TYPE_CHECKING:
    from mlxhog.decoding.model import Model
    from mlxhog.live.serving.engine_thread import EngineThread


@dataclass(frozen=True, kw_only=True)
class _Words(Plugins, Json):
    model: str = run_argument("RUN_OR_CHECKPOINT")


@command("serve")
def run(words: _Words, config: ServeConfig) -> int:
    """Serve a model to clients of OpenAI's interface; a run in progress with its newest weights.

    Examples:
        serve latest
        serve latest --port 8400 --mode pinned_per_sequence
        serve runs/20260102-101500-sotu --backend mlx:cpu --batch-size 8
        serve exported/ --host 0.0.0.0  # with MLXHOG_API_KEY in the environment
        serve latest --allow-origin https://chat.example
    """
    from mlxhog.live.serving.server import serve

    def say(message: str) -> None:
        print(message, file=sys.stderr, flush=True)

    def on_ready(url: str, served: "Model", engine: "EngineThread") -> None:
        about = engine.weights
        if about["note"]:
            say(about["note"])
        whose, version = about["weights"], about["version"]
        facts = {"url": url, "model": served.name, "weights": whose, "version": version}
        if words.json:
            print_json({**facts, "pid": os.getpid()})
            return
        weights = whose if version is None else f"{whose}, version {version},"
        page = url.removesuffix("v1")
        print(
            f"{weights} at {url}, model {served.name}; to chat open {page}; Ctrl-C ends", flush=True
        )

    serve(words.model, config, on_ready, say)
    print("ended", file=sys.stderr)
    return 0
