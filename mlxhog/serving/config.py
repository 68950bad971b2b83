"""What a server is told, and the address it may listen on."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlxhog.config.options import option
from mlxhog.errors import ConfigError, EnvironmentLacks
from mlxhog.live import MODES, READ_MODES

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
    backend: str = option(
        "torch:cpu", "what computes", choices=("torch:cpu", "torch:mps", "mlx:cpu", "mlx:gpu")
    )
    weights: str = option(
        "float32",
        "what the backend keeps in memory; others than float32 are for checkpoints",
        choices=("float32", "bfloat16", "8bit", "4bit"),
    )
    batch_size: int = option(32, "answers that are written at a time", low=1, high=1024)
    queue: int = option(64, "answers that may wait for a place; more are told to retry", low=0)
    max_new_tokens: int = option(
        4096, "most tokens that a client may ask for", unit="tokens", low=1, aliases=("max_tokens",)
    )
    max_prompt_tokens: int = option(32768, "longest prompt", unit="tokens", low=1)
    prefill_chunk: int = option(
        256, "tokens of a prompt that are read while the other answers wait", low=1
    )
    wait: float = option(10.0, "how long to wait for a run that is being started", unit="s", low=0)
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


def is_own(host: str) -> bool:
    """Return whether an address can be reached from this machine alone.

    Raises:
        ConfigError: there is no such address.
    """
    return all(
        ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback
        for *_, address in _resolved(host, 0)
    )


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Raises:
        ConfigError: there is no such address, or another program listens there.
        EnvironmentLacks: the system does not let this user have the port.
    """
    family, kind, protocol, _, address = _resolved(host, port)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        # The port of a server that ended seconds ago is free; that of one that runs is not.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port {port} of {host} is in use by another program; choose another with --port, "
                "or --port 0 for any that is free"
            ) from error
        if error.errno == errno.EADDRNOTAVAIL:
            raise ConfigError(f"--host {host} is no address of this machine") from error
        raise EnvironmentLacks(
            f"cannot listen on port {port} of {host}: {error.strerror}; choose another --port"
        ) from error
    return listener


def url_of(listener: socket.socket) -> str:
    """Return the base URL of a listening socket, as clients want it."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"


def _resolved(host: str, port: int) -> list[tuple[Any, ...]]:
    """Return what `socket.getaddrinfo` finds."""
    try:
        return list(
            socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        )
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"--host {host}: no such address; 127.0.0.1 is this machine alone, 0.0.0.0 all of its "
            "networks"
        ) from error
