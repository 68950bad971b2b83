"""`mlxhog serve`: OpenAI's HTTP interface to a checkpoint, or to a run while it trains."""

import json
import os
import sys
from typing import TYPE_CHECKING

from mlxhog.cli.flags import RUN_HELP, Flags
from mlxhog.live.serving.config import ServeConfig

if TYPE_CHECKING:
    from mlxhog.decoding.model import Model
    from mlxhog.live.serving.engine_thread import EngineThread

EXAMPLES = (
    "serve latest",
    "serve latest --port 8400 --mode pinned_per_sequence",
    "serve runs/20260102-101500-sotu --backend mlx:cpu --batch-size 8",
    "serve exported/ --host 0.0.0.0  # with MLXHOG_API_KEY in the environment",
    "serve latest --allow-origin https://chat.example",
)

MODEL = "RUN_OR_CHECKPOINT"


def run(arguments: list[str]) -> int:
    """Run the command; returns its exit code."""
    flags = Flags(
        "serve",
        "Serve a model to clients of OpenAI's interface; a run in progress with its newest "
        "weights.",
        EXAMPLES,
        (MODEL,),
    )
    flags.argument("model", metavar=MODEL, help=RUN_HELP)
    flags.plugin()
    flags.argument("--json", action="store_true", help="one JSON object when the server is ready")
    parsed, config = flags.read(ServeConfig, arguments)
    from mlxhog.live.serving.server import serve

    def say(message: str) -> None:
        print(message, file=sys.stderr, flush=True)

    def on_ready(url: str, served: "Model", engine: "EngineThread") -> None:
        if engine.note:
            say(engine.note)
        version = engine.loaded.version if engine.counts_updates else None
        if parsed.other.json:
            ready = {
                "url": url,
                "model": served.name,
                "weights": engine.whose,
                "version": version,
                "pid": os.getpid(),
            }
            print(json.dumps(ready), flush=True)
            return
        weights = engine.whose if version is None else f"{engine.whose}, version {version},"
        page = url.removesuffix("v1")
        print(
            f"{weights} at {url}, model {served.name}; to chat open {page}; Ctrl-C ends", flush=True
        )

    serve(parsed.other.model, config, on_ready, say)
    print("ended", file=sys.stderr)
    return 0
