"""`mlxhog generate`: text from a checkpoint or a run."""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlxhog.cli.flags import Flags
from mlxhog.config_sources import resolve
from mlxhog.errors import ConfigError
from mlxhog.options import option
from mlxhog.report.plain import printable

EXAMPLES = (
    'generate latest --prompt "The "',
    "generate runs/20260102-101500-sotu --prompt @letter.txt --temperature 0.7 --top-p 0.9",
    "generate latest --prompt - --seed 1 < letter.txt",
)

MODEL = "RUN_OR_CHECKPOINT"


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """Options of `mlxhog generate`."""

    prompt: str = option("", "text to go on with; - reads standard input, @FILE a file")
    max_new_tokens: int = option(
        200, "length of the answer", unit="tokens", low=1, aliases=("max_tokens",)
    )
    temperature: float = option(
        0.8, "0 takes the likeliest token, 1 samples the model's own", low=0, aliases=("temp",)
    )
    top_p: float = option(1.0, "sample from the likeliest tokens of this mass", above=0, high=1)
    top_k: int = option(0, "sample from this many tokens; 0 from all", low=0)
    min_p: float = option(0.0, "leave out tokens below this share of the best", low=0, high=1)
    seed: int = option(0, "the same seed gives the same text", low=0, high=2**32 - 1)
    backend: str = option(
        "torch:cpu", "what computes", choices=("torch:cpu", "torch:mps", "mlx:cpu", "mlx:gpu")
    )
    out: str = option("runs", "folder that holds the runs")


def run(arguments: list[str]) -> int:
    """Run the command; returns its exit code."""
    flags = Flags(
        "generate", "Write text with a trained model, the prompt first.", EXAMPLES, (MODEL,)
    )
    flags.argument("model", metavar=MODEL, help="a path, a run's name, or latest")
    flags.argument("--json", action="store_true", help="one JSON object instead of text")
    flags.options(GenerateConfig)
    parsed = flags.parse(arguments)
    config = resolve(GenerateConfig, [parsed.given], parsed.problems)
    prompt = _prompt(config.prompt)
    pieces: list[str] = []
    start = time.perf_counter()
    for piece in _generate(parsed.other.model, prompt, config):
        if not parsed.other.json:
            # The prompt waits for the first piece, so that an error stands alone.
            _write(piece if pieces else prompt + piece)
        pieces.append(piece)
    seconds = time.perf_counter() - start
    text = "".join(pieces)
    if parsed.other.json:
        print(json.dumps({"prompt": prompt, "text": text, "seconds": round(seconds, 3)}))
    else:
        _write("\n")
    return 0


def _generate(model: str, prompt: str, config: GenerateConfig) -> Iterator[str]:
    """Yield the answer piece by piece."""
    from mlxhog.decoding.sampling import Sampler
    from mlxhog.live.model import open_model

    sampler = Sampler(
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        min_p=config.min_p,
        seed=config.seed,
    )
    opened = open_model(model, root=Path(config.out), backend=config.backend)
    yield from opened.write(prompt, sampler=sampler, max_new_tokens=config.max_new_tokens)


def _prompt(spec: str) -> str:
    """Return the text that `--prompt` means.

    Raises:
        ConfigError: the file cannot be read, or is not UTF-8 text.
    """
    try:
        if spec == "-":
            return sys.stdin.read()
        return Path(spec[1:]).read_text(encoding="utf-8") if spec.startswith("@") else spec
    except OSError as error:
        raise ConfigError(f"--prompt {spec}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"--prompt {spec}: not UTF-8 text") from error


def _write(text: str) -> None:
    """Write text as it comes; a terminal gets no control characters but newlines."""
    if sys.stdout.isatty():
        text = "\n".join(printable(line) for line in text.split("\n"))
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()
