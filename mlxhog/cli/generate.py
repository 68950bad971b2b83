"""`mlxhog generate`: text from a checkpoint, or from a run while it trains."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxhog.cli.flags import Json, Plugins, RunFolder, run_argument
from mlxhog.cli.frame import Report, command
from mlxhog.config.options import option
from mlxhog.decoding.options import Sampling, stop_strings
from mlxhog.errors import ConfigError, DataError
from mlxhog.live import MODES, backend_option, wait_option
from mlxhog.report.streams import verbatim

if TYPE_CHECKING:
    from mlxhog.live.source import Loaded, WeightSource

_ESCAPES = {r"\n": "\n", r"\t": "\t", r"\\": "\\"}


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(Sampling, RunFolder, Plugins, Json):
    """Options of `mlxhog generate`."""

    model: str = run_argument("RUN_OR_CHECKPOINT")
    stop: tuple[str, ...] = option(
        (),
        r"end the answer before this text, in which \n is a newline; may be given repeatedly",
        many=True, metavar="TEXT",
    )  # fmt: skip
    prompt: str = option("", "text to continue; - reads standard input, @FILE a file")
    prompt_file: str = option(
        "",
        'a prompt per line, answered together; {"prompt": TEXT} or {"messages": [...]} per line of '
        "FILE.jsonl",
        excludes=("prompt",),
    )
    batch_size: int = option(16, "answers that are written at a time", low=1)
    prefill_chunk: int = option(2048, "tokens of a prompt that are read at a time", low=1)
    backend: str = backend_option()
    weights: str = option(
        "float32", "format of the weights in memory; 8bit and 4bit are for mlx backends",
        choices=("float32", "bfloat16", "8bit", "4bit"),
    )  # fmt: skip
    mode: str = option(
        "double_buffer",
        "weights of a run that trains: its last published copy, one such copy for the whole "
        "answer, unsynchronised reads, or its newest checkpoint",
        choices=MODES,
    )
    wait: float = wait_option()


@command("generate")
def run(config: GenerateConfig) -> Report:
    r"""Write text with a trained model, the prompt first.

    Examples:
        generate latest --prompt "The"
        generate latest --prompt "The" --mode pinned_per_sequence
        generate runs/20260102-101500-sotu --prompt @letter.txt --temperature 0.7 --top-p 0.9
        generate latest --prompt - --seed 1 --stop '\n\n' < letter.txt
        generate latest --prompt-file questions.jsonl --json
    """
    from mlxhog.decoding.generate import Answers
    from mlxhog.live.model import load

    many = bool(config.prompt_file)
    prompts, stops = (
        read_prompts(config.prompt_file) if many else ([read_prompt(config.prompt)], ())
    )
    config = replace(config, stop=(*stops, *_stop_strings(config.stop)))
    model = load(
        config.model,
        backend=config.backend,
        weights=config.weights,
        mode=config.mode,
        out=config.out,
        wait=config.wait,
        say=lambda message: print(message, file=sys.stderr),
    )
    sizes = {"batch_size": config.batch_size, "prefill_chunk": config.prefill_chunk}
    source, trains = model.follower.source, not model.follower.source.ended()
    answers = Answers(len(prompts))
    used: dict[int, tuple[Loaded, Loaded]] = {}  # by the first and the last token of an answer
    waiting, n_written = prompts[0], 0
    with closing(model):
        for piece in answers.follow(model.answer(prompts, config, **sizes)):
            now = model.follower.loaded()
            used[piece.row] = (used.get(piece.row, (now,))[0], now)
            if not (config.json or many):
                _write(waiting + piece.text)
                waiting = ""
            while many and n_written < len(prompts) and answers.rows[n_written].finish_reason:
                text = prompts[n_written] + answers.rows[n_written].text
                n_written += 1
                if not config.json:  # each as soon as it and those before it are complete
                    _write(f"--- {n_written} of {len(prompts)}\n{text}\n")
    if not (config.json or many):
        _write("\n")
    records: list[dict[str, Any]] = [
        {
            "prompt": prompt,
            "text": answer.text,
            "tokens": len(answer.ids),
            "ids": answer.ids,
            "finish_reason": answer.finish_reason,
            "ttft_s": _rounded(answer.ttft_s),
            **({"weights": _weights(source, *used[row])} if row in used else {}),
        }
        for row, (prompt, answer) in enumerate(zip(prompts, answers.rows, strict=True))
    ]
    whole = {"answers": records, "tokens": answers.tokens, "ttft_s": _rounded(answers.ttft_s)}
    pace = {"tokens_per_s": _rounded(answers.tokens_per_s), "seconds": round(answers.seconds, 3)}
    facts = (whole if many else records[0]) | pace
    if config.json:
        return Report(facts)
    rate = "" if answers.tokens_per_s is None else f" at {answers.tokens_per_s:.0f} tok/s"
    end = f"{answers.tokens} tokens{rate}; the first after {answers.ttft_s or 0:.3f} s"
    lines = [_weights_line(one["weights"], trains) for one in records if "weights" in one]
    if len(set(lines)) > 1:
        lines = [f"answer {row}: {line}" for row, line in enumerate(lines, start=1)]
    remarks = [*filter(None, [source.note]), *dict.fromkeys(lines), end]
    return Report(facts, [], remarks=remarks)


def _weights(source: WeightSource, first: Loaded, last: Loaded) -> dict[str, Any]:
    """Return the facts of the weights of an answer: of its first token, and of its last."""
    counts = source.counts_updates
    return {
        "of": source.whose,
        "mode": source.mode,
        "version_first": first.version if counts else None,
        "version_last": last.version if counts else None,
        "consistent": last.consistent,
        "age_updates": last.age_updates,
        "age_s": _rounded(last.age_s),
    }


def _weights_line(facts: dict[str, Any], trains: bool) -> str:
    """Return whose they are, their versions, and the age of the last in training."""
    text, first, last = f"weights of {facts['of']}", facts["version_first"], facts["version_last"]
    if first is None:
        return text
    text += f", version {first}"
    text += f" to {last}" if first != last else ""
    text += "" if last else " (no update yet)"
    if not trains:
        return text
    return f"{text}, {facts['age_updates']} updates and {facts['age_s'] or 0:.1f} s old at its end"


# -- prompts ---------------------------------------------------------------------------------------


def read_prompt(spec: str) -> str:
    """Return the text of `--prompt`: a text, - for standard input, or @FILE.

    Raises:
        ConfigError: the file cannot be read, or is not UTF-8 text.
    """
    if spec == "-" or spec.startswith("@"):
        return _read(spec.removeprefix("@"), f"--prompt {spec}")
    return _normalised(os.fsencode(spec), f"--prompt {ascii(spec)}")  # a shell passes any bytes


def read_prompts(spec: str) -> tuple[list[str], tuple[str, ...]]:
    """Return the prompts of `--prompt-file`, and the texts that end the answers of conversations.

    Args:
        spec: a text file with a prompt per line; FILE.jsonl with objects {"prompt": TEXT}, whose
            texts may hold newlines, or with conversations {"messages": [...]}; or - for lines of
            standard input. Blank lines are left out.

    Raises:
        ConfigError: the file cannot be read, is not UTF-8 text, holds no prompt, a line is not such
            an object, or the objects are of both kinds.
    """
    from mlxhog.data import conversations, textfiles

    where = f"--prompt-file {spec}"
    lines = [(n, line) for n, line in enumerate(_read(spec, where).split("\n"), 1) if line.strip()]
    if not lines:
        raise ConfigError(f"{where}: holds no prompts; write one per line")
    if Path(spec).suffix.lower() not in textfiles.LINES_SUFFIXES:
        return [line for _, line in lines], ()
    prompts, are_chats = zip(*(_of_line(line, f"{spec}:{n}") for n, line in lines), strict=True)
    if len({*are_chats}) > 1:
        raise ConfigError(
            f"{where}: some lines have a prompt and others have messages, and their answers end "
            "differently; use a file for each"
        )
    return list(prompts), conversations.STOPS if are_chats[0] else ()


def _of_line(line: str, place: str) -> tuple[str, bool]:
    """Return the prompt of a JSON line, and whether it is a conversation."""
    from mlxhog.base import plain_json
    from mlxhog.data import conversations

    expected = 'wanted {"prompt": "..."} or {"messages": [...]}'
    try:
        value = plain_json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{place}: not JSON ({error}); {expected}") from error
    value = value if isinstance(value, dict) else {}
    if "messages" in value:
        try:
            return conversations.prompt(value["messages"]), True
        except DataError as error:
            raise ConfigError(f"{place}: {error}") from error
    if isinstance(prompt := value.get("prompt"), str):
        return _normalised(prompt.encode(), place), False
    raise ConfigError(f"{place}: {expected}, got {line.strip()[:60]}")


def _read(spec: str, what: str) -> str:
    """Return the text of a file, or of standard input, as training reads it."""
    from mlxhog.base import reading

    try:
        # A file, or a pipe, as `--prompt-file <(...)` gives.
        with nullcontext(sys.stdin.buffer) if spec == "-" else open(spec, "rb") as file:
            content = reading.read_all(file, reading.MOST_BYTES)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{what}: {getattr(error, 'strerror', error)}") from error
    return _normalised(content, what)


def _normalised(content: bytes, what: str) -> str:
    """Return a text without a byte-order mark, CRLF as LF, as training reads it.

    Raises:
        ConfigError: it is not UTF-8, or has a zero byte.
    """
    from mlxhog.data import records

    try:
        text = records.plain(content).decode()
        if "\0" not in text:
            return text
    except UnicodeError:
        pass
    raise ConfigError(f"{what}: not UTF-8 text, or it has a zero byte; save it as UTF-8")


def _stop_strings(words: Sequence[str]) -> tuple[str, ...]:
    r"""Return the texts of `--stop`, in which \n, \t and \\ are escapes.

    Raises:
        ConfigError: one is empty or not UTF-8 text, or there are too many or too long ones.
    """
    texts = (_normalised(os.fsencode(word), f"--stop {ascii(word)}") for word in words)
    plain = [re.sub(r"\\[nt\\]", lambda match: _ESCAPES[match[0]], text) for text in texts]
    return stop_strings(plain, "--stop")


def _rounded(number: float | None) -> float | None:
    return None if number is None else round(number, 4)


def _write(text: str) -> None:
    """Write text as it comes; only a pipe or a file gets control characters."""
    stream = sys.stdout if sys.stdout.isatty() else verbatim(sys.stdout)
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "replace").decode(encoding))
    stream.flush()
