"""Serve a model through OpenAI's interface; of a run that trains, its newest weights.

Examples:
    serve latest
    serve latest --port 8400 --mode pinned_per_sequence --backend mlx:cpu
    serve exported/ --host 0.0.0.0
        with MLXHOG_API_KEY in the environment
    serve latest --allow-origin https://chat.example
    serve base/ --adapter notes=latest --adapter code=adapters/code
"""

import os
import sys
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from mlxhog.cli.frame import CommandResult, Download, Json, Plugins, command, model_argument
from mlxhog.serving.server.config import ServeConfig, adapters_of

if TYPE_CHECKING:
    from mlxhog.serving.server.served_model import ServedModel


@dataclass(frozen=True, kw_only=True)
class _Serve(Plugins, Download, Json):
    model: str = model_argument()


@command(writes=True)
def run(args: _Serve, config: ServeConfig) -> int:
    from mlxhog.checkpoint import hub
    from mlxhog.serving.server.app import serve

    say = partial(print, file=sys.stderr, flush=True)

    def on_ready(url: str, served: "ServedModel") -> None:
        about = served.weights
        if about["note"]:
            say(about["note"])
        payload = {"url": url, "model": served.model.name, "pid": os.getpid()}
        payload |= {name: about[name] for name in ("weights", "version")}
        payload["adapters"] = served.names[1:]
        version = "" if payload["version"] is None else f", version {payload['version']},"
        models = " or ".join(served.names)
        text = (
            f"{payload['weights']}{version} at {url}, model {models}; to chat open "
            f"{url.removesuffix('v1')}; Ctrl-C ends"
        )
        CommandResult(payload, text).print(json=args.json)

    def here(spec: str) -> str:
        """Download a model now, since Ctrl-C does not reach the thread that loads it."""
        return str(hub.fetch(spec)) if hub.is_name(spec) else spec

    own = tuple(f"{name}={here(path)}" for name, path in adapters_of(config).items())
    serve(here(args.model), replace(config, adapter=own), on_ready, say)
    say("ended")
    return 0
