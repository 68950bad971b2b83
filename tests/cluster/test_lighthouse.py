"""The address and the token of a cluster, and the command that starts one."""

import importlib.util
import json
import signal
import socket
import subprocess
import sys

import pytest

from mlxhog.cli import main
from mlxhog.cluster.group import ClusterError
from mlxhog.cluster.lighthouse import (
    TOKEN_VARIABLE,
    check_token,
    is_sealed,
    new_token,
    own_ip,
    parse_address,
    seal,
    token_of,
)
from mlxhog.errors import ConfigError
from tests.pairs import each_of

HERE = parse_address("127.0.0.1:8600")
needs_torchft = pytest.mark.skipif(not importlib.util.find_spec("torchft"), reason="needs torchft")


def unresolvable(*words, **more):
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


@each_of(
    ("text", "message"),
    [
        *((text, "not HOST:PORT; an example is 192.168.1.20:8600")
          for text in ("", "8600", "host:", ":8600", "host:port", "host:65536", "h:²")),
        *((text, "has no IPv4 address here; .*`ip addr.*ifconfig.*IPv6, .*mDNS")
          for text in ("mac.local:8600", "[::1]:8600", "fe80::1:8600")),
        ("0.0.0.0:8600", "'0.0.0.0' is every address .*ifconfig"),
    ],
)  # fmt: skip
def test_what_is_no_address_of_a_machine_is_refused_with_the_way_out(text, message):
    with pytest.MonkeyPatch.context() as patch:
        if not text.startswith("0"):
            patch.setattr(socket, "getaddrinfo", unresolvable)
        with pytest.raises(ConfigError, match=message):
            parse_address(text)


def test_a_machine_finds_its_address_by_the_way_to_the_cluster_or_learns_how_to_start_it():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = parse_address(f"127.0.0.1:{server.getsockname()[1]}")
        assert own_ip(address, 10.0) == "127.0.0.1"
    with pytest.raises(ClusterError, match=f"mlxhog cluster start --address {address}"):
        own_ip(address, 10.0)


def test_a_cluster_that_others_reach_has_a_token_unless_the_user_names_one(monkeypatch):
    lan = parse_address("192.0.2.1:8600")
    assert new_token("", HERE) == ""
    assert "" != new_token("", lan) != new_token("", lan)
    monkeypatch.setenv(TOKEN_VARIABLE, "word")
    assert token_of("") == new_token("", lan) == "word"
    assert token_of("given") == new_token("given", lan) == "given"


@each_of(("token", "shown"), [("", "secret"), ("other", "secret"), ("own", None)])
def test_a_wrong_token_is_refused_and_not_shown(token, shown):
    sealed = seal(shown) if shown else "no seal \u00e4\U0001f600"
    check_token("secret", seal("secret"), HERE)
    with pytest.raises(ConfigError, match=f"has another token.*{TOKEN_VARIABLE}") as refusal:
        check_token(token, sealed, HERE)
    assert "secret" not in str(refusal.value)


def test_only_a_machine_with_the_token_can_seal_a_text():
    assert is_sealed("right", "text", seal("right", "text"))
    for sealed in (seal("wrong", "text"), seal("right", "other"), "\u00e4", "", None, 3):
        assert not is_sealed("right", "text", sealed)


def test_without_torchft_the_command_names_the_extra_and_the_commands_of_a_mac(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["cluster", "start"]) == 3
    error = capsys.readouterr().err
    assert all(words in error for words in ("'.[cluster]'", "brew install rust protobuf"))


@needs_torchft
def test_an_address_in_use_ends_the_command_with_exit_code_2(capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        words = ["cluster", "start", "--address", f"127.0.0.1:{other.getsockname()[1]}"]
        assert main(words) == 2
    assert "is in use by another program" in capsys.readouterr().err


@pytest.mark.slow
@needs_torchft
def test_the_command_says_where_it_listens_and_ends_with_a_signal():
    words = ["cluster", "start", "--address", "127.0.0.1:0", "--json"]
    pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-m", "mlxhog", *words], text=True, **pipes) as process:
        host, port = json.loads(process.stdout.readline())["address"].split(":")
        socket.create_connection((host, int(port)), 10.0).close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert process.stderr.read() == "ended; the machines train on alone\n"
