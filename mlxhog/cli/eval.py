"""`mlxhog eval`: bits per byte and perplexity of text, file by file and as a whole."""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxhog.cli.flags import Json, Plugins, RunFolder, run_argument
from mlxhog.cli.frame import Report, command
from mlxhog.config.config import train_config
from mlxhog.config.options import option
from mlxhog.errors import ConfigError, DataError
from mlxhog.live import CHECKPOINT, backend_option
from mlxhog.report.views import StatusLine

if TYPE_CHECKING:
    from mlxhog.checkpoint.run import Run
    from mlxhog.data.tokens import TokenFile
    from mlxhog.decoding.scoring import Score

SEQ_LEN = 512


@dataclass(frozen=True, kw_only=True)
class EvalConfig(RunFolder, Plugins, Json):
    """Options of `mlxhog eval`."""

    model: str = run_argument("RUN_OR_CHECKPOINT")
    data: str | None = option(
        None,
        "a corpus in the package, or a text file, folder or glob; a flag each for several",
        none="held-out", lines=True,
    )  # fmt: skip
    text_key: str | None = option(None, "for .jsonl, the key that holds the text", none="auto")
    strict_data: bool = option(
        False,
        "refuse damaged, unreadable or empty files of a folder or glob; by default they are "
        "skipped",
    )
    checkpoint: str | None = option(
        None, "of the run: latest, best, or the name of a folder in its checkpoints", none="latest"
    )
    seq_len: int | None = option(
        None, f"length of a sequence; auto is that of the run's training, else {SEQ_LEN}",
        unit="tokens", low=2, none="auto",
    )  # fmt: skip
    backend: str = backend_option()


@command("eval")
def run(config: EvalConfig) -> Report:
    """Score text with a trained model.

    It prints bits per byte, which can be compared between tokenizers, and perplexity per token,
    which cannot. As in the evaluation of a run, the text is cut into sequences, each without the
    text before it. Without --data it is all held-out text of the run, and the part of it that the
    run's own evaluations score.

    Examples:
        eval latest
        eval latest --data letter.txt
        eval sotu --data notes/ --checkpoint best --json
        eval xLSTM-7b --data 'notes/*.md' --seq-len 1024 --backend mlx:cpu
    """
    # These import a framework: a wrong name is reported before.
    from mlxhog.base.paths import words
    from mlxhog.checkpoint.checkpoint import locate
    from mlxhog.checkpoint.run import run_of
    from mlxhog.data import corpora
    from mlxhog.decoding.scoring import Score, held_out_tokens, score, token_files
    from mlxhog.live.opening import open_source
    from mlxhog.models.families import check_length

    path, corpus = locate(config.model, Path(config.out), config.checkpoint), None
    trained = run_of(path.resolve())  # a run's `model` is a link to one
    options = None if trained is None else train_config([trained.options(data=config.data)])
    if config.data is not None:
        found = corpora.find(config.data, config.text_key)
        corpus, _ = corpora.readable(found, strict=config.strict_data)
        for note in corpus.notes(listed_by="--json"):
            print(f"note: {note}", file=sys.stderr)
    elif options is None:
        raise ConfigError(
            f"{path} is not a checkpoint of a run, so it has no held-out text; name one with --data"
        )
    began = time.monotonic()
    root = Path(config.out)
    source, model = open_source(str(path), root=root, backend=config.backend, mode=CHECKPOINT)
    source.load(model.backend)
    seq_len = config.seq_len or (SEQ_LEN if options is None else options.seq_len)
    check_length(model.config, seq_len)
    own = None
    with (
        tempfile.TemporaryDirectory(prefix="mlxhog-eval-") as folder,
        StatusLine(sys.stderr, quiet=False) as line,
    ):

        def scored(name: str, file: TokenFile | None) -> Score:
            def show(share: float) -> None:
                line.show(f"{share:.0%}  {name}")

            return Score() if file is None else score(model, file, seq_len=seq_len, progress=show)

        if corpus is not None:
            files = token_files(model, corpus, Path(folder))
            scores = {Path(name).name: scored(Path(name).name, file) for name, file in files}
        elif options is not None and trained is not None:
            held_out = held_out_tokens(
                model,
                options.data,
                tokenizer=str(path) if options.tokenizer == "auto" else options.tokenizer,
                text_key=options.text_key,
                skip_machine_data=options.skip_machine_data,
                loss_on=options.loss_on,
                val=options.val,
            )
            name = f"{words(options.data)} (held-out text)"
            scores = {name: scored(name, held_out)}
            if (part := _own_part(trained, held_out)) is not None:
                own = _numbers(scored(name, part))
    whole = sum(scores.values(), Score())
    if not whole.tokens:
        raise DataError(f"{words(config.data)} holds no text; choose other files")
    how = {"checkpoint": str(path), "seq_len": seq_len, "backend": model.backend.name}
    rows = [{"file": name, **_numbers(score)} for name, score in scores.items()]
    facts: dict[str, Any] = {
        **how,
        "files": rows,
        "skipped": [] if corpus is None else [one.to_json() for one in corpus.skipped],
        **_numbers(whole),
        **({} if own is None else {"part": own}),
        "seconds": round(time.monotonic() - began, 3),
    }
    shown = [*rows, {"file": "whole", **_numbers(whole)}]
    shown += [] if own is None else [{"file": "its part of every evaluation", **own}]
    return Report(facts, [shown, how])


def _own_part(run: Run, file: TokenFile) -> TokenFile | None:
    """Return the part of the held-out text that evaluations of a run score; None if it is all."""
    from mlxhog.data import subset

    held_out = run.read_status().get("held_out")
    n_bytes = held_out.get("asked_bytes") if isinstance(held_out, dict) else None
    part = subset.of(file, n_bytes) if type(n_bytes) is int and n_bytes > 0 else file
    return None if part is file else part


def _numbers(score: Score) -> dict[str, Any]:
    names = ("bits_per_byte", "perplexity", "nats", "n_bytes", "tokens")
    return {name.removeprefix("n_"): getattr(score, name) for name in names}
