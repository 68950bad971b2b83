"""Options of an answer, declared once for flags, Python keywords and HTTP requests."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from mlxhog.base.quantities import MAX_COUNT
from mlxhog.config.options import convert_fields, option
from mlxhog.errors import ConfigError, shown

MAX_STOPS, MAX_STOP_CHARACTERS = 64, 100
"""Limits of stop strings, because the text is compared with each of them after every token."""

_sampling = partial(option, group="sampling")


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Options of sampling: the length of an answer, filters, and stop strings.

    The filters are applied in transformers' order: repetition penalty, temperature, top-k, top-p
    (Holtzman et al. 2020, "The curious case of neural text degeneration"), min-p (Nguyen et al.
    2024, "Turning up the heat", arXiv:2407.01082).

    A temperature that rounds to 0 in float32 counts as 0. `top_p` includes the token that crosses
    it; of equally likely tokens `top_k` takes the first. `repetition_penalty` divides positive
    logits of seen tokens, and multiplies negative ones (Keskar et al. 2019, "CTRL",
    arXiv:1909.05858); beyond its limits they may overflow float32. `stop` has the texts of
    `stop_strings`.

    Raises:
        ConfigError: options are out of range; the message lists all of them.
    """

    max_new_tokens: int = _sampling(
        200, "length of an answer", unit="tokens", low=1, aliases=("max_tokens",)
    )
    temperature: float = _sampling(
        0.8,
        "0 takes the most likely token; 1 samples the model's distribution",
        low=0,
        high=100,
        aliases=("temp",),
    )
    top_p: float = _sampling(
        1.0,
        "sample from the most likely tokens with this total probability; 0 takes the most likely",
        low=0,
        high=1,
    )
    top_k: int = _sampling(0, "sample from this number of most likely tokens; 0 is all", low=0)
    min_p: float = _sampling(
        0.0, "exclude tokens below this share of the largest probability", low=0, high=1
    )
    repetition_penalty: float = _sampling(
        1.0, "above 1 makes tokens of prompt and answer less likely to repeat", low=0.01, high=1000
    )
    seed: int = _sampling(0, "the same seed gives the same text", low=0, high=MAX_COUNT)
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check every option."""
        if problems := convert_fields(self):
            raise ConfigError("\n".join(problems))


def stop_strings(value: object, name: str = "stop") -> tuple[str, ...]:
    """Return the texts that end an answer, from one or several; `name` is the user's, for errors.

    Raises:
        ConfigError: the value is not of texts, a text is empty, or texts are too many or too long.
    """
    texts = [value] if isinstance(value, str) else value
    if not (
        isinstance(texts, Sequence)
        and len(texts) <= MAX_STOPS
        and all(isinstance(one, str) and 0 < len(one) <= MAX_STOP_CHARACTERS for one in texts)
    ):
        written = shown([*value] if isinstance(value, tuple) else value)
        raise ConfigError(
            f"{name} is {written}; wanted a text, or a list of texts: at most {MAX_STOPS}, each "
            f"of 1 to {MAX_STOP_CHARACTERS} characters"
        )
    return tuple(texts)
