"""Where a server may listen, and with which key."""

from __future__ import annotations

import socket
from contextlib import closing

import pytest

from mlxhog.errors import ConfigError
from mlxhog.serving.config import ServeConfig, is_own, key_of, listen, url_of


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.8.9.10"])
def test_this_machine_alone_needs_no_key(host: str) -> None:
    assert is_own(host)
    assert key_of(ServeConfig(host=host), {}) is None


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.7", "::"])
def test_other_addresses_need_a_key_from_the_flag_or_the_environment(host: str) -> None:
    with pytest.raises(ConfigError, match="set an API key"):
        key_of(ServeConfig(host=host), {})
    assert key_of(ServeConfig(host=host), {"MLXHOG_API_KEY": "secret"}) == "secret"
    assert key_of(ServeConfig(host=host, api_key="mine"), {"MLXHOG_API_KEY": "secret"}) == "mine"


@pytest.mark.parametrize("key", ["two words", "clé", "tab\t"])
def test_a_key_that_no_header_carries_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match="no header can carry"):
        key_of(ServeConfig(api_key=key), {})


def test_a_port_in_use_is_named() -> None:
    with closing(listen("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port} of 127.0.0.1 is in use .* --port"):
            listen("127.0.0.1", port)
    with closing(listen("127.0.0.1", port)) as listener:  # free again at once
        assert url_of(listener) == f"http://127.0.0.1:{port}/v1"


@pytest.mark.parametrize("host", ["no such host", "192.0.2.7", "a" * 300])
def test_an_address_that_is_not_there_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match="no such address|no address of this machine"):
        listen(host, 0)


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
def test_a_url_puts_brackets_around_an_address_of_ipv6() -> None:
    with closing(listen("::1", 0)) as listener:
        assert url_of(listener).startswith("http://[::1]:")
