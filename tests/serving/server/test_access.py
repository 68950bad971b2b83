"""Who may use the server: keys, web pages of other sites, and odd headers."""

import asyncio
import re
from types import SimpleNamespace

import httpx

from mlxhog.errors import ConfigError
from mlxhog.serving.server.app import Api
from mlxhog.serving.server.config import ServeConfig, key_of, origins_of
from tests.pairs import each_of

SITE, EVIL = "https://chat.example", "https://evil.example"
KEY = "secret"
LEAVE = "access-control-allow-origin"


def answer(method, path, headers=(), *, origins=(), key=None, name="m"):
    """What a server without an engine answers to one request."""
    model = SimpleNamespace(name=name, run=None)
    how = {"model": model, "names": [name]}
    served = SimpleNamespace(health=lambda: {"trouble": None}, **how)
    api = Api(served, ServeConfig(), key, origins)

    async def asked():
        transport = httpx.ASGITransport(api, raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, headers=headers)

    return asyncio.run(asked())


def test_a_model_of_the_hub_is_found_by_its_name():
    name = "hf:LOCAL/FIXTURE"
    assert answer("GET", f"/v1/models/{name}", name=name).json()["id"] == name
    assert answer("GET", "/v1/models/hf:LOCAL", name=name).status_code == 404


def test_with_a_key_only_those_who_have_it_are_answered_but_for_the_page_and_the_health():
    words = {"": 401, "Bearer wrong": 401, f"Basic {KEY}": 401, f"Bearer {KEY}": 200}
    for word, status in words.items():
        sent = {"Authorization": word}
        read = answer("GET", "/v1/models", sent, key=KEY)
        assert read.status_code == status
        assert KEY not in read.text
        assert status == 200 or read.json()["error"]["code"] == "invalid_api_key"
        assert answer("GET", "/health", sent, key=KEY).status_code == 200
    page = answer("GET", "/", key=KEY)
    assert (page.status_code, page.headers["x-frame-options"]) == (200, "DENY")
    for words in ("default-src 'none'", "script-src 'sha256-", "connect-src 'self'"):
        assert words in page.text
    assert not re.search("https?://", page.text.replace("http://www.w3.org", ""))


PREFLIGHT = {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
}
SENT = {"Authorization": f"Bearer {KEY}"}


@each_of(
    ("site", "origins", "key", "sent", "status"),
    [
        *((SITE, origins, KEY, sent, status)
          for origins in ((SITE,), ("http://localhost:3000", SITE), ("*",))
          for sent, status in ((PREFLIGHT, 200), (SENT, 200), ({}, 401))),
        (SITE, (SITE,), None, {}, 200),  # a named one needs no key where there is none
        (EVIL, (SITE,), None, {}, 403),
        *((EVIL, origins, key, PREFLIGHT, 400) for origins in ((), (SITE,)) for key in (None, KEY)),
    ],
)  # fmt: skip
def test_a_browser_of_an_allowed_site_reads_every_answer_and_other_sites_get_no_leave(
    site, origins, key, sent, status
):
    method, headers = "OPTIONS" if sent is PREFLIGHT else "GET", {"Origin": site, **sent}
    read = answer(method, "/v1/models", headers, origins=origins, key=key)
    assert read.status_code == status
    assert (read.headers.get(LEAVE) in (SITE, "*")) == (site == SITE)
    if (method, status) == ("OPTIONS", 200):
        assert "authorization" in read.headers["access-control-allow-headers"]


def test_a_page_of_an_allowed_site_may_reach_a_private_network_and_other_pages_may_not():
    """Chromium asks so before a page of the internet reaches this machine."""
    asks = PREFLIGHT | {"Access-Control-Request-Private-Network": "true"}
    for site, origins, status in (
        (SITE, (SITE,), 200), (SITE, ("*",), 200), (EVIL, (SITE,), 400), (EVIL, (), 400),
    ):  # fmt: skip
        read = answer("OPTIONS", "/v1/models", {"Origin": site, **asks}, origins=origins, key=KEY)
        assert read.status_code == status
        if status == 200:
            assert read.headers["access-control-allow-private-network"] == "true"
        else:
            assert LEAVE not in read.headers


@each_of(
    ("host", "origin"),
    [("[::1", ""), ("localhost:x", "http://localhost:x"), ("localhost", "http://["),
     ("localhost", "\x80\xff"), ("é", "null")],
)  # fmt: skip
def test_odd_names_end_in_a_status(host, origin):
    headers = [(b"Host", host.encode("latin-1")), (b"Origin", origin.encode("latin-1"))]
    for key in (None, KEY):
        for path in ("/", "/v1/models", "/v1/models/", "/nothing", "//evil.example/"):
            read = answer("GET", path, headers, origins=(SITE,), key=key)
            assert read.status_code in (200, 401, 403, 404, 421)
            assert "location" not in read.headers


@each_of(
    ("config", "environment", "key", "message"),
    [
        ({"allow_origin": "https://chat.example/page"}, "", None, "write scheme and host"),
        *(
            ({"allow_origin": f"https://chat.example{more}"}, "", None, "write scheme and host")
            for more in ("#", "?a", ":", ":0", "@evil.example", "\\a")
        ),
        ({"allow_origin": "*"}, "", None, "set an API key"),
        ({"host": "0.0.0.0"}, "", None, "set an API key"),
        ({"api_key": "two words"}, "", None, "a header cannot have"),
        ({"host": "127.8.9.10"}, "", None, ""),
        ({"host": "0.0.0.0", "api_key": "mine"}, "secret", "mine", ""),
    ],
)
def test_other_machines_and_all_sites_need_a_key_that_a_header_carries(
    config, environment, key, message
):
    options, outcome = ServeConfig(**config), ""
    try:
        actual = key_of(options, {"MLXHOG_API_KEY": environment})
        origins_of(options, actual)
        assert actual == key
    except ConfigError as error:
        outcome = str(error)
    assert message in outcome
    assert bool(message) == bool(outcome)


def test_a_name_that_is_not_the_server_s_is_told_the_key_that_opens_it():
    host = {"Host": "host.docker.internal:8321"}
    refused = answer("GET", "/v1/models", host)
    assert refused.status_code == 421
    for way in ("--api-key", "MLXHOG_API_KEY", "host.docker.internal"):
        assert way in refused.json()["error"]["message"].split(";", 1)[1]
    key = {"Authorization": f"Bearer {KEY}"}
    assert answer("GET", "/v1/models", host | key, key=KEY).status_code == 200
