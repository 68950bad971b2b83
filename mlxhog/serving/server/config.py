"""The options of `mlxhog serve`, and the key that clients must send."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from mlxhog.base.http_server import is_own
from mlxhog.base.quantities import split_host
from mlxhog.config.options import option
from mlxhog.errors import ConfigError
from mlxhog.serving import LoadOptions

KEY_VARIABLE = "MLXHOG_API_KEY"


@dataclass(frozen=True, kw_only=True)
class ServeConfig(LoadOptions):
    """Options of `mlxhog serve`."""

    adapter: tuple[str, ...] = option(
        (),
        "an adapter for this model, a folder or a run, which requests choose by its name; may be "
        "given repeatedly",
        many=True, metavar="NAME=PATH",
    )  # fmt: skip

    host: str = option(
        "127.0.0.1", "address to listen on; one that other machines reach needs an API key"
    )
    port: int = option(8321, "port to listen on; 0 is any free port", low=0, high=65535)
    api_key: str = option(
        "",
        f"key that clients must send as Bearer token; {KEY_VARIABLE} is safer, because other users "
        "of the machine do not see it",
    )
    allow_origin: str = option(
        "",
        "sites whose pages may use the server, such as https://chat.example, with commas between "
        "them; * is every site, and needs an API key",
    )
    batch_size: int = option(32, "completions decoded together", low=1, high=1024)
    queue: int = option(64, "completions that may wait; further requests get status 429", low=0)
    max_new_tokens: int = option(
        4096, "largest max_tokens of a request", unit="tokens", low=1, aliases=("max_tokens",)
    )


def adapters_of(config: ServeConfig) -> dict[str, str]:
    """Return the adapters by the names that requests have for them.

    Raises:
        ConfigError: one has no name or no path, or two have the same name.
    """
    adapters = dict[str, str]()
    for text in config.adapter:
        name, _, path = text.partition("=")
        if not (name and path):
            raise ConfigError(f"--adapter {text}: write NAME=PATH, such as notes=runs/latest")
        if name in adapters:
            raise ConfigError(f"--adapter {text}: {name} is {adapters[name]}; choose another name")
        adapters[name] = path
    return adapters


def origins_of(config: ServeConfig, key: str | None) -> list[str]:
    """Return the origins of web pages that may use the server; ["*"] is all of them.

    Raises:
        ConfigError: one is not an origin, or it is every site and there is no key.
    """
    parts = [part.strip().rstrip("/").lower() for part in config.allow_origin.split(",")]
    origins = [part for part in parts if part]
    for origin in origins:
        scheme, _, host = origin.partition("://")
        try:
            if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme):
                raise ValueError
            split_host("any" if origin == "*" else host)
        except ValueError:
            raise ConfigError(
                f"--allow-origin {origin}: not an origin; write scheme and host, and the port if "
                "there is one, such as https://chat.example or http://localhost:3000"
            ) from None
    if "*" in origins and key is None:
        raise ConfigError(
            "--allow-origin '*' without a key lets every web page that you open use the model; "
            f"set an API key ({KEY_VARIABLE}=...), or name the sites"
        )
    return origins


def key_of(config: ServeConfig, environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the key that clients must send, or None.

    Raises:
        ConfigError: the key cannot be sent in a header, or other machines reach the address and
            there is no key.
    """
    key = config.api_key or environment.get(KEY_VARIABLE, "")
    if not re.fullmatch("[!-~]*", key):
        raise ConfigError("the API key has characters that a header cannot have; use A-Z, a-z, 0-9")
    if not key and not is_own(config.host):
        raise ConfigError(
            f"--host {config.host}: without a key every client that reaches this address can use "
            f"the model; set an API key ({KEY_VARIABLE}=...), or leave --host out"
        )
    return key or None
