"""The server's replies: JSON of answers, errors and the list of models, and event streams."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from mlxhog.decoding.engine import FinishReason, SessionInUse, TokenScore
from mlxhog.decoding.model import Model
from mlxhog.errors import Diverged, MlxhogError
from mlxhog.live.serving.engine_thread import OF_WEIGHTS, AnswerJob, AnswerPart, ServerFailed
from mlxhog.live.serving.requests import ClientRequest, RefusedRequest

_FINISHED: dict[FinishReason | None, str | None] = {
    None: None, "stop": "stop", "length": "length", "document_end": "stop",
}  # fmt: skip


class Reply:
    """The answers to one request in OpenAI's form, built part by part.

    Every object has the version of the weights, the number of updates applied to them. The field
    `system_fingerprint` has that of its last token, `mlxhog` those of the answers' first and last.

    Args:
        request: request of the client.
        job: job that answers it.
        served: the model of the server.
        prompts: the prompts as texts, for requests with `echo`.
    """

    def __init__(
        self, request: ClientRequest, job: AnswerJob, served: Model, *, prompts: Sequence[str]
    ) -> None:
        self._request, self._job, self._tokenizer = request, job, served.tokenizer
        self._head = {
            "id": f"{'chatcmpl' if request.is_chat else 'cmpl'}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": served.name,
        }
        count = len(job.requests)
        self._texts = [[prompts[k // request.n]] if request.echo else [] for k in range(count)]
        self._has_text = [False] * count
        self._finish: list[FinishReason | None] = [None] * count
        self._scores: list[list[TokenScore]] = [[] for _ in range(count)]
        self._offset = [0] * count  # of the next token in a choice's text
        self._parts: list[AnswerPart] = []  # the first part and the last one
        self._consistent, self._n_tokens = True, 0

    def take(self, part: AnswerPart) -> str:
        """Add a part; returns the text that it adds to its choice."""
        self._parts = [*self._parts[:1], part]
        self._consistent &= part.loaded.consistent
        piece, text = part.piece, part.piece.text
        self._n_tokens += piece.token is not None
        self._finish[part.choice] = piece.finish_reason
        self._scores[part.choice] += piece.scores
        if self._request.is_chat and not self._has_text[part.choice]:
            text = text.lstrip()  # the blank after "Assistant:"
        self._has_text[part.choice] |= bool(text)
        self._texts[part.choice].append(text)
        return text

    def begin(self) -> bytes:
        """Return the first events of a stream: roles, or prompts."""
        if self._request.is_chat:
            role = {"role": "assistant", "content": ""}
            choices = [self._choice(k, delta=role) for k in range(len(self._texts))]
        else:
            choices = [self._choice(k, text=one[0]) for k, one in enumerate(self._texts) if one]
        return b"".join(self._event([choice]) for choice in choices)

    def events(self, parts: Sequence[AnswerPart]) -> bytes:
        """Return parts as events of a stream: one for each choice with news."""
        texts: dict[int, str] = {}
        for part in parts:
            texts[part.choice] = texts.get(part.choice, "") + self.take(part)
        events = b""
        for k, text in texts.items():
            finish = _FINISHED[self._finish[k]]
            if text or finish or self._scores[k]:
                body: dict[str, Any] = {"text": text}
                if self._request.is_chat:
                    body = {"delta": {"content": text} if text else {}}
                events += self._event([self._choice(k, finish, **body)], is_last=bool(finish))
        return events

    def end(self) -> bytes:
        """Return the last events of a stream."""
        usage = (
            self._event([], usage=self._usage())
            if self._request.stream_options.include_usage
            else b""
        )
        return usage + b"data: [DONE]\n\n"

    def whole(self) -> dict[str, Any]:
        """Return the answer as one object."""
        choices = []
        for k, texts in enumerate(self._texts):
            text = "".join(texts)
            body: dict[str, Any] = {"text": text}
            if self._request.is_chat:
                body = {"message": {"role": "assistant", "content": text, "refusal": None}}
            choices.append(self._choice(k, _FINISHED[self._finish[k]], **body))
        kind = "chat.completion" if self._request.is_chat else "text_completion"
        return self._object(kind, choices) | {"usage": self._usage(), "mlxhog": self._weights()}

    def _choice(self, index: int, finish: str | None = None, **body: Any) -> dict[str, Any]:
        logprobs = self._logprobs(index) if self._scores[index] else None
        return {"index": index, **body, "logprobs": logprobs, "finish_reason": finish}

    def _logprobs(self, index: int) -> dict[str, list[Any]]:
        """Return the scores of a choice since the last call, in the form of completions."""
        scores, self._scores[index] = self._scores[index], []
        tokens = [self._spelled(one.token) for one in scores]
        offsets = list(accumulate(map(len, tokens), initial=self._offset[index]))
        self._offset[index] = offsets.pop()
        top: list[dict[str, float] | None] = [
            None
            if one.logprob is None
            else {self._spelled(k): v for k, v in {**one.top, one.token: one.logprob}.items()}
            for one in scores
        ]
        return {
            "tokens": tokens,
            "token_logprobs": [one.logprob for one in scores],
            "top_logprobs": top,
            "text_offset": offsets,
        }

    def _spelled(self, token: int) -> str:
        """A token as a text of its own, as other servers spell it."""
        piece = self._tokenizer.decode([token])
        if not piece:
            return f"token_id:{token}"
        try:
            return piece.decode()
        except UnicodeDecodeError:  # part of a character
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)

    def _event(self, choices: list[Any], *, is_last: bool = False, **more: Any) -> bytes:
        kind = "chat.completion.chunk" if self._request.is_chat else "text_completion"
        if is_last:
            more["mlxhog"] = self._weights()
        return event(self._object(kind, choices) | more)

    def _object(self, kind: str, choices: list[Any]) -> dict[str, Any]:
        version = f"v{self._parts[-1].loaded.version}" if self._parts else None
        return self._head | {"object": kind, "system_fingerprint": version, "choices": choices}

    def _usage(self) -> dict[str, int]:
        n = self._request.n
        n_prompt = sum(len(one.prompt) for one in self._job.requests[::n])
        total = n_prompt + self._n_tokens
        return {
            "prompt_tokens": n_prompt, "completion_tokens": self._n_tokens, "total_tokens": total,
        }  # fmt: skip

    def _weights(self) -> dict[str, Any]:
        """The weights of the answer; docs/live.md describes the fields."""
        first, last = self._parts[0].loaded, self._parts[-1].loaded
        weights: dict[str, Any] = {
            "version_first": first.version,
            "version_last": last.version,
            "age_s": round(last.age_s, 3),
            "age_updates": last.age_updates,
            "consistent": self._consistent,
        }
        if self._request.session is not None:
            weights["session"] = {
                "id": self._request.session,
                "resumed": self._job.resumes,
                "tokens": self._parts[-1].session_tokens,
            }
        return weights


def event(value: object) -> bytes:
    """Return a server-sent event with a JSON value."""
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def error_body(refused: RefusedRequest) -> dict[str, Any]:
    """Return OpenAI's error object."""
    kinds = {401: "authentication_error", 429: "rate_limit_error"}
    other = "server_error" if refused.status >= 500 else "invalid_request_error"
    kind = kinds.get(refused.status, other)
    error = {"message": refused.message, "type": kind}
    return {"error": error | {"param": refused.param, "code": refused.code}}


def description(name: str, created: int) -> dict[str, Any]:
    """Return the description of a model."""
    return {"id": name, "object": "model", "created": created, "owned_by": "mlxhog"}


def for_client(error: MlxhogError) -> RefusedRequest:
    """Return an error of the engine as a reply, with the status of its cause."""
    if isinstance(error, ServerFailed):
        return RefusedRequest(str(error), status=500)
    if isinstance(error, SessionInUse):
        return RefusedRequest(str(error), status=409, param="session", code="session_in_use")
    if isinstance(error, OF_WEIGHTS):
        code = "not_finite" if isinstance(error, Diverged) else "no_weights"
        return RefusedRequest(str(error), status=503, code=code)
    return RefusedRequest(str(error), code="invalid_value")
