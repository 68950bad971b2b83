"""The HTTP server: authentication, routes, answers and streams, health, until a signal."""

import asyncio
import contextlib
import hmac
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from time import time
from typing import Any

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HTTPRequest
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from mlxhog.base.app_server import AppServer
from mlxhog.base.http_server import OWN_NAMES, ForeignRequest, check_names, is_own, listen, url_of
from mlxhog.data.stream import append_examples
from mlxhog.decoding.engine import GenerationRequest, checked_ids
from mlxhog.display import page
from mlxhog.display.views import Tell
from mlxhog.errors import DataError, EnvironmentLacks, MlxhogError, RunError
from mlxhog.models import families
from mlxhog.serving.server import requests
from mlxhog.serving.server.config import KEY_VARIABLE, ServeConfig, key_of, origins_of
from mlxhog.serving.server.replies import Reply, event
from mlxhog.serving.server.requests import FAILED, ClientRequest, RefusedRequest
from mlxhog.serving.server.served_model import AnswerPart, ServedModel

MAX_BODY_BYTES = 1_000_000
BODY_S = 30.0  # longest time for a client to send the body of a request, in seconds

MAX_CONNECTIONS = 200
"""The limit is this or twice `max_answers`, whichever is larger; above it uvicorn answers 503."""

MAX_PROMPT_SCORES = 100_000
"""Largest number of probabilities of a request's prompts: tens of MB of objects and JSON."""

_SWITCH_S = 0.0005
"""Switch interval of threads, so that the event loop waits less; a tenth of Python's default."""

PARSERS = {"/v1/completions": requests.completion, "/v1/chat/completions": requests.chat}
"""Path of a request for completions -> parser of its body."""

_OPEN = frozenset({"/", "/health"})
"""Paths that need no key: the page, which asks for it, and the health of the server."""


class Api:
    """The server's ASGI application; clients must send the key, if there is one.

    Without a key all programs on this machine may use the server, but only web pages of `origins`
    (["*"] is all): a browser would send the requests of every page.

    Concurrency: for one event loop.
    """

    def __init__(
        self, served: ServedModel, config: ServeConfig, key: str | None, origins: Sequence[str] = ()
    ) -> None:
        self._served, self._model, self._config = served, served.model, config
        self._key, self._origins = None if key is None else key.encode(), origins
        # HTTP/1.0 need not name the host.
        self._names = OWN_NAMES | {config.host.lower(), ""} if is_own(config.host) else None
        about = {"object": "model", "created": int(time()), "owned_by": "mlxhog"}
        run = self._model.run
        texts = ("", "") if run is None else (run.trained_on(), run.sample_prompt())
        more = dict(zip(("trained_on", "sample_prompt"), texts, strict=True))
        first, *adapters = served.names
        self._descriptions = {first: about | {"id": first, "mlxhog": more}}
        self._descriptions |= {name: about | {"id": name, "parent": first} for name in adapters}
        self._routes = Starlette(
            routes=[
                Route("/", self._page, methods=["GET"]),
                *(
                    Route(path, partial(self._answer, parse=parse), methods=["POST"])
                    for path, parse in PARSERS.items()
                ),
                Route("/v1/examples", self._examples, methods=["POST"]),
                Route("/v1/models", self._models, methods=["GET"]),
                Route("/v1/models/{name:path}", self._one_model, methods=["GET"]),
                Route("/health", self._health, methods=["GET"]),
            ],
            exception_handlers={HTTPException: self._refused, Exception: _failed},
        )
        self._routes.router.redirect_slashes = False  # a redirect would name the Host header
        self._app = CORSMiddleware(
            self._admitted,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_private_network=True,  # Chromium asks for leave to reach this machine
            allow_headers=["*"],  # Authorization, Content-Type, and those of OpenAI's client
            expose_headers=["Retry-After"],
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request of ASGI."""
        await self._app(scope, receive, send)

    async def _admitted(self, scope: Scope, receive: Receive, send: Send) -> None:
        app: ASGIApp = self._routes
        try:
            self._check(scope)
        except RefusedRequest as refused:
            app = _answer(refused)
        await app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        """Refuse a missing key and foreign web pages before the rest is read."""
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if self._key is None:
            try:
                check_names(headers, self._names, self._origins)
            except ForeignRequest as foreign:
                way = (
                    f"; a server with a key (mlxhog serve --api-key, or {KEY_VARIABLE}) answers to "
                    "every name, such as host.docker.internal, where the client sends the key"
                )
                raise RefusedRequest(
                    f"{foreign}{way if foreign.status == 421 else ''}", status=foreign.status
                ) from None
        elif scope["path"] not in _OPEN:
            scheme, _, sent = headers.get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(sent.strip(), self._key):
                raise RefusedRequest(
                    "the API key is missing or wrong; send it as Authorization: Bearer KEY",
                    status=401,
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )

    # -- answers -----------------------------------------------------------------------------------

    async def _answer(self, http: HTTPRequest, parse: Callable[..., ClientRequest]) -> Response:
        body = await read_body(http)  # in threads, because a client can make the next two slow
        model, *adapters = self._served.names
        request = await asyncio.to_thread(parse, body, model=model, adapters=adapters)
        texts, asked = await asyncio.to_thread(self._requests, request)
        reply, streams = Reply(request, asked, self._model, texts), False
        try:
            self._served.start(reply)
            # An error before the first part has the same status in a stream.
            first = reply.parts() if request.stream else reply.whole()
            if (result := await unless_gone(http.receive, first)) is None:
                return Response(status_code=499)  # the client has gone
            if isinstance(result, dict):
                return await asyncio.to_thread(JSONResponse, result)
            streams = True
            return StreamingResponse(
                self._events(reply, result),
                media_type="text/event-stream",
                headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
                background=BackgroundTask(self._cancel, reply),  # if it never began
            )
        finally:
            if not streams:
                self._served.cancel(reply)

    async def _cancel(self, reply: Reply) -> None:  # starlette runs plain functions in threads
        self._served.cancel(reply)

    async def _events(self, reply: Reply, parts: list[AnswerPart]) -> AsyncIterator[bytes]:
        """Yield an answer as server-sent events while it is written; a disconnect cancels it."""
        try:
            async for one in reply.stream(parts):
                yield one
        except RefusedRequest as error:
            yield event(error.body())
        finally:
            self._served.cancel(reply)

    def _requests(self, request: ClientRequest) -> tuple[list[str], list[GenerationRequest]]:
        """Return the prompts as texts, and the requests to the engine, or raise RefusedRequest."""
        model, config = self._model, self._config
        if (count := len(request.prompts) * request.n) > config.batch_size:
            raise RefusedRequest(
                f"{count} answers for n; the limit of this server is {config.batch_size} "
                "(mlxhog serve --batch-size)",
                param="n",
            )
        texts, asked = list[str](), list[GenerationRequest]()
        for prompt in request.prompts:
            try:
                if isinstance(prompt, str):
                    ids, text = model.tokenizer.encode(prompt.encode()), prompt
                else:
                    ids, text = checked_ids(prompt, model.tokenizer), ""
                    if request.echo:
                        text = model.tokenizer.decode(ids).decode(errors="replace")
                families.check_length(model.config, len(ids) + 1)
            except (MlxhogError, OverflowError) as error:
                raise RefusedRequest(str(error), param="prompt") from error
            n_new = min(request.sampling.max_new_tokens, config.max_new_tokens)
            if model.config.position != "none":
                n_new = min(n_new, model.config.max_length - len(ids))
            sampling = replace(request.sampling, max_new_tokens=n_new)
            texts.append(text)
            asked += [
                GenerationRequest(
                    prompt=ids,
                    sampling=sampling,
                    row=row,
                    stop_ids=model.stop_ids,
                    top=request.logprobs,
                    scores_prompt=request.echo and request.logprobs is not None,
                    generates=request.writes,
                )
                for row in range(len(asked), len(asked) + request.n)
            ]
        n_scored = sum(len(one.prompt) for one in asked if one.scores_prompt)
        if (n_scores := n_scored * (1 + (request.logprobs or 0))) > MAX_PROMPT_SCORES:
            raise RefusedRequest(
                f"echo with logprobs {request.logprobs} is {n_scores:,} probabilities of "
                f"{n_scored:,} tokens; the limit is {MAX_PROMPT_SCORES:,}; send fewer or shorter "
                "prompts, or a smaller logprobs",
                param="logprobs",
            )
        return texts, asked

    # -- the rest ----------------------------------------------------------------------------------

    async def _examples(self, http: HTTPRequest) -> Response:
        """Give examples to the run; the response comes when they are on its disk."""
        examples = await asyncio.to_thread(requests.examples, await read_body(http))
        await asyncio.to_thread(self._keep, examples)
        return JSONResponse({"object": "examples", "kept": len(examples)})

    def _keep(self, examples: Sequence[object]) -> None:
        run = self._model.run
        try:
            if run is None:
                raise RunError(f"{self._model.name} is not a checkpoint of a run; serve a run")
            append_examples(run.directory, examples, self._model.tokenizer)
        except RunError as error:
            raise RefusedRequest(str(error), status=409, code="not_following") from error
        except DataError as error:
            raise RefusedRequest(str(error), param="examples", code="invalid_value") from error
        except EnvironmentLacks as error:
            raise RefusedRequest(str(error), status=507, code="not_kept") from error

    async def _page(self, http: HTTPRequest) -> Response:
        style, script = page.asset("chat.css"), page.asset("chat.js")
        text = page.document(
            "mlxhog", page.asset("chat.html"), styles=[style], scripts=[script], talks=True
        )
        return HTMLResponse(text, headers={"cache-control": "no-store", "x-frame-options": "DENY"})

    async def _models(self, http: HTTPRequest) -> Response:
        return JSONResponse({"object": "list", "data": [*self._descriptions.values()]})

    async def _one_model(self, http: HTTPRequest) -> Response:
        if (name := http.path_params["name"]) not in self._descriptions:
            has = ", ".join(map(repr, self._descriptions))
            problem = f"no such model; this server has {has}"
            raise RefusedRequest(problem, status=404, code="model_not_found")
        return JSONResponse(self._descriptions[name])

    async def _health(self, http: HTTPRequest) -> Response:
        health = self._served.health()
        about = {"model": self._model.name, "mode": self._config.mode}
        return JSONResponse(health | about, status_code=503 if health["trouble"] else 200)

    async def _refused(self, http: HTTPRequest, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if not isinstance(error, RefusedRequest):  # of the router
            ways = ", ".join(one.path for one in self._routes.routes if isinstance(one, Route))
            request = f"{http.method} {http.scope['path'][:100]}"
            message = f"{request}: {error.detail}; this server has {ways}"
            error = RefusedRequest(message, status=error.status_code)
        return _answer(error)


async def unless_gone(receive: Receive, work: Awaitable[Any]) -> Any:
    """Return the result of `work` for a client; None if the client disconnects first."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def read_body(http: HTTPRequest) -> bytes:
    """Return the body of a request.

    Raises:
        RefusedRequest: the body is too long, or does not arrive in time.
    """
    body, length = bytearray(), http.headers.get("content-length", "")
    announced = int(length[:20]) if length.isdigit() else 0
    try:
        async with asyncio.timeout(BODY_S):
            async for piece in http.stream():
                body += piece
                if max(len(body), announced) > MAX_BODY_BYTES:
                    problem = f"the body has more than {MAX_BODY_BYTES:,} bytes"
                    raise RefusedRequest(problem, status=413)
    except TimeoutError:
        raise RefusedRequest(f"the body did not arrive within {BODY_S:.0f} s", status=408) from None
    except ClientDisconnect:
        raise RefusedRequest("the client has gone", status=499) from None
    return bytes(body)


def _answer(refused: RefusedRequest) -> Response:
    return JSONResponse(refused.body(), refused.status_code, refused.headers)


async def _failed(http: HTTPRequest, error: Exception) -> Response:
    return _answer(RefusedRequest(FAILED, status=500))


def serve(
    model: str,
    config: ServeConfig,
    on_ready: Callable[[str, ServedModel], None],
    say: Tell = lambda message: None,
) -> None:
    """Serve a run or a checkpoint until a signal ends it.

    `on_ready` is called with the URL when requests are answered; `say` with a message if a run is
    waited for.

    Raises:
        ConfigError: the address cannot be used, or needs a key.
        MlxhogError: the model cannot be loaded; as for `mlxhog.load`.
    """
    key = key_of(config)
    origins = origins_of(config, key)
    writing, before = list[asyncio.Task[None]](), sys.getswitchinterval()

    def begin() -> None:
        writing.append(asyncio.create_task(served.run()))
        on_ready(f"{url_of(listener)}/v1", served)

    with (
        contextlib.closing(listen(config.host, config.port)) as listener,
        contextlib.closing(ServedModel(model, config, say)) as served,
    ):
        server = AppServer(
            Api(served, config, key, origins),
            begin,
            lambda: writing[0].done(),
            served.model.tokenizer.close,  # a prompt that it encodes in another process
            limit_concurrency=max(MAX_CONNECTIONS, 2 * served.max_answers),
        )
        sys.setswitchinterval(_SWITCH_S)
        try:
            server.run(sockets=[listener])
        finally:
            sys.setswitchinterval(before)
    if not writing[0].cancelled():
        writing[0].result()
