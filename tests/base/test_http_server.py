"""HTTP servers on this machine: their address, and which requests they answer."""

import socket
from contextlib import closing
from types import SimpleNamespace

import pytest

from mlxhog.base import http_server
from mlxhog.base.http_server import OWN_NAMES, ForeignRequest, check_names, listen, url_of
from mlxhog.errors import ConfigError
from tests.pairs import each_of


@each_of(
    ("host", "origin", "names", "status"),
    [
        *((host, origin, OWN_NAMES, None)
          for host in ("localhost", "LOCALHOST:8321", "127.0.0.1:80", "[::1]:8321")
          for origin in (None, f"http://{host}")),
        *((host, None, OWN_NAMES, 421)
          for host in ("evil.example", "localhost.evil.example:80", "", "[::1", "@")),
        *((host, origin, names, 421)
          for host in ("evil@localhost", "localhost#evil", "localhost/evil", "localhost?evil",
                       "localhost:", "localhost:0", "localhost:65536", "localhost:80:80", " ",
                       "localhost .evil", "localhost:8\t", "localhost.:80:", "[::1]evil", "::1",
                       "[localhost]", "[127.0.0.1]", "[::1%25lo]", "localhost%00", "loc\\alhost")
          for origin in (None, f"http://{host}") for names in (OWN_NAMES, None)),
        *((host, None, OWN_NAMES, 421) for host in ("localhost.", "[::2]", "[::ffff:127.0.0.1]")),
        ("[0:0::1]:80", None, OWN_NAMES, None),
        *(("localhost:8321", origin, names, 403)
          for origin in ("null", "http://evil.example", "http://localhost:1")
          for names in (OWN_NAMES, None)),
        (None, None, OWN_NAMES | {""}, None),
        ("any.example", None, None, None),
    ],
)  # fmt: skip
def test_a_request_under_another_name_or_of_another_site_is_refused(host, origin, names, status):
    headers = {b"host": host, b"origin": origin}
    headers = {name: value.encode() for name, value in headers.items() if value is not None}
    if status is None:
        check_names(headers, names)
        return
    with pytest.raises(ForeignRequest) as refused:
        check_names(headers, names)
    assert refused.value.status == status


def test_a_port_in_use_and_an_address_that_is_not_there_are_named():
    with closing(listen("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port} of 127.0.0.1 is in use by another"):
            listen("127.0.0.1", port)
    with closing(listen("127.0.0.1", port)) as listener:  # free again at once
        assert url_of(listener) == f"http://127.0.0.1:{port}"
    odd = ("", "*", "127.0.0.1\n", "127.0.0.1#", "\uff11\uff12\uff17.1", "user@127.0.0.1")
    for host in ("no such host", "192.0.2.7", "a" * 300, *odd):
        with pytest.raises(ConfigError, match="no such address|not an address of this machine"):
            listen(host, 0)


@each_of("host", ["127.0.0.1", "0.0.0.0"])
def test_on_a_mac_another_servers_port_is_in_use_on_all_addresses_too(monkeypatch, host):
    monkeypatch.setattr(http_server, "sys", SimpleNamespace(platform="darwin"))
    with closing(listen("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with monkeypatch.context() as as_bsd:
            as_bsd.setattr(socket.socket, "bind", lambda listener, address: None)  # allows it
            with pytest.raises(ConfigError, match=rf"port {port} of {host} is in use by another"):
                listen(host, port)
    with closing(listen(host, port)):
        pass


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
def test_a_url_puts_brackets_around_an_address_of_ipv6():
    with closing(listen("::1", 0)) as listener:
        assert url_of(listener).startswith("http://[::1]:")
