"""The options of `mlxhog serve`, and the key that clients have to send."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from mlxhog.config.options import option
from mlxhog.errors import ConfigError
from mlxhog.live import MODES, READ_MODES, wait_option
from mlxhog.machine.http_server import is_own
from mlxhog.machine.workers import BACKEND_WORDS

KEY_VARIABLE = "MLXHOG_API_KEY"


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Options of `mlxhog serve`."""

    host: str = option(
        "127.0.0.1", "address to listen on; another than this machine's own needs an API key"
    )
    port: int = option(8321, "port to listen on; 0 takes a free one", low=0, high=65535)
    api_key: str = option(
        "",
        f"what clients have to send as Bearer token; better as {KEY_VARIABLE}, which other users "
        "of the machine do not see",
    )
    mode: str = option(
        READ_MODES[0],
        "how a run that trains is read: docs/live.md; checkpoint is its newest one",
        choices=MODES,
    )
    backend: str = option("torch:cpu", "what computes", choices=BACKEND_WORDS)
    weights: str = option(
        "float32",
        "what the backend keeps in memory; others than float32 are converted at every load; "
        "8bit and 4bit are for mlx backends",
        choices=("float32", "bfloat16", "8bit", "4bit"),
    )
    batch_size: int = option(32, "answers that are written at a time", low=1, high=1024)
    queue: int = option(
        64, "answers that may wait for a place; further clients are asked to retry", low=0
    )
    max_new_tokens: int = option(
        4096, "most tokens that a client may ask for", unit="tokens", low=1, aliases=("max_tokens",)
    )
    max_prompt_tokens: int = option(32768, "longest prompt", unit="tokens", low=1)
    prefill_chunk: int = option(
        256, "tokens of a prompt that are read while the other answers wait", low=1
    )
    wait: float = wait_option()
    sessions: int = option(256, "conversations whose state is kept; 0 keeps none", low=0)
    out: str = option("runs", "folder that holds the runs")


def key_of(config: ServeConfig, environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the key that clients have to send, or None where they need none.

    Raises:
        ConfigError: the key cannot be sent in a header, or the address is not this machine's own
            and there is no key.
    """
    key = config.api_key or environment.get(KEY_VARIABLE, "")
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise ConfigError(
            "the API key has blanks or characters outside ASCII, which no header can carry; choose "
            "letters and digits"
        )
    if not key and not is_own(config.host):
        raise ConfigError(
            f"--host {config.host}: everyone who reaches this address could use the model; set an "
            f"API key ({KEY_VARIABLE}=... mlxhog serve ..., or --api-key), or leave --host out"
        )
    return key or None
