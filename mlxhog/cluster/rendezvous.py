"""The rendezvous of a cluster: its address, the token of its members, and what joining needs.

One process of the first machine, `mlxhog cluster start`, owns the address HOST:PORT. A store there
says where torchft's lighthouse listens, which decides who takes part in a round, and holds the
identity that all members share. After its death machines train on alone, and members join the next
one. A new lighthouse has a new port, so a member that talked to the old one fails and joins again;
quorums of both never mix.

    key of the store   value
    token              HMAC by the token that members need
    machines           ids of all machines that have joined
    machine/ID         JSON: name, tokens, rounds, and the time of the last join; null before
    lighthouse         URL of torchft's lighthouse
    identity           JSON of the first member's identity

The token keeps out machines that join by mistake. It does not encrypt: a program that reaches the
ports of the members can read the parameters and disturb rounds.
"""

import hmac
import importlib.util
import ipaddress
import os
import re
import secrets
import socket
from typing import Final, NamedTuple

from mlxhog.cluster.group import ClusterError
from mlxhog.errors import ConfigError, EnvironmentLacks, shown

TOKEN_VARIABLE: Final = "MLXHOG_CLUSTER_TOKEN"


class Address(NamedTuple):
    """A numeric IPv4 address and a port, with the host as it was named."""

    host: str
    ip: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def is_own(self) -> bool:
        """Whether this is a loopback address, which only this machine reaches."""
        return ipaddress.ip_address(self.ip).is_loopback


def parse_address(text: str) -> Address:
    """Resolve HOST:PORT; a ConfigError if it is malformed, or not one IPv4 address."""
    host, _, digits = text.rpartition(":")
    is_host = re.fullmatch(r"[\w.:\[\]-]+", host, re.ASCII)
    if not (is_host and re.fullmatch("[0-9]{1,5}", digits) and int(digits) < 65536):
        raise ConfigError(
            f"{shown(text)} is not HOST:PORT; an example is 192.168.1.20:8600, the address of the "
            "machine that runs mlxhog cluster start"
        )
    try:
        resolved = socket.getaddrinfo(host, int(digits), socket.AF_INET, socket.SOCK_STREAM)
        ip, problem = str(resolved[0][4][0]), "is every address of this machine"
    except (OSError, UnicodeError):
        ip, problem = "0.0.0.0", "has no IPv4 address here"
    if ipaddress.ip_address(ip).is_unspecified:
        raise ConfigError(
            f"the host {shown(host)} {problem}; name the IPv4 address by which the other machines "
            "reach it, which `ip addr` or on a Mac `ifconfig` shows: machines of a cluster do not "
            "use IPv6, and names in .local need mDNS on every machine"
        )
    return Address(host, ip, int(digits))


def own_ip(rendezvous: Address, timeout_s: float) -> str:
    """Return the address from which this machine reaches a rendezvous, or raise ClusterError."""
    try:
        with socket.create_connection((rendezvous.ip, rendezvous.port), timeout_s) as connection:
            return str(connection.getsockname()[0])
    except OSError as error:
        raise ClusterError(
            f"no cluster answers at {rendezvous} ({error.strerror or error}); on its first machine "
            f"run mlxhog cluster start --address {rendezvous}"
        ) from error


def token_of(token: str) -> str:
    """Return the token of the option, else of the environment; "" for none."""
    return token or os.environ.get(TOKEN_VARIABLE, "")


def new_token(token: str, address: Address) -> str:
    """Return the token of a new cluster: random if other machines reach it and none is named."""
    return token_of(token) or ("" if address.is_own else secrets.token_urlsafe(12))


def hmac_of(token: str, text: str = "mlxhog cluster") -> str:
    """Return the HMAC-SHA256 of a text under the token, in hexadecimal digits."""
    return hmac.digest(token.encode(), text.encode(), "sha256").hex()


def is_hmac(token: str, text: str, received: object) -> bool:
    """Whether a value is the HMAC of a text, in constant time."""
    own = hmac_of(token, text).encode()
    return isinstance(received, str) and hmac.compare_digest(own, received.encode())


def check_token(token: str, received: str, address: Address) -> None:
    """Raise ConfigError unless a token is the cluster's, by the HMAC in the cluster's store."""
    if not is_hmac(token, "mlxhog cluster", received):
        raise ConfigError(
            f"the cluster at {address} has another token than "
            f"{'this machine' if token else 'none, as this machine has'}; copy the line that "
            f"mlxhog cluster start printed, or set {TOKEN_VARIABLE}"
        )


def check_torchft() -> None:
    """Raise EnvironmentLacks if torchft is not installed; imports nothing."""
    if importlib.util.find_spec("torchft") is None:
        raise EnvironmentLacks(
            "several machines need torchft, the extra [cluster]: python -m pip install "
            "-c constraints.txt '.[cluster]'; where torchft has no wheel (macOS, Linux on ARM, "
            "Python 3.14) pip compiles it, which needs Rust and protoc: on a Mac first "
            "brew install rust protobuf"
        )
