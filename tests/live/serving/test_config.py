"""The key that clients of a server have to send."""

import pytest

from mlxhog.base.http_server import is_own
from mlxhog.errors import ConfigError
from mlxhog.live.serving.config import ServeConfig, key_of


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.8.9.10"])
def test_this_machine_alone_needs_no_key(host):
    assert is_own(host)
    assert key_of(ServeConfig(host=host), {}) is None


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.7", "::"])
def test_other_addresses_need_a_key_from_the_flag_or_the_environment(host):
    with pytest.raises(ConfigError, match="set an API key"):
        key_of(ServeConfig(host=host), {})
    assert key_of(ServeConfig(host=host), {"MLXHOG_API_KEY": "secret"}) == "secret"
    assert key_of(ServeConfig(host=host, api_key="mine"), {"MLXHOG_API_KEY": "secret"}) == "mine"


@pytest.mark.parametrize("key", ["two words", "clé", "tab\t"])
def test_a_key_that_no_header_carries_is_refused(key):
    with pytest.raises(ConfigError, match="a header cannot have"):
        key_of(ServeConfig(api_key=key), {})
