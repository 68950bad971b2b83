"""Score text with a trained model: bits per byte and perplexity, file by file.

Bits per byte can be compared between tokenizers, perplexity per token cannot. As in the evaluations
of a run, the text is cut into sequences, each without the text before it. Without --data it is the
run's full validation set, and its fixed subset that the run's own evaluations score.

Examples:
    eval latest
    eval latest --data letter.txt
    eval sotu --data notes/ --checkpoint best --json
    eval hf:NX-AI/xLSTM-7b --like latest
        27 GB to download, and of memory
    eval xLSTM-7b --data 'notes/*.md' --seq-len 1024 --backend mlx:cpu
"""

import sys
from dataclasses import dataclass
from typing import Any

from mlxhog.cli.frame import CommandResult, Download, command, model_argument, option
from mlxhog.cli.frame.flags import Json, OptionGroup, Plugins, RunsDirectory
from mlxhog.config.config import TrainConfig
from mlxhog.config.sources import ConfigSource
from mlxhog.display.views import StatusLine
from mlxhog.serving import SEQ_LEN, backend_option

_SCORED = "model data like checkpoint seq_len backend runs_dir".split()
_OF_TEXT = "text_key", "document_separator"


@dataclass(frozen=True, kw_only=True)
class EvalConfig(RunsDirectory, Plugins, Download, Json):
    """Options of `mlxhog eval`."""

    model: str = model_argument()
    data: str | None = option(
        None,
        "a bundled corpus, or a text file, folder or glob; a flag each for several",
        none="validation", lines=True,
    )  # fmt: skip
    like: str | None = option(
        None, "run whose validation set is scored, as to compare a base model with its fine-tuning",
        none="the model's own",
    )  # fmt: skip
    checkpoint: str | None = option(
        None,
        "of the run: latest, best, or the name of a folder in its checkpoints; auto: latest, or "
        "best where the last is worse",
        none="auto",
    )
    seq_len: int | None = option(
        None, f"length of a sequence; auto is that of the run's training, else {SEQ_LEN}",
        unit="tokens", low=2, none="auto",
    )  # fmt: skip
    backend: str = backend_option()


@command(
    text=OptionGroup(TrainConfig, " ".join(_OF_TEXT), "options", default="the run's", merged=True),
    reading=OptionGroup(TrainConfig, "strict_data", "options"),
)
def run(config: EvalConfig, text: ConfigSource, reading: TrainConfig) -> CommandResult:
    # It imports NumPy: wrong flags are reported before.
    from mlxhog.serving.evaluation import evaluate as scores

    given: dict[str, Any] = {name: text[name][0] for name in _OF_TEXT if name in text}
    with StatusLine(sys.stderr, quiet=False) as line:
        result = scores(
            **{name: getattr(config, name) for name in _SCORED},
            **given,
            strict_data=reading.strict_data,
            observer=lambda shown: line.tick(lambda: shown),
        )
        for note in result.notes:
            line.tell(f"note: {note}")
    payload = result.to_json()
    rows = [*payload["files"], {"file": "whole", **result.whole.to_json()}]
    if result.subset is not None:
        rows.append({"file": "validation subset", **payload["subset"]})
    about = {name: payload[name] for name in ("checkpoint", "seq_len", "backend")}
    return CommandResult(payload, [rows, about])
