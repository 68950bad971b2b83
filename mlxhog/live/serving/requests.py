"""Requests of clients: the fields of OpenAI's completions and chat completions, checked.

Fields that would change the answer and are not supported are refused, not ignored. A base model
knows no roles; a chat becomes a text that it goes on with (`chat_text`).
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlxhog.config.options import option, options
from mlxhog.decoding.sampling import Sampler
from mlxhog.errors import did_you_mean, shown
from mlxhog.files import plain_json

MOST_STOPS, MOST_STOP_CHARACTERS = 8, 100
MOST_EXAMPLES = 1000
"""In one request."""

CHAT_TOKENS = 256
"""Length of a chat's answer where the client does not say."""

USER = "\nUser:"
"""What ends an answer in a chat: the model begins to speak for the user."""

_IGNORED = frozenset(
    {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
)
"""About billing, logs and caches of OpenAI's own servers."""

_REFUSED: Mapping[str, Sequence[object]] = {
    "best_of": (1,),
    "frequency_penalty": (0, 0.0),
    "presence_penalty": (0, 0.0),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
"""Fields that cannot be served, with the values that ask for nothing."""


class Refused(Exception):
    """A request that is not answered.

    Args:
        message: what was sent, what was wanted, and the way out.
        status: of HTTP.
        param: the field of the request, where it is one.
        code: a word for programs.
        retry_after_s: when to try again, where that may help.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.param, self.code = message, status, param, code
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """The numbers of a request, and what they may be."""

    max_tokens: int = option(16, "most tokens of an answer", low=1)
    temperature: float = option(1.0, "0 takes the likeliest token", low=0, high=100)
    top_p: float = option(1.0, "sample from the likeliest tokens of this mass", above=0, high=1)
    top_k: int = option(0, "sample from this many tokens; 0 from all", low=0)
    min_p: float = option(0.0, "leave out tokens below this share of the best", low=0, high=1)
    repetition_penalty: float = option(1.0, "above 1: repeat less", low=0.01, high=100)
    seed: int | None = option(None, "the same seed gives the same text", low=0, high=2**63 - 1)
    n: int = option(1, "answers to each prompt", low=1)

    def sampler(self) -> Sampler:
        """Return what draws the tokens; without a seed, others every time."""
        return Sampler(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            seed=secrets.randbits(63) if self.seed is None else self.seed,
        )


@dataclass(frozen=True, kw_only=True)
class ClientRequest:
    """A request that makes sense.

    Attributes:
        prompts: texts, or ids of tokens.
        sampling: numbers.
        stop: texts that end an answer.
        stream: whether the answer is sent as it is written.
        include_usage: whether a stream ends with the number of tokens.
        echo: whether the prompt comes before the answer.
        session: the conversation that it goes on with.
        joint: text between such a conversation and the prompt.
        is_chat: whether the answer is a message.
    """

    prompts: tuple[str | tuple[int, ...], ...]
    sampling: Sampling
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool
    echo: bool = False
    session: str | None = None
    joint: str = ""
    is_chat: bool = False


def completion(body: bytes, *, model: str) -> ClientRequest:
    """Return what `POST /v1/completions` asks for.

    Args:
        body: of the request.
        model: name of the one that is served.

    Raises:
        Refused: it is not JSON, or a field is missing, unknown, wrong or not supported.
    """
    fields = _Fields(body, model)
    return fields.request(prompts=_prompts(fields.take("prompt")), echo=fields.flag("echo"))


def chat(body: bytes, *, model: str) -> ClientRequest:
    """Return what `POST /v1/chat/completions` asks for; arguments and errors as `completion`."""
    fields = _Fields(body, model)
    text = chat_text(_messages(fields.take("messages")))
    most = fields.take("max_completion_tokens")
    if most is not None:
        fields.rest["max_tokens"] = most
    fields.rest.setdefault("max_tokens", CHAT_TOKENS)
    return fields.request(prompts=(text,), stops=(USER,), joint="\n", is_chat=True)


def examples(body: bytes) -> list[object]:
    """Return the examples of `POST /v1/examples`: one object, or a list under `examples`.

    Raises:
        Refused: it is not JSON, or there are none or too many; what an example has to be is seen
            by who keeps it.
    """
    fields = _Fields(body, "")
    many = fields.rest.get("examples", [fields.rest])
    if set(fields.rest) - {"examples"} and "examples" in fields.rest:
        raise Refused("the body has other fields beside examples; leave them out", param="examples")
    if not isinstance(many, list) or not 1 <= len(many) <= MOST_EXAMPLES:
        raise Refused(
            f"examples is {shown(many)}; wanted a list of 1 to {MOST_EXAMPLES} objects with prompt "
            "and answer",
            param="examples",
        )
    return many


def chat_text(messages: Sequence[tuple[str, str]]) -> str:
    r"""Return the text that a base model goes on with.

    >>> chat_text([("system", "Be brief."), ("user", "Hello!")])
    'Be brief.\nUser: Hello!\nAssistant:'
    """
    names = {"user": "User: ", "assistant": "Assistant: "}
    lines = [names.get(role, "") + text.strip() for role, text in messages]
    return "\n".join([*lines, "Assistant:"])


class _Fields:
    """The fields of a request's body, taken one after another."""

    def __init__(self, body: bytes, model: str) -> None:
        try:
            value = plain_json.loads(body)
        except ValueError as error:
            raise Refused(f"the body is not JSON: {shown(str(error))}") from error
        if not isinstance(value, dict):
            raise Refused(f"the body is {shown(value)}; wanted a JSON object")
        # null means the same as leaving a field out
        self.rest: dict[str, Any] = {k: v for k, v in value.items() if v is not None}
        self._model = model

    def take(self, name: str) -> Any:
        """Return a field's value, None where it was left out."""
        return self.rest.pop(name, None)

    def flag(self, name: str) -> bool:
        """Return a field that is true or false."""
        value = self.rest.pop(name, False)
        if not isinstance(value, bool):
            raise Refused(f"{name} is {shown(value)}; wanted true or false", param=name)
        return value

    def request(
        self,
        *,
        prompts: tuple[str | tuple[int, ...], ...],
        stops: tuple[str, ...] = (),
        echo: bool = False,
        joint: str = "",
        is_chat: bool = False,
    ) -> ClientRequest:
        """Return the request; every field that is left has to be one that all requests have."""
        self._check_model(self.take("model"))
        stream = self.flag("stream")
        extras = self.rest.pop("stream_options", {})
        if not isinstance(extras, dict) or not isinstance(extras.get("include_usage", False), bool):
            raise Refused(
                f'stream_options is {shown(extras)}; wanted {{"include_usage": true}}',
                param="stream_options",
            )
        stop = (*stops, *_stops(self.take("stop")))
        session = _session(self.take("session"))
        for name, harmless in _REFUSED.items():
            value = self.take(name)
            if value is not None and not any(
                value == one and type(value) is type(one) for one in harmless
            ):
                raise Refused(f"{name} is not supported here; leave it out", param=name)
        for name in _IGNORED:
            self.take(name)
        sampling = self._sampling()
        if session is not None and (len(prompts) > 1 or sampling.n > 1):
            raise Refused(
                "a session takes one prompt and gives one answer at a time", param="session"
            )
        return ClientRequest(
            prompts=prompts,
            sampling=sampling,
            stop=stop,
            stream=stream,
            include_usage=bool(extras.get("include_usage")),
            echo=echo,
            session=session,
            joint=joint,
            is_chat=is_chat,
        )

    def _check_model(self, name: object) -> None:
        if name is None:
            raise Refused(f"model is missing; this server has {self._model!r}", param="model")
        if name != self._model:
            raise Refused(
                f"there is no model {shown(name)}; this server has {self._model!r}",
                status=404,
                param="model",
                code="model_not_found",
            )

    def _sampling(self) -> Sampling:
        known, numbers = options(Sampling), dict[str, Any]()
        for name, value in self.rest.items():
            if name not in known:
                hint = did_you_mean(name, [*known, "prompt", "messages", "stop", "stream"])
                raise Refused(f"unknown field {shown(name)}{hint}", param=name[:100])
            if not isinstance(value, int | float):
                raise Refused(
                    f"{name} is {shown(value)}; wanted {known[name].expected}", param=name
                )
            try:
                numbers[name] = known[name].convert(value)
            except ValueError as error:
                raise Refused(f"{name} {error}", param=name) from error
        return Sampling(**numbers)


def _prompts(value: object) -> tuple[str | tuple[int, ...], ...]:
    """Return the prompts: a text, ids, or a list of either."""
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list) and value:
        if _are_ids(value):
            return (tuple(value),)
        if all(isinstance(one, str) or _are_ids(one) for one in value):
            return tuple(one if isinstance(one, str) else tuple(one) for one in value)
    problem = "is missing" if value is None else f"is {shown(value)}"
    raise Refused(
        f"prompt {problem}; wanted a text, a list of token ids, or a list of such", param="prompt"
    )


def _are_ids(value: object) -> bool:
    return isinstance(value, list) and all(
        type(one) is int and -(2**31) <= one < 2**31 for one in value
    )


def _stops(value: object) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(stops, list) or not all(isinstance(one, str) and one for one in stops):
        raise Refused(f"stop is {shown(value)}; wanted a text, or a list of texts", param="stop")
    if len(stops) > MOST_STOPS or any(len(one) > MOST_STOP_CHARACTERS for one in stops):
        raise Refused(
            f"stop has {len(stops)} texts, the longest of {max(map(len, stops))} characters; "
            f"wanted at most {MOST_STOPS} of at most {MOST_STOP_CHARACTERS} characters",
            param="stop",
        )
    return tuple(stops)


def _session(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", value):
        raise Refused(
            f"session is {shown(value)}; wanted a name of at most 64 letters, digits, '.', '_' "
            "and '-'",
            param="session",
        )
    return value


def _messages(value: object) -> list[tuple[str, str]]:
    """Return the role and text of each message."""
    if not isinstance(value, list) or not value:
        problem = "is missing" if value is None else f"is {shown(value)}"
        raise Refused(
            f'messages {problem}; wanted a list such as [{{"role": "user", "content": "Hello"}}]',
            param="messages",
        )
    return [_message(k, message) for k, message in enumerate(value)]


def _message(k: int, message: object) -> tuple[str, str]:
    role = message.get("role") if isinstance(message, dict) else None
    if not isinstance(message, dict) or role not in ("system", "developer", "user", "assistant"):
        raise Refused(
            f"message {k + 1} is {shown(message)}; wanted the role system, developer, user or "
            "assistant, and a content",
            param="messages",
        )
    content = message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list) or not all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
        for part in parts
    ):
        raise Refused(
            f"the content of message {k + 1} is {shown(content)}; wanted a text, or parts of type "
            "text",
            param="messages",
        )
    return str(role), "".join(part["text"] for part in parts)
