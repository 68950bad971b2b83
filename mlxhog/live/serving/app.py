"""The HTTP interface: routes, answers whole or as streams, health and metrics."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from time import monotonic, time

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from mlxhog.checkpoint.run import Run, is_run, run_of
from mlxhog.data.stream import append_examples
from mlxhog.decoding.engine import Int32, Request, checked_ids
from mlxhog.errors import DataError, Diverged, EnvironmentLacks, MlxhogError, RunError
from mlxhog.live.serving import replies, requests
from mlxhog.live.serving.admission import Admission, read_body
from mlxhog.live.serving.config import ServeConfig
from mlxhog.live.serving.engine_thread import FAILED, Busy, EngineThread, Failed, Job, Part, Served
from mlxhog.live.serving.metrics import CONTENT_TYPE_LATEST, Metrics
from mlxhog.live.serving.replies import Reply, error_body
from mlxhog.live.serving.requests import ClientRequest, Refused

RETRY_AFTER_S = 1


class Api:
    """The application that a server runs.

    Args:
        engine: writes the answers.
        served: what it writes them with.
        config: limits.
        key: what clients have to send; None is nothing.

    Concurrency: for one event loop.
    """

    def __init__(
        self, engine: EngineThread, served: Served, config: ServeConfig, key: str | None
    ) -> None:
        self._engine, self._served, self._config = engine, served, config
        self._admission = Admission(config.host, key)
        self._created = int(time())
        self.metrics = Metrics(engine)
        routes = [
            Route("/v1/completions", self._completions, methods=["POST"]),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/examples", self._examples, methods=["POST"]),
            Route("/v1/models", self._models, methods=["GET"]),
            Route("/v1/models/{name}", self._model, methods=["GET"]),
            Route("/health", self._health, methods=["GET"]),
            Route("/metrics", self._metrics, methods=["GET"]),
        ]
        self._paths = frozenset(route.path for route in routes)
        self._routes = Starlette(
            routes=routes,
            exception_handlers={
                Refused: _refused,
                HTTPException: _not_found,
                Exception: _failed,
            },
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request of ASGI."""
        if scope["type"] != "http":
            raise RuntimeError(f"the server passed on {scope['type']!r}, expected 'http'")

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                path = scope["path"] if scope["path"] in self._paths else "other"
                self.metrics.requests.labels(path, str(message["status"])).inc()
            await send(message)

        try:
            self._admission.check(scope)
        except Refused as refused:
            await _error(refused)(scope, receive, counted)
            return
        await self._routes(scope, receive, counted)

    # -- answers -----------------------------------------------------------------------------------

    async def _completions(self, http: HTTPRequest) -> Response:
        return await self._answer(http, requests.completion)

    async def _chat(self, http: HTTPRequest) -> Response:
        return await self._answer(http, requests.chat)

    async def _answer(self, http: HTTPRequest, parse: Callable[..., ClientRequest]) -> Response:
        began = monotonic()
        request = parse(await read_body(http), model=self._served.name)
        texts, ids = await asyncio.to_thread(self._encoded, request)
        job = self._start(request, ids)
        self.metrics.tokens.labels("prompt").inc(sum(map(len, ids)))
        reply = Reply(request, job, model=self._served.name, prompts=texts)
        parts = self._counted(job, reply, began)
        if request.stream:
            return EventStream(job, reply, parts, self._leave)
        try:
            if await _unless_gone(http.receive, _all(parts, reply)):
                return _json(reply.whole())
            return Response(status_code=499)  # nobody reads it
        except MlxhogError as error:
            raise _for_client(error) from error
        finally:
            self._leave(job)

    def _encoded(self, request: ClientRequest) -> tuple[list[str], list[Int32]]:
        """Return the prompts as texts and as ids. Long ones take a while: not for the event loop.

        Raises:
            Refused: a prompt or an answer would be too long, or has ids outside the vocabulary.
        """
        tokenizer, config = self._served.model.tokenizer, self._config
        if request.sampling.max_tokens > config.max_new_tokens:
            raise Refused(
                f"max_tokens is {request.sampling.max_tokens}; this server writes at most "
                f"{config.max_new_tokens} (mlxhog serve --max-new-tokens)",
                param="max_tokens",
            )
        if request.session is not None and not config.sessions:
            raise Refused(
                "this server keeps no sessions (mlxhog serve --sessions)", param="session"
            )
        count = len(request.prompts) * request.sampling.n
        if count > config.batch_size:
            raise Refused(
                f"{count} answers in one request; at most {config.batch_size} run at a time",
                param="n",
            )
        texts, ids = [], []
        for prompt in request.prompts:
            try:
                if isinstance(prompt, str):
                    one = tokenizer.encode(prompt.encode())
                    text = prompt
                else:
                    one = checked_ids(prompt, tokenizer)
                    text = tokenizer.decode(one).decode(errors="replace") if request.echo else ""
            except MlxhogError as error:
                raise Refused(str(error), param="prompt") from error
            if len(one) > config.max_prompt_tokens:
                raise Refused(
                    f"a prompt of {len(one)} tokens; this server reads at most "
                    f"{config.max_prompt_tokens} (mlxhog serve --max-prompt-tokens)",
                    param="prompt",
                    code="context_length_exceeded",
                )
            texts.append(text)
            ids.append(one)
        return texts, ids

    def _start(self, request: ClientRequest, prompts: Sequence[Int32]) -> Job:
        """Have the engine answer.

        Raises:
            Refused: a setting is out of its range, or too many answers wait already.
        """
        model, sampling = self._served.model, request.sampling
        sampler = sampling.sampler()
        job = Job(
            [
                Request(
                    prompt=prompts[k // sampling.n],
                    sampler=sampler.of_row(k),
                    max_new_tokens=sampling.max_tokens,
                    stop=request.stop,
                    ends={model.tokenizer.bos, *model.end_tokens},
                    session=request.session,
                )
                for k in range(len(prompts) * sampling.n)
            ],
            model.tokenizer.encode(request.joint.encode()) if request.joint else None,
        )
        try:
            self._engine.start(job)
        except Busy as error:
            raise Refused(str(error), status=429, retry_after_s=RETRY_AFTER_S) from error
        return job

    async def _counted(self, job: Job, reply: Reply, began: float) -> AsyncIterator[list[Part]]:
        """Yield parts as they come, and count them."""
        is_first = True
        while parts := await job.parts():
            if is_first:
                self.metrics.first_token.observe(monotonic() - began)
                is_first = False
            n_tokens = sum(part.token is not None for part in parts)
            self.metrics.tokens.labels("completion").inc(n_tokens)
            for reason, count in Counter(part.finish_reason for part in parts).items():
                if reason is not None:
                    self.metrics.answers.labels(reason).inc(count)
            yield parts

    def _leave(self, job: Job) -> None:
        """Stop what is still being written: its client has gone, or it failed."""
        if job.n_open:
            self.metrics.answers.labels("cancelled").inc(job.n_open)
            self._engine.cancel(job)

    # -- examples ----------------------------------------------------------------------------------

    async def _examples(self, http: HTTPRequest) -> Response:
        """Hand examples on to the run; they are on its disk when this answers."""
        examples = requests.examples(await read_body(http))
        await asyncio.to_thread(self._keep, examples)
        return _json({"object": "examples", "kept": len(examples)})

    def _keep(self, examples: Sequence[object]) -> None:
        model = self._served.model
        run = Run(model.checkpoint) if is_run(model.checkpoint) else run_of(model.checkpoint)
        try:
            if run is None:
                raise RunError(f"{model.checkpoint.name} is a checkpoint of no run; serve a run")
            append_examples(run.directory, examples, model.tokenizer)
        except RunError as error:
            raise Refused(str(error), status=409, code="not_following") from error
        except DataError as error:
            raise Refused(str(error), param="examples", code="invalid_value") from error
        except EnvironmentLacks as error:
            raise Refused(str(error), status=507, code="not_kept") from error

    # -- the rest ----------------------------------------------------------------------------------

    async def _models(self, http: HTTPRequest) -> Response:
        return _json(replies.models(self._served.name, self._created))

    async def _model(self, http: HTTPRequest) -> Response:
        if http.path_params["name"] != self._served.name:
            raise Refused(
                f"no such model; this server has {self._served.name!r}",
                status=404,
                code="model_not_found",
            )
        return _json(replies.model(self._served.name, self._created))

    async def _health(self, http: HTTPRequest) -> Response:
        engine = self._engine
        health = {
            "status": "trouble" if engine.trouble else "ok",
            "trouble": engine.trouble or None,
            "model": self._served.name,
            "weights": self._served.whose,
            "note": self._served.note or None,
            "mode": self._config.mode,
            "training": not engine.ended,
            "version": engine.loaded.version,
            "newest": engine.newest,
            "age_s": round(engine.loaded.age_s, 3),
            "running": engine.n_running,
            "waiting": engine.n_waiting,
            "sessions": engine.n_sessions,
        }
        return _json(health, status=503 if engine.trouble else 200)

    async def _metrics(self, http: HTTPRequest) -> Response:
        return Response(self.metrics.text(), media_type=CONTENT_TYPE_LATEST)


class EventStream(Response):
    """Server-sent events: an answer as it is written. A client that goes away cancels it.

    Args:
        job: the answer.
        reply: makes the events.
        parts: of the answer, as they come.
        leave: called when nobody reads any more.
    """

    def __init__(
        self,
        job: Job,
        reply: Reply,
        parts: AsyncIterator[list[Part]],
        leave: Callable[[Job], None],
    ) -> None:
        super().__init__(
            media_type="text/event-stream",
            headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
        )
        del self.headers["content-length"]
        self._job, self._reply, self._parts, self._leave = job, reply, parts, leave

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await _unless_gone(receive, self._send(send))
        finally:
            self._leave(self._job)

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})

        async def write(events: Sequence[bytes], *, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": b"".join(events), "more_body": more})

        await write(self._reply.begin())
        try:
            async for parts in self._parts:
                if events := self._reply.events(parts):
                    await write(events)
        except MlxhogError as error:
            await write([replies.event(error_body(_for_client(error)))], more=False)
            return
        await write(self._reply.end(), more=False)


async def _all(parts: AsyncIterator[list[Part]], reply: Reply) -> None:
    async for some in parts:
        for part in some:
            reply.take(part)


async def _unless_gone(receive: Receive, work: Awaitable[None]) -> bool:
    """Do something for a client unless it goes away; returns whether it stayed."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            return False
        working.result()
        return True
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


def _for_client(error: MlxhogError) -> Refused:
    """Return an error of the engine as an answer: the client's fault, or the weights'."""
    if isinstance(error, Failed):
        return Refused(str(error), status=500)
    if isinstance(error, Diverged):
        return Refused(str(error), status=503, code="not_finite")
    return Refused(str(error), code="invalid_value")


def _json(value: object, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(
        json.dumps(value).encode(),
        status_code=status,
        headers=headers,
        media_type="application/json",
    )


def _error(refused: Refused) -> Response:
    headers = {}
    if refused.retry_after_s is not None:
        headers["retry-after"] = str(refused.retry_after_s)
    if refused.status == 401:
        headers["www-authenticate"] = "Bearer"
    return _json(error_body(refused), status=refused.status, headers=headers)


async def _refused(http: HTTPRequest, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return _error(error)


async def _not_found(http: HTTPRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    ways = "/v1/completions, /v1/chat/completions, /v1/examples, /v1/models, /health and /metrics"
    message = f"{http.method} {http.url.path[:100]}: {error.detail}; this server has {ways}"
    return _error(Refused(message, status=error.status_code))


async def _failed(http: HTTPRequest, error: Exception) -> Response:
    return _error(Refused(FAILED, status=500))
