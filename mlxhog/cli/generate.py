r"""Continue a prompt with a trained model.

Examples:
    generate latest --prompt "Fellow citizens"
    generate runs/20260102-101500-sotu --prompt @letter.txt --temperature 0.7 --top-p 0.9
    generate latest --prompt - --seed 1 --stop '\n\n' < letter.txt
    generate latest --chat --prompt "Who are you?"
    generate hf:NX-AI/xLSTM-7b --prompt "The" --yes
        27 GB to download, and of memory
    generate latest --prompt-file questions.jsonl --json
"""

import re
import sys
import time
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Self

from mlxhog.base.paths import expanded
from mlxhog.cli.frame import CommandResult, Download, Json, Plugins, command, model_argument, option
from mlxhog.decoding.options import Sampling, stop_strings
from mlxhog.display.streams import printable_answer, verbatim
from mlxhog.errors import ConfigError, DataError, shown
from mlxhog.serving import LoadOptions

if TYPE_CHECKING:
    from mlxhog.decoding.engine import Piece
    from mlxhog.serving.model import LoadedModel
    from mlxhog.serving.source import LoadedWeights, WeightSource

_ESCAPES = {r"\n": "\n", r"\t": "\t", r"\\": "\\"}


@dataclass(frozen=True, kw_only=True)
class AnswerOptions(Sampling, LoadOptions, Plugins, Download, Json):
    """Options of commands that write answers."""

    model: str = model_argument()
    stop: tuple[str, ...] = option(
        (),
        r"end the answer before this text, in which \n is a newline; may be given repeatedly",
        many=True, metavar="TEXT",
    )  # fmt: skip

    def load(self) -> "LoadedModel":
        """Load the model; a wait for its run is told on stderr."""
        from mlxhog.serving.model import load

        reading: dict[str, Any] = {one.name: getattr(self, one.name) for one in fields(LoadOptions)}
        return load(self.model, **reading, say=lambda message: print(message, file=sys.stderr))

    def with_stops(self, *ends: str) -> Self:
        r"""Return the options with the texts of `--stop`, in which \n, \t and \\ are escapes."""
        plain_texts = (plain(one, f"--stop {ascii(one)}") for one in self.stop)
        texts = [re.sub(r"\\[nt\\]", lambda match: _ESCAPES[match[0]], one) for one in plain_texts]
        return replace(self, stop=(*ends, *stop_strings(texts, "--stop")))


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(AnswerOptions):
    """Options of `mlxhog generate`."""

    prompt: str = option("", "text to continue; - reads standard input, @FILE a file")
    chat: bool = option(
        False,
        "the prompt is a message of a user, which the assistant answers",
        excludes=("prompt_file",),
    )
    prompt_file: str = option(
        "",
        'a prompt per line, answered together; {"prompt": TEXT} or {"messages": [...]} per line of '
        "FILE.jsonl",
        excludes=("prompt",),
    )


@dataclass
class Answer:
    """One answer, complete or in progress."""

    prompt: str
    ids: list[int] = field(default_factory=list)  # without the one that ends a document
    text: str = ""
    finish_reason: str | None = None
    ttft_s: float | None = None  # seconds from the start of all answers to its first token
    weights: "tuple[LoadedWeights, LoadedWeights] | None" = None  # first and last
    consistent: bool = True  # whether the weights of every token were

    def add(self, piece: "Piece", weights: "LoadedWeights", seconds: float) -> None:
        """Add a token and its text, of these weights, after so many seconds."""
        self.ttft_s = self.ttft_s or seconds
        self.ids += [] if piece.token is None else [piece.token]
        self.text += piece.text
        self.finish_reason = piece.finish_reason
        self.weights = (self.weights or (weights,))[0], weights
        self.consistent &= weights.consistent

    def to_json(self, source: "WeightSource") -> dict[str, Any]:
        """Return what `--json` prints."""
        payload: dict[str, Any] = {
            "prompt": self.prompt, "text": self.text, "tokens": len(self.ids), "ids": self.ids,
            "finish_reason": self.finish_reason, "ttft_s": self.ttft_s and round(self.ttft_s, 4),
        }  # fmt: skip
        if self.weights is not None:
            first, last = self.weights
            counts = source.counts_updates
            payload["weights"] = {
                "of": source.name,
                "mode": source.mode,
                "version_first": first.version if counts else None,
                "version_last": last.version if counts else None,
                "consistent": self.consistent,
                "age_updates": last.age_updates,
                "age_s": round(last.age_s, 4),
            }
        return payload


@command()
def run(config: GenerateConfig) -> CommandResult:
    from mlxhog.data import conversations

    many = bool(config.prompt_file)
    prompts, ends = read_prompts(config.prompt_file) if many else ([read_prompt(config.prompt)], ())
    if config.chat:
        talk = [{"role": "user", "content": prompts[0]}]
        prompts, ends = [conversations.prompt(talk)], conversations.STOPS
    config = config.with_stops(*ends)
    model = config.load()
    source, trains = model.follower.source, not model.follower.source.ended()
    answers, n_written = list(map(Answer, prompts)), 0
    began_s, seconds = time.perf_counter(), 0.0
    with closing(model):
        for piece in model.answer(prompts, config):
            seconds = time.perf_counter() - began_s
            answers[piece.row].add(piece, model.follower.loaded(), seconds)
            if config.json:
                continue
            if not many:
                write(prompts[0] * (n_written == 0) + piece.text)
                n_written += 1
                continue
            # each as soon as it and those before it are complete
            while n_written < len(prompts) and (complete := answers[n_written]).finish_reason:
                text = f"{complete.prompt}{complete.text}\n"
                n_written += 1
                write(f"--- {n_written} of {len(prompts)}\n{text}")
    if not (config.json or many):
        write("\n")
    records, tokens = [one.to_json(source) for one in answers], sum(len(one.ids) for one in answers)
    first_s = min((one.ttft_s or 0.0 for one in answers), default=0.0)
    rate = (tokens - 1) / (seconds - first_s) if tokens > 1 and seconds > first_s else None
    ttft_s = round(first_s, 4)
    payload = {"answers": records, "tokens": tokens, "ttft_s": ttft_s} if many else records[0]
    payload |= {"tokens_per_s": rate and round(rate, 4), "seconds": round(seconds, 3)}
    if config.json:
        return CommandResult(payload)
    speed = "" if rate is None else f" at {rate:.0f} tok/s"
    lines = [_weights_line(one["weights"], trains) for one in records if "weights" in one]
    if len(set(lines)) > 1:
        lines = [f"answer {row}: {line}" for row, line in enumerate(lines, start=1)]
    end = f"{tokens} tokens{speed}; the first after {ttft_s:.3f} s"
    if model.run is not None and (about := model.run.trained_on()):
        is_chat = about.endswith("(conversations)")
        other = "--chat asks it as a user" if is_chat else "without --chat it continues the prompt"
        lines.insert(0, f"trained on {about}{f'; {other}' * (is_chat != bool(ends))}")
    return CommandResult(
        payload, [], messages=[*filter(None, [source.note]), *dict.fromkeys(lines), end]
    )


def _weights_line(payload: dict[str, Any], trains: bool) -> str:
    """Return whose they are, their steps, and the age of the last in training."""
    text, first, last = (
        f"weights of {payload['of']}",
        payload["version_first"],
        payload["version_last"],
    )
    if first is None:
        return text
    text += f", step {first:,}{f' to {last:,}' * (first != last)}{' (no update yet)' * (not last)}"
    age = f", {payload['age_updates']} updates and {payload['age_s']:.1f} s old at its end"
    return text + age * trains


def read_prompt(spec: str) -> str:
    """Return the text of `--prompt`: a text, - for standard input, or @FILE.

    Raises:
        ConfigError: the file cannot be read, or is not UTF-8 text.
    """
    if spec == "-" or spec.startswith("@"):
        return _read(spec.removeprefix("@"), f"--prompt {spec}")
    return plain(spec, f"--prompt {ascii(spec)}")


def read_prompts(spec: str) -> tuple[list[str], tuple[str, ...]]:
    """Return the prompts of `--prompt-file`, and the texts that end the answers of conversations.

    Args:
        spec: a text file with a prompt per line; FILE.jsonl with objects {"prompt": TEXT}, whose
            texts may hold newlines, or with conversations {"messages": [...]}; or - for lines of
            standard input. Blank lines are left out.

    Raises:
        ConfigError, DataError: the file cannot be read, or it holds something else.
    """
    from mlxhog.data import conversations, textfiles

    where = f"--prompt-file {spec}"
    prompts, talks = list[str](), list[str]()
    path = expanded(spec)
    if path.suffix.lower() not in textfiles.LINES_SUFFIXES:
        prompts += [line for line in _read(spec, where).split("\n") if line.strip()]
    else:
        for place, record in textfiles.records(path):
            values = record if isinstance(record, dict) else {}
            if "messages" in values:
                try:
                    talks.append(plain(conversations.prompt(values["messages"]), place))
                except DataError as error:
                    raise ConfigError(f"{place}: {error}") from error
            elif isinstance(prompt := values.get("prompt"), str):
                prompts.append(plain(prompt, place))
            else:
                raise ConfigError(
                    f'{place}: wanted {{"prompt": "..."}} or {{"messages": [...]}}, got '
                    f"{shown(record)}"
                )
    if prompts and talks:
        raise ConfigError(
            f"{where}: some lines have a prompt and others have messages, and their answers end "
            "differently; use a file for each"
        )
    if not prompts and not talks:
        raise ConfigError(f"{where}: holds no prompts; write one per line")
    return prompts or talks, conversations.STOPS if talks else ()


def _read(spec: str, what: str) -> str:
    """Return the text of a file, or of standard input, as training reads it."""
    from mlxhog.base import darwin, reading

    try:
        # A file, or a pipe, as `--prompt-file <(...)` gives.
        with nullcontext(sys.stdin.buffer) if spec == "-" else open(expanded(spec), "rb") as file:
            content = reading.read_all(file, reading.MAX_BYTES)
    except (OSError, ValueError) as error:
        reason = darwin.reason(error) if isinstance(error, OSError) else error
        raise ConfigError(f"{what}: {reason}") from error
    return plain(content, what)


def plain(content: bytes | str, what: str) -> str:
    """Return a text as training reads it; one with a lone surrogate is refused."""
    from mlxhog.data import records

    try:
        text = records.plain(content.encode() if isinstance(content, str) else content).decode()
        if "\0" not in text:
            return text
    except UnicodeError:
        pass
    raise ConfigError(f"{what}: not UTF-8 text, or it has a zero byte; save it as UTF-8")


def write(text: str) -> None:
    """Write text as it comes; only a pipe or a file gets control characters."""
    stream = verbatim(sys.stdout)
    encoding = stream.encoding or "utf-8"
    text = text.encode(encoding, "replace").decode(encoding)
    stream.write(printable_answer(text) if stream.isatty() else text)
    stream.flush()
