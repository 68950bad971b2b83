"""Check the requests of clients: the fields of OpenAI's completions and chat completions.

Unsupported fields that would change the answer are refused, not ignored. A chat becomes one text to
continue, as in training (`mlxhog.data.conversations`).
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mlxhog.config.options import option, options
from mlxhog.data import conversations
from mlxhog.decoding.options import Sampling, stop_strings
from mlxhog.errors import ConfigError, DataError, did_you_mean, shown
from mlxhog.files import plain_json

MOST_EXAMPLES = 1000
"""Largest number of examples in one request."""

DEFAULTS = Sampling(max_new_tokens=16, temperature=1.0)
"""OpenAI's defaults that differ from those of `mlxhog generate`."""

CHAT_TOKENS = 256
"""Length of a chat's answer if the request has none."""

_IGNORED = frozenset(
    "cache_prompt dry_allowed_length dry_base dry_penalty_last_n dynatemp_exponent id_slot "
    "metadata mirostat_eta mirostat_tau n_keep parallel_tool_calls prediction priority "
    "prompt_cache_key prompt_cache_retention provider repeat_last_n request_id route "
    "safety_identifier service_tier store timings_per_token transforms user xtc_threshold".split()
)
"""Fields of other servers that never change a text: bills, logs, caches, tools that there are not,
and numbers of methods that `_REFUSED` has switched off."""

_NOTHING: tuple[object, ...] = (False, 0, "", [], {})

_REFUSED: Mapping[str, Sequence[object]] = {
    **dict.fromkeys(
        "allowed_token_ids audio bad_words continue_final_message documents dry_multiplier "
        "dynatemp_range frequency_penalty functions grammar guided_choice guided_grammar "
        "guided_json guided_regex ignore_eos include_stop_str_in_output json_schema logit_bias "
        "logits_processors min_tokens mirostat n_probs presence_penalty prompt_logprobs "
        "stop_token_ids structured_outputs suffix tools top_a top_logprobs truncate_prompt_tokens "
        "use_beam_search web_search_options xtc_probability".split(),
        _NOTHING,
    ),
    "add_generation_prompt": (True,),
    "add_special_tokens": (True,),
    "best_of": (1,),
    "early_stopping": (False,),
    "function_call": ("none", "auto"),
    "length_penalty": (1,),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
    "repeat_penalty": (1,),
    "response_format": ({"type": "text"},),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True, False),
    "tfs_z": (1,),
    "tool_choice": ("none", "auto"),
    "typical": (1,),
    "typical_p": (1,),
    "verbosity": ("medium",),
}
"""Fields of other servers that would change the answer, with the values that do not."""

MOST_LOGPROBS = 20
"""Largest number of alternatives to each token, as in vLLM."""


class RefusedRequest(Exception):
    """A request that the server refuses.

    Args:
        message: the value, the expected values, and the way out.
        status: HTTP status.
        param: the field of the request, if one is wrong.
        code: error code for programs.
        retry_after_s: seconds until a retry may succeed, or None.
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
class ClientRequest:
    """A checked request.

    Attributes:
        prompts: texts, or ids of tokens.
        sampling: sampling options of each answer; without a seed in the request, a new seed.
        n: answers to each prompt.
        length: name of the field with the largest length of an answer.
        stream: whether the answer is sent while it is written.
        include_usage: whether a stream ends with the number of tokens.
        echo: whether the prompt comes before the answer.
        session: name of the conversation that it continues.
        logprobs: number of most likely tokens beside each token; None is no probabilities.
        writes: whether there is an answer; `max_tokens` 0 asks for the prompt only.
        joint: text between this conversation and the prompt.
        is_chat: whether the answer is a message.
    """

    prompts: tuple[str | tuple[int, ...], ...]
    sampling: Sampling
    n: int = option(1, "answers to each prompt", low=1)
    logprobs: int | None = option(
        None, "probabilities of each token and of the most likely ones", low=0, high=MOST_LOGPROBS
    )
    length: str = "max_tokens"
    writes: bool = True
    stream: bool
    include_usage: bool
    echo: bool = False
    session: str | None = None
    joint: str = ""
    is_chat: bool = False


_NUMBERS = {**options(Sampling), **options(ClientRequest)}
_LENGTH = _NUMBERS.pop("max_new_tokens")  # requests have other names for it
_OTHER_FIELDS = ("messages", "model", "prompt", "session", "stop", "stream", "stream_options")


def completion(body: bytes, *, model: str) -> ClientRequest:
    """Parse the body of `POST /v1/completions`.

    Args:
        body: body of the request.
        model: name of the server's model.

    Raises:
        RefusedRequest: the body is not JSON, or a field is missing, unknown, wrong or
            unsupported.
    """
    fields = _Fields(body, model)
    if fields.rest.get("logprobs") is False:
        fields.take("logprobs")
    fields.refuse_other(("messages",), "/v1/chat/completions")
    most = fields.rest.get("max_tokens")
    writes = most != 0 or isinstance(most, bool)
    if not writes:
        fields.take("max_tokens")
    return fields.request(
        prompts=_prompts(fields.take("prompt")), echo=fields.flag("echo"), writes=writes
    )


def chat(body: bytes, *, model: str) -> ClientRequest:
    """Parse the body of `POST /v1/chat/completions`; arguments and errors as `completion`."""
    fields = _Fields(body, model)
    for name in ("echo", "logprobs"):
        if fields.rest.get(name) is False:
            fields.take(name)
    fields.refuse_other(("prompt", "echo", "logprobs"), "/v1/completions")
    try:
        text = conversations.prompt(fields.take("messages"))
    except DataError as error:
        raise RefusedRequest(str(error), param="messages") from error
    length = "max_tokens"
    if "max_completion_tokens" in fields.rest:  # the newer name
        fields.take(length)
        length = "max_completion_tokens"
    fields.rest.setdefault(length, CHAT_TOKENS)
    return fields.request(
        prompts=(text,),
        length=length,
        ends=conversations.STOPS,
        joint=conversations.JOINT,
        is_chat=True,
    )


def examples(body: bytes) -> list[object]:
    """Return the examples of `POST /v1/examples`: one object, or a list in the field `examples`.

    Raises:
        RefusedRequest: the body is not JSON, or has no or too many examples. The fields of an
            example are checked when it is stored.
    """
    fields = _Fields(body, "")
    many = fields.rest.get("examples", [fields.rest])
    if set(fields.rest) - {"examples"} and "examples" in fields.rest:
        raise RefusedRequest(
            "the body has fields besides examples; leave them out", param="examples"
        )
    if not isinstance(many, list) or not 1 <= len(many) <= MOST_EXAMPLES:
        raise RefusedRequest(
            f"examples is {shown(many)}; wanted a list of 1 to {MOST_EXAMPLES} objects with prompt "
            "and answer, or messages",
            param="examples",
        )
    return many


class _Fields:
    """The fields of a request's body; each method removes the ones that it reads."""

    def __init__(self, body: bytes, model: str) -> None:
        try:
            value = plain_json.loads(body)
        except ValueError as error:
            raise RefusedRequest(f"the body is not JSON: {shown(str(error))}") from error
        if not isinstance(value, dict):
            raise RefusedRequest(f"the body is {shown(value)}; wanted a JSON object")
        # null means the same as leaving a field out
        self.rest: dict[str, Any] = {k: v for k, v in value.items() if v is not None}
        self._model = model

    def take(self, name: str) -> Any:
        """Return a field's value, or None if it is missing."""
        return self.rest.pop(name, None)

    def flag(self, name: str) -> bool:
        """Return the value of a boolean field."""
        value = self.rest.pop(name, False)
        if not isinstance(value, bool):
            raise RefusedRequest(f"{name} is {shown(value)}; wanted true or false", param=name)
        return value

    def refuse_other(self, names: Sequence[str], path: str) -> None:
        """Refuse fields that belong to another path."""
        for name in names:
            if name in self.rest:
                raise RefusedRequest(f"{name} is a field of {path}; send it there", param=name)

    def request(
        self,
        *,
        prompts: tuple[str | tuple[int, ...], ...],
        length: str = "max_tokens",
        ends: tuple[str, ...] = (),
        echo: bool = False,
        joint: str = "",
        is_chat: bool = False,
        writes: bool = True,
    ) -> ClientRequest:
        """Return the request; the remaining fields must be ones that all requests have."""
        self._check_model(self.take("model"))
        stream = self.flag("stream")
        extras = self.rest.pop("stream_options", {})
        if not isinstance(extras, dict) or not isinstance(extras.get("include_usage", False), bool):
            raise RefusedRequest(
                f'stream_options is {shown(extras)}; wanted {{"include_usage": true}}',
                param="stream_options",
            )
        try:
            stop = stop_strings(self.rest.pop("stop", ()))
        except ConfigError as error:
            raise RefusedRequest(str(error), param="stop") from error
        session = _session(self.take("session"))
        for name, harmless in _REFUSED.items():
            value = self.take(name)
            if value is not None and not any(
                value == one and isinstance(value, bool) == isinstance(one, bool)
                for one in harmless
            ):
                raise RefusedRequest(f"{name} is not supported here; leave it out", param=name)
        for name in _IGNORED:
            self.take(name)
        for name in ("seed", "top_k"):  # elsewhere -1 is no seed, and all tokens
            if self.rest.get(name) == -1:
                self.take(name)
        numbers: dict[str, Any] = {"seed": secrets.randbits(63)} | self._numbers(length)
        n, logprobs = numbers.pop("n", 1), numbers.pop("logprobs", None)
        if session is not None and (len(prompts) > 1 or n > 1 or logprobs is not None):
            raise RefusedRequest(
                "a request with a session has one prompt and one answer, without logprobs",
                param="session",
            )
        return ClientRequest(
            prompts=prompts,
            sampling=replace(DEFAULTS, **numbers, stop=(*ends, *stop)),
            n=n,
            logprobs=logprobs,
            length=length,
            writes=writes,
            stream=stream,
            include_usage=bool(extras.get("include_usage")),
            echo=echo,
            session=session,
            joint=joint,
            is_chat=is_chat,
        )

    def _check_model(self, name: object) -> None:
        if name is None:
            raise RefusedRequest(
                f"model is missing; this server has {self._model!r}", param="model"
            )
        if name != self._model:
            raise RefusedRequest(
                f"no model {shown(name)}; this server has {self._model!r}",
                status=404,
                param="model",
                code="model_not_found",
            )

    def _numbers(self, length: str) -> dict[str, Any]:
        """Return the remaining fields, which must be numbers, by the names of options."""
        known, numbers = {**_NUMBERS, length: _LENGTH}, dict[str, Any]()
        for name, value in self.rest.items():
            if name not in known:
                hint = did_you_mean(name, [*known, *_OTHER_FIELDS])
                raise RefusedRequest(f"unknown field {shown(name)}{hint}", param=name[:100])
            if not isinstance(value, int | float):
                raise RefusedRequest(
                    f"{name} is {shown(value)}; wanted {known[name].expected}", param=name
                )
            try:
                numbers[known[name].name] = known[name].convert(value)
            except ValueError as error:
                raise RefusedRequest(f"{name} {error}", param=name) from error
        return numbers


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
    raise RefusedRequest(
        f"prompt {problem}; wanted a text, a list of token ids, or a list of these", param="prompt"
    )


def _are_ids(value: object) -> bool:
    return isinstance(value, list) and all(
        type(one) is int and -(2**31) <= one < 2**31 for one in value
    )


def _session(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", value):
        raise RefusedRequest(
            f"session is {shown(value)}; wanted a name of at most 64 letters, digits, '.', '_' "
            "and '-'",
            param="session",
        )
    return value
