"""What a machine joins a cluster with: an identity, an address, a token; and its refusals."""

import importlib.util
import json
import signal
import socket
import subprocess
import sys

import pytest
import yaml

from mlxhog import TrainConfig
from mlxhog.cli import main
from mlxhog.cluster.group import WAYS_OUT, ClusterError, check_identity
from mlxhog.cluster.rendezvous import (
    TOKEN_VARIABLE,
    check_token,
    hmac_of,
    is_hmac,
    new_token,
    own_ip,
    parse_address,
    token_of,
)
from mlxhog.cluster.round import Outcome
from mlxhog.cluster.sidecar import open_torchft, slowness
from mlxhog.config.config import train_config
from mlxhog.config.sources import by_flat_names, of_keywords
from mlxhog.errors import ConfigError, EnvironmentLacks
from tests.cluster.machines import Machine, Table, choice
from tests.cluster.members import IDENTITY
from tests.pairs import each_of
from tests.threads import LIMIT_S

HERE = parse_address("127.0.0.1:8600")
needs_torchft = pytest.mark.skipif(not importlib.util.find_spec("torchft"), reason="needs torchft")


def unresolvable(*words, **more):
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


def test_equal_machines_pass_and_every_difference_is_named_with_both_values_and_a_way_out():
    check_identity(IDENTITY, json.dumps(IDENTITY))
    others = {name: f"other {name}" for name in IDENTITY}
    with pytest.raises(ConfigError) as raised:
        check_identity(IDENTITY, json.dumps(others))
    lines = str(raised.value).splitlines()
    assert len(lines) == len(WAYS_OUT)
    for name, line in zip(IDENTITY, lines, strict=True):
        assert line.startswith(f"cluster: {name} is ")
        assert str(IDENTITY[name]) in line
        assert f"'other {name}' on the other machines; {WAYS_OUT[name]}" in line
    for text in ("", "[]", '{"version": "9"}', '{"seed": 1, "seed": 2}'):
        with pytest.raises(ConfigError, match="install the same version of mlxhog on all"):
            check_identity(IDENTITY, text)


def test_an_address_alone_makes_the_run_lock_free_and_its_token_is_not_stored():
    config = TrainConfig(cluster="mac.lan:8600", cluster_token="a secret")
    assert config.strategy.name == "hogwild"
    stored = config.to_yaml()
    assert "a secret" not in stored
    layer = of_keywords("config.yaml:1", yaml.safe_load(stored))
    assert train_config([by_flat_names(layer)]).cluster == "mac.lan:8600"


@each_of(
    ("text", "message"),
    [
        *((text, "not HOST:PORT; an example is 192.168.1.20:8600")
          for text in ("", "8600", "host:", ":8600", "host:port", "host:65536", "h:²", "a@b:80",
                       "a#b:80", "a/b:80", "a?b:80", "a b:80", "h:80 ", "h:000080", "\u0660:80")),
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


def test_a_machine_finds_its_address_by_the_way_to_the_cluster_or_learns_how_to_start_it(
    monkeypatch,
):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = parse_address(f"127.0.0.1:{server.getsockname()[1]}")
        assert own_ip(address, 10.0) == "127.0.0.1"
    monkeypatch.setattr("mlxhog.cluster.sidecar.check_torchft", lambda: None)
    monkeypatch.setitem(sys.modules, "mlxhog.cluster.torchft_group", None)  # torch is not imported
    with pytest.raises(ClusterError, match=f"mlxhog cluster start --address {address}"):
        open_torchft(choice(cluster=str(address)), None, None)


def test_a_cluster_that_others_reach_has_a_token_unless_the_user_names_one(monkeypatch):
    lan = parse_address("192.0.2.1:8600")
    assert new_token("", HERE) == ""
    assert "" != new_token("", lan) != new_token("", lan)
    monkeypatch.setenv(TOKEN_VARIABLE, "word")
    assert token_of("") == new_token("", lan) == "word"
    assert token_of("own") == new_token("own", lan) == "own"


def test_a_wrong_token_is_refused_and_not_shown_and_only_the_right_one_authenticates_a_text():
    right = hmac_of("secret")
    check_token("secret", right, HERE)
    for token, received in (("", right), ("other", right), ("own", "no HMAC \u00e4")):
        with pytest.raises(ConfigError, match=f"has another token.*{TOKEN_VARIABLE}") as refusal:
            check_token(token, received, HERE)
        assert "secret" not in str(refusal.value)
    assert is_hmac("right", "text", hmac_of("right", "text"))
    for wrong in (hmac_of("wrong", "text"), hmac_of("right", "other"), "", None):
        assert not is_hmac("right", "text", wrong)


def test_a_command_that_cannot_start_a_cluster_ends_with_a_code_and_a_reason(monkeypatch, capsys):
    def error_of(*words):
        code = main(["cluster", "start", *words])
        return code, capsys.readouterr().err

    if importlib.util.find_spec("torchft"):
        with socket.create_server(("127.0.0.1", 0)) as other:
            code, error = error_of("--address", f"127.0.0.1:{other.getsockname()[1]}")
        assert (code, "is in use by another program" in error) == (2, True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    answer = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.1.1", 8600))]  # as on Debian
    monkeypatch.setattr(socket, "getaddrinfo", lambda *words: answer)
    code, error = error_of("--address", "rack:8600")
    assert (code, "the host rack is 127.0.1.1 here (see /etc/hosts)" in error) == (2, True)
    code, error = error_of("--address", "127.0.1.1:8600")
    assert (code, "'.[cluster]'" in error, "brew install rust protobuf" in error) == (3, True, True)
    assert main(["train", "--cluster", "rack:8600", "--dry-run"]) == 3
    assert "'.[cluster]'" in capsys.readouterr().err
    with pytest.raises(EnvironmentLacks, match=r"\[cluster\].*brew install rust protobuf"):
        open_torchft(choice(), None, None)  # a sidecar says so, too


@pytest.mark.slow
@needs_torchft
def test_the_command_says_where_it_listens_and_ends_with_a_signal():
    words = ["cluster", "start", "--address", "127.0.0.1:0", "--json"]
    pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-m", "mlxhog", *words], text=True, **pipes) as process:
        host, port = json.loads(process.stdout.readline())["address"].split(":")
        socket.create_connection((host, int(port)), LIMIT_S).close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT_S) == 0
        assert (
            process.stderr.read()
            == "the cluster has ended; each machine continues to train alone\n"
        )


def test_a_machine_that_is_too_slow_for_its_rounds_is_reported(monkeypatch):
    machine = Machine(Table(1))
    machine.own.words["joined_ns"] = 10**9
    monkeypatch.setattr("mlxhog.cluster.sidecar.monotonic_ns", lambda: 15 * 10**9)
    for outcome, cluster, note in (
        (Outcome.COMMITTED, choice(round_every=10.0), "a round took 14 s, longer than the 10 s"),
        (Outcome.COMMITTED, choice(round_every=60.0), ""),
        (Outcome.REFUSED, choice(round_every=1.0, cluster_timeout=8.0), "aborted after 14 s"),
        (Outcome.REFUSED, choice(), ""),
    ):
        notes = "".join(slowness(machine.own, outcome, cluster).values())
        assert note in notes
        assert bool(note) == bool(notes)
    machine.close()
