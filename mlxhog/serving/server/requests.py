"""Parse requests of OpenAI's API: completions and chat completions.

Unsupported fields that would change the answer are refused, not ignored. A chat becomes one prompt,
as in training (`mlxhog.data.conversations`).
"""

import dataclasses
import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from starlette.exceptions import HTTPException

from mlxhog.base import plain_json, typed
from mlxhog.base.quantities import MAX_COUNT
from mlxhog.config.options import option, options
from mlxhog.data import conversations
from mlxhog.decoding.options import Sampling, stop_strings
from mlxhog.errors import ConfigError, DataError, did_you_mean, shown

MAX_EXAMPLES = 1000  # largest number of examples in one request

DEFAULTS = Sampling(max_new_tokens=16, temperature=1.0)
"""OpenAI's defaults that differ from those of `mlxhog generate`."""

CHAT_TOKENS = 256  # length of a chat's answer if the request has none
MAX_LOGPROBS = 20  # largest number of alternatives to each token, as in vLLM

IGNORED = frozenset(
    "cache_prompt chat_id id id_slot keep_alive metadata n_keep parallel_tool_calls prediction "
    "priority prompt_cache_key prompt_cache_retention provider repeat_last_n request_id route "
    "safety_identifier service_tier session_id store timings_per_token transforms user".split()
)
"""Fields of other servers that never change the text: billing, logs and caches."""

_NOTHING: tuple[object, ...] = (False, 0, "", [], {})
HARMLESS: Mapping[str, Sequence[object]] = {
    **dict.fromkeys(
        "add_generation_prompt add_special_tokens add_bos_token detokenize skip_special_tokens "
        "spaces_between_special_tokens".split(),
        (True,),
    ),
    **dict.fromkeys(
        "best_of cfg_scale encoder_repetition_penalty guidance_scale length_penalty num_beams "
        "rep_pen rep_pen_slope repeat_penalty tfs tfs_z typical typical_p".split(),
        (1,),
    ),
    **dict.fromkeys(("function_call", "tool_choice"), ("none", "auto")),
    "chat_template_kwargs": ({"enable_thinking": False},),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "thinking": ({"type": "disabled"},),
    "top_n_sigma": (-1,),
    "verbosity": ("medium",),
}
"""Unsupported fields, with values that change nothing, as `_NOTHING` does in any field."""

_SWITCHES: Mapping[str, Sequence[str]] = {
    "dry_": ("dry_multiplier",),
    "dynatemp_": ("dynatemp_range", "dynamic_temperature"),
    "mirostat_": ("mirostat", "mirostat_mode"),
    "smoothing_": ("smoothing_factor",),
    "xtc_": ("xtc_probability",),
}
"""Prefix of a sampler's fields -> fields that enable it."""

FAILED = "the server failed; its terminal shows the error"

Prompt = str | tuple[int, ...]  # a text, or ids of tokens


class RefusedRequest(HTTPException):
    """A request that the server refuses, or cannot complete; `param` is its wrong field."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, headers)
        self.param, self.code = param, code

    def body(self) -> dict[str, Any]:
        """Return OpenAI's error object."""
        other = "server_error" if self.status_code >= 500 else "invalid_request_error"
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(self.status_code, other)
        error = {"message": self.detail, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}


@dataclass(frozen=True, kw_only=True)
class _OpenAIFields:
    """Fields of both paths that are not numbers, by OpenAI's names."""

    prompt: Prompt | tuple[Prompt, ...]
    model: str = ""  # without an adapter, if left out
    stream: bool = False
    stream_options: Mapping[str, bool] = field(default_factory=dict)
    stop: str | tuple[str, ...] = ()
    echo: bool = False
    do_sample: bool = True


@dataclass(frozen=True, kw_only=True)
class ClientRequest:
    """A checked request."""

    prompts: Sequence[Prompt]
    model: str  # the server's, or one of its adapters
    sampling: Sampling  # of each answer; without a seed in the request, a new seed
    n: int = option(1, "answers to each prompt", low=1)
    logprobs: int | None = option(
        None, "probabilities of each token and of the most likely ones", low=0, high=MAX_LOGPROBS
    )
    stream: bool = False  # whether the answer is sent while it is written
    counts: bool = False  # whether a stream ends with the number of tokens
    echo: bool = False  # whether the prompt comes before the answer
    writes: bool = True  # whether there is an answer; `max_tokens` 0 asks for the prompt only
    is_chat: bool = False  # whether the answer is a message
    continues: bool = False  # whether that message begins in the request
    note: str = ""  # for the client: fields that are not followed


_NUMBERS = {**options(Sampling), **options(ClientRequest)}
_LENGTH = _NUMBERS.pop("max_new_tokens")  # requests have other names for it
_NAMES = ("messages", *(one.name for one in dataclasses.fields(_OpenAIFields)))


def completion(body: bytes, *, model: str, adapters: Sequence[str] = ()) -> ClientRequest:
    """Parse the body of `POST /v1/completions` for a server of this model, with these adapters.

    Raises:
        RefusedRequest: the body is not JSON, or a field is missing, unknown, wrong or
            unsupported.
    """
    fields = _object(body)
    _refuse(fields, ("messages",), "/v1/chat/completions")
    writes = fields.get("max_tokens") != 0 or fields["max_tokens"] is False
    if not writes:
        del fields["max_tokens"]
    return _request(fields, (model, *adapters), writes=writes)


def chat(body: bytes, *, model: str, adapters: Sequence[str] = ()) -> ClientRequest:
    """Parse the body of `POST /v1/chat/completions`; arguments and errors as `completion`."""
    fields = _object(body)
    if fields.get("echo") is False:
        del fields["echo"]
    _refuse(fields, ("prompt", "echo"), "/v1/completions")
    _alternatives(fields)
    continues = _flag(fields, "continue_final_message", default=False)
    if _flag(fields, "add_generation_prompt", default=not continues) is continues:
        raise RefusedRequest(
            "one of add_generation_prompt (a new answer) and continue_final_message (the last "
            "message continues) must be true, and the other false",
            param="continue_final_message",
        )
    try:
        fields["prompt"] = conversations.prompt(fields.pop("messages", None), continues=continues)
    except DataError as error:
        raise RefusedRequest(str(error), param="messages") from error
    length = "max_tokens"
    if "max_completion_tokens" in fields:  # the newer name
        fields.pop(length, None)
        length = "max_completion_tokens"
    fields.setdefault(length, CHAT_TOKENS)
    models = (model, *adapters)
    request = _request(fields, models, length=length, is_chat=True, continues=continues)
    stop = (*conversations.STOPS, *request.sampling.stop)
    return replace(request, sampling=replace(request.sampling, stop=stop))


def examples(body: bytes) -> list[object]:
    """Return the examples of `POST /v1/examples`: one object, or a list in the field `examples`.

    Raises:
        RefusedRequest: the body is not JSON, or has no or too many examples. The fields of an
            example are checked when it is stored.
    """
    fields = _object(body)
    many = fields.pop("examples") if "examples" in fields else [fields]
    if many != [fields] and fields:
        problem = "the body has fields besides examples; leave them out"
        raise RefusedRequest(problem, param="examples")
    if not isinstance(many, list) or not 1 <= len(many) <= MAX_EXAMPLES:
        raise RefusedRequest(
            f"examples is {shown(many)}; wanted a list of 1 to {MAX_EXAMPLES} objects with prompt "
            "and answer, or messages",
            param="examples",
        )
    return many


def _object(body: bytes) -> dict[str, Any]:
    """Return the fields of a body, without null and `logprobs: false`."""
    try:
        value = plain_json.loads(body)
    except ValueError as error:
        raise RefusedRequest(f"the body is not JSON: {shown(str(error))}") from error
    if not isinstance(value, dict):
        raise RefusedRequest(f"the body is {shown(value)}; wanted a JSON object")
    if isinstance(more := value.get("stream_options"), dict):
        value["stream_options"] = {name: one for name, one in more.items() if one is not None}
    return {
        name: one
        for name, one in value.items()
        if not (one is None or (name == "logprobs" and one is False) or (name, one) == ("stop", ""))
    }


def _flag(fields: dict[str, Any], name: str, *, default: bool) -> bool:
    value = fields.pop(name, default)
    if not isinstance(value, bool):
        raise RefusedRequest(f"{name} is {shown(value)}; wanted true or false", param=name)
    return value


def _alternatives(fields: dict[str, Any]) -> None:
    """Convert the two fields for log probabilities of a chat to the one of completions."""
    wanted, top = _flag(fields, "logprobs", default=False), fields.pop("top_logprobs", 0)
    if isinstance(top, bool) or not isinstance(top, int) or not 0 <= top <= MAX_LOGPROBS:
        problem = f"top_logprobs is {shown(top)}; wanted an integer, 0 to {MAX_LOGPROBS}"
        raise RefusedRequest(problem, param="top_logprobs")
    if top and not wanted:
        raise RefusedRequest("top_logprobs needs logprobs: true", param="top_logprobs")
    if wanted:
        fields["logprobs"] = top


def _refuse(fields: Mapping[str, Any], names: Sequence[str], path: str) -> None:
    for name in names:
        if name in fields:
            raise RefusedRequest(f"{name} is a field of {path}; send it there", param=name)


def _request(
    fields: Mapping[str, Any], models: Sequence[str], *, length: str = "max_tokens", **known: Any
) -> ClientRequest:
    has = f"this server has {', '.join(map(repr, models))}"
    try:
        given = typed.read(_OpenAIFields, fields)
        stop = stop_strings(given.stop)
    except (ValueError, ConfigError) as error:
        name = str(error).split()[0].strip("'")
        hint = f"; {has}" if name == "model" else ""
        raise RefusedRequest(f"{error}{hint}", param=name) from error
    if given.model not in ("", *models):
        problem = f"no model {shown(given.model)}; {has}"
        raise RefusedRequest(problem, param="model", status=404, code="model_not_found")
    if given.prompt == ():
        raise RefusedRequest("prompt is empty; wanted a text, or ids of tokens", param="prompt")
    is_one = isinstance(given.prompt, str) or isinstance(given.prompt[0], int)
    numbers = _numbers(fields, length)
    own: dict[str, Any] = {k: numbers.pop(k) for k in ("n", "logprobs") if k in numbers}
    if not given.do_sample:  # as transformers does
        if numbers.get("temperature"):
            own["note"] = "do_sample is false: the likeliest tokens, without the temperature"
        numbers["temperature"] = 0.0
    return ClientRequest(
        prompts=(given.prompt,) if is_one else given.prompt,  # type: ignore[arg-type]
        model=given.model or models[0],
        sampling=replace(DEFAULTS, **{"seed": secrets.randbits(63)} | numbers, stop=stop),
        stream=given.stream,
        counts=given.stream_options.get("include_usage", False),
        echo=given.echo,
        **own,
        **known,
    )


def _numbers(fields: Mapping[str, Any], length: str) -> dict[str, Any]:
    """Return the numbers, by names of options; other fields must change nothing."""
    known, numbers = {**_NUMBERS, length: _LENGTH}, dict[str, Any]()
    for name, value in fields.items():
        if name in IGNORED or name in _NAMES:
            continue
        if name in ("seed", "top_k") and value == -1:  # elsewhere no seed, and all tokens
            continue
        is_number = isinstance(value, int | float)
        if name == length and is_number and (value == -1 or value > MAX_COUNT):  # cut to the limit
            numbers[_LENGTH.name] = sys.maxsize
            continue
        if name not in known:
            harmless = (*_NOTHING, *HARMLESS.get(name, ()))
            if name == "best_of":
                harmless = (*harmless, fields.get("n", 1))
            if any(_is_equal(value, one) for one in harmless) or _is_off(name, fields):
                continue
            hint = did_you_mean(name, [*known, *_NAMES])
            problem = f"{shown(name)} is not supported here; leave it out{hint}"
            raise RefusedRequest(problem, param=name[:100])
        try:
            if not is_number:
                raise ValueError(f"is {shown(value)}; wanted {known[name].expected}")
            numbers[known[name].name] = known[name].convert(value)
        except ValueError as error:
            raise RefusedRequest(f"{name} {error}", param=name) from error
    return numbers


def _is_equal(value: object, other: object) -> bool:
    """Whether two JSON values are equal; 1.0 is 1, and true is not."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def _is_off(name: str, fields: Mapping[str, Any]) -> bool:
    """Whether a field belongs to a sampler that the request does not use."""
    return any(
        name.startswith(start) and name not in switches and not any(map(fields.get, switches))
        for start, switches in _SWITCHES.items()
    )
