"""`mlxhog serve`: OpenAI's HTTP interface to a checkpoint, or to a run while it trains."""

import json
import os
import sys
from typing import TYPE_CHECKING

from mlxhog.cli.flags import RUN_HELP, Flags
from mlxhog.live.serving.config import ServeConfig
from mlxhog.machine.http_server import require

if TYPE_CHECKING:
    from mlxhog.live.serving.engine_thread import Served

EXAMPLES = (
    "serve latest",
    "serve latest --port 8400 --mode pinned_per_sequence",
    "serve runs/20260102-101500-sotu --backend mlx:cpu --batch-size 8",
    "serve exported/ --host 0.0.0.0  # with MLXHOG_API_KEY in the environment",
)

MODEL = "RUN_OR_CHECKPOINT"


def run(arguments: list[str]) -> int:
    """Run the command; returns its exit code."""
    flags = Flags(
        "serve",
        "Serve a model to clients of OpenAI's interface; a run that trains with its newest "
        "weights.",
        EXAMPLES,
        (MODEL,),
    )
    flags.argument("model", metavar=MODEL, help=RUN_HELP)
    flags.layers_from()
    flags.argument("--json", action="store_true", help="one JSON object when the server is ready")
    parsed, config = flags.read(ServeConfig, arguments)
    require("serve", "starlette", "uvicorn", "h11", "prometheus_client")
    from mlxhog.live.serving.server import serve

    def on_ready(url: str, served: "Served") -> None:
        if served.note:
            print(served.note, file=sys.stderr)
        if parsed.other.json:
            ready = {"url": url, "model": served.name, "weights": served.whose, "pid": os.getpid()}
            print(json.dumps(ready), flush=True)
        else:
            print(f"{served.whose} at {url}, model {served.name}; Ctrl-C ends", flush=True)

    serve(parsed.other.model, config, on_ready)
    print("ended", file=sys.stderr)
    return 0
