"""HTTP servers on this machine: their address, and whom they answer."""

import socket
from contextlib import closing

import pytest

from mlxhog.base.http_server import OWN_NAMES, ForeignRequest, check_names, listen, url_of
from mlxhog.errors import ConfigError
from tests.pairs import each_of


@each_of("host", ["localhost", "LOCALHOST:8321", "127.0.0.1:80", "[::1]:8321"])
def test_a_request_under_the_servers_own_name_is_taken(host):
    check_names({b"host": host.encode()}, OWN_NAMES)
    check_names({b"host": host.encode(), b"origin": f"http://{host}".encode()}, OWN_NAMES)


@each_of("host", ["evil.example", "localhost.evil.example:80", "", "[::1", "@"])
def test_a_request_under_another_name_is_refused(host):
    with pytest.raises(ForeignRequest, match="is not") as refused:
        check_names({b"host": host.encode()}, OWN_NAMES)
    assert refused.value.status == 421


@each_of("origin", ["null", "http://evil.example", "http://localhost:1"])
def test_a_request_from_a_page_of_another_site_is_refused(origin):
    for names in (OWN_NAMES, None):
        with pytest.raises(ForeignRequest, match="web pages of") as refused:
            check_names({b"host": b"localhost:8321", b"origin": origin.encode()}, names)
        assert refused.value.status == 403


def test_only_a_server_that_says_so_takes_requests_without_a_name():
    check_names({}, OWN_NAMES | {""})
    check_names({b"host": b"any.example"}, None)


def test_a_port_in_use_is_named():
    with closing(listen("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port} of 127.0.0.1 is in use by another"):
            listen("127.0.0.1", port)
    with closing(listen("127.0.0.1", port)) as listener:  # free again at once
        assert url_of(listener) == f"http://127.0.0.1:{port}"


@each_of("host", ["no such host", "192.0.2.7", "a" * 300])
def test_an_address_that_is_not_there_is_refused(host):
    with pytest.raises(ConfigError, match="no such address|not an address of this machine"):
        listen(host, 0)


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
def test_a_url_puts_brackets_around_an_address_of_ipv6():
    with closing(listen("::1", 0)) as listener:
        assert url_of(listener).startswith("http://[::1]:")
