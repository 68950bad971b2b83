"""The server's replies: JSON objects of completions, and event streams."""

import asyncio
import codecs
import json
import secrets
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from typing import Any

from mlxhog.decoding.engine import GenerationRequest, TokenScore
from mlxhog.serving.model import LoadedModel
from mlxhog.serving.server.requests import ClientRequest
from mlxhog.serving.server.served_model import AnswerJob, AnswerPart

MANY_SCORES = 32
"""A part of at least as many scored tokens is formatted in a thread: other clients do not wait."""


class _Choice:
    """A completion: its text, its finish reason, and scores that are not sent yet."""

    def __init__(self, text: str) -> None:
        self.texts, self.has_text = [text], False
        self.finish: str | None = None
        self.scores: list[TokenScore] = []
        # Characters of the scored tokens so far: the place of the next one in the text.
        self.offset, self.decoder = 0, codecs.getincrementaldecoder("utf-8")(errors="replace")


class Reply(AnswerJob):
    """The job of one request, which formats its completions as OpenAI does, part by part.

    Every object has the version of the weights, which is the number of applied updates: the field
    `system_fingerprint` the last token's, `mlxhog` the versions of the first and last token.
    `texts` are the prompts, for requests with `echo`.
    """

    def __init__(
        self,
        request: ClientRequest,
        asked: Sequence[GenerationRequest],
        model: LoadedModel,
        texts: Sequence[str],
    ) -> None:
        super().__init__(asked, request.model)
        self._request, self._tokenizer = request, model.tokenizer
        self._head = {
            "id": f"{'chatcmpl' if request.is_chat else 'cmpl'}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": request.model,
        }
        self._choices = [
            _Choice(texts[k // request.n] if request.echo else "") for k in range(len(asked))
        ]
        self._parts: list[AnswerPart] = []  # the first part and the last one
        self._consistent, self._n_tokens = True, 0

    def _add(self, part: AnswerPart) -> str:
        """Add a part; return the text that it adds to its choice."""
        self._parts = [*self._parts[:1], part]
        self._consistent &= part.loaded.consistent
        choice, piece, text = self._choices[part.choice], part.piece, part.piece.text
        self._n_tokens += piece.token is not None
        choice.finish = "stop" if piece.finish_reason == "document_end" else piece.finish_reason
        choice.scores += piece.scores
        if self._request.is_chat and not choice.has_text and not self._request.continues:
            text = text.lstrip()  # the blank after "Assistant:"
        choice.has_text |= bool(text)
        choice.texts.append(text)
        return text

    async def stream(self, parts: list[AnswerPart]) -> AsyncIterator[bytes]:
        """Yield the events of a stream: roles or prompts, new texts of choices, usage, the end."""
        role = {"delta": {"role": "assistant", "content": ""}}
        for k, choice in enumerate(self._choices):
            if self._request.is_chat:
                yield self._event([self._choice(k, "") | role])
            elif choice.texts[0]:
                yield self._event([self._choice(k, choice.texts[0])])
        while parts:
            texts = defaultdict[int, str](str)
            for part in parts:
                texts[part.choice] += self._add(part)
            for k, text in texts.items():
                one = self._choices[k]
                if len(one.scores) >= MANY_SCORES:
                    yield await asyncio.to_thread(self._changed, k, text)
                elif text or one.finish or one.scores:
                    yield self._changed(k, text)
            parts = await self.parts()
        if self._request.counts:
            yield self._event([], usage=self._usage())
        yield b"data: [DONE]\n\n"

    async def whole(self) -> dict[str, Any]:
        """Wait for all parts; return the answer as one object."""
        while parts := await self.parts():
            for part in parts:
                self._add(part)
        return await asyncio.to_thread(self._whole)

    def _whole(self) -> dict[str, Any]:
        choices = [
            self._choice(k, "".join(one.texts), whole=True) for k, one in enumerate(self._choices)
        ]
        kind = "chat.completion" if self._request.is_chat else "text_completion"
        return self._object(kind, choices) | {"usage": self._usage(), "mlxhog": self._weights()}

    def _changed(self, index: int, text: str) -> bytes:
        """Return the event of a choice with new text and scores, or its end."""
        more = {"mlxhog": self._weights()} if self._choices[index].finish else {}
        return self._event([self._choice(index, text)], **more)

    def _choice(self, index: int, text: str, *, whole: bool = False) -> dict[str, Any]:
        """Return a choice with new text, or its whole text, and its new scores."""
        body: dict[str, Any] = {"text": text}
        if self._request.is_chat and whole:
            body = {"message": {"role": "assistant", "content": text, "refusal": None}}
        elif self._request.is_chat:
            body = {"delta": {"content": text} if text else {}}
        choice = self._choices[index]
        logprobs = self._logprobs(choice)
        return {"index": index, **body, "logprobs": logprobs, "finish_reason": choice.finish}

    def _logprobs(self, choice: _Choice) -> dict[str, Any] | None:
        """Return the scores of a choice since the last call, in the format of the API's path."""
        scores, choice.scores = choice.scores, []
        if not scores:
            return None
        if self._request.is_chat:
            content = [
                self._entry(one.token, one.logprob)
                | {"top_logprobs": [self._entry(*pair) for pair in one.top.items()]}
                for one in scores
            ]
            return {"content": content, "refusal": None}
        tokens = [self._token_text(one.token) for one in scores]
        offsets = list[int]()
        for one in scores:
            offsets.append(choice.offset)
            choice.offset += len(choice.decoder.decode(self._tokenizer.decode([one.token])))
        top: list[dict[str, float] | None] = [
            None
            if one.logprob is None
            else {self._token_text(k): v for k, v in {**one.top, one.token: one.logprob}.items()}
            for one in scores
        ]
        return {
            "tokens": tokens,
            "token_logprobs": [one.logprob for one in scores],
            "top_logprobs": top,
            "text_offset": offsets,
        }

    def _entry(self, token: int, logprob: float | None) -> dict[str, Any]:
        raw = [*self._tokenizer.decode([token])]
        return {"token": self._token_text(token), "logprob": logprob, "bytes": raw}

    def _token_text(self, token: int) -> str:
        piece = self._tokenizer.decode([token])
        if not piece:
            return f"token_id:{token}"
        try:
            return piece.decode()
        except UnicodeDecodeError:  # part of a character
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)

    def _event(self, choices: list[Any], **more: Any) -> bytes:
        kind = "chat.completion.chunk" if self._request.is_chat else "text_completion"
        return event(self._object(kind, choices) | more)

    def _object(self, kind: str, choices: list[Any]) -> dict[str, Any]:
        version = f"v{self._parts[-1].loaded.version}" if self._parts else None
        return self._head | {"object": kind, "system_fingerprint": version, "choices": choices}

    def _usage(self) -> dict[str, int]:
        n_prompt = sum(len(one.prompt) for one in self.requests[:: self._request.n])
        total = n_prompt + self._n_tokens
        return {
            "prompt_tokens": n_prompt, "completion_tokens": self._n_tokens, "total_tokens": total,
        }  # fmt: skip

    def _weights(self) -> dict[str, Any]:
        first, last = self._parts[0].loaded, self._parts[-1].loaded
        return {
            "version_first": first.version,
            "version_last": last.version,
            "age_s": round(last.age_s, 3),
            "age_updates": last.age_updates,
            "consistent": self._consistent,
            **({"note": self._request.note} if self._request.note else {}),
        }


def event(value: object) -> bytes:
    """Return a server-sent event with a JSON value."""
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"
