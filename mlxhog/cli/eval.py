"""`mlxhog eval`: bits per byte and perplexity of text, file by file and as a whole."""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxhog.cli.flags import RUN_HELP, Flags, RunFolder
from mlxhog.config.config import TrainConfig, train_config
from mlxhog.config.options import option
from mlxhog.errors import ConfigError, DataError
from mlxhog.live import CHECKPOINT, backend_option

if TYPE_CHECKING:
    from mlxhog.checkpoint.run import Run
    from mlxhog.data.corpora import Corpus
    from mlxhog.data.tokens import TokenFile
    from mlxhog.decoding.model import Model
    from mlxhog.decoding.scoring import Score

ABOUT = """\
Score text with a trained model: bits per byte, which can be compared between tokenizers, and
perplexity per token, which cannot. As in the evaluation of a run, the text is cut into sequences,
each without the text before it. Without --data it is all held-out text of the run, and the part of
it that the run's own evaluations score."""
EXAMPLES = (
    "eval latest",
    "eval latest --data letter.txt",
    "eval sotu --data notes/ --checkpoint best --json",
    "eval xLSTM-7b --data 'notes/*.md' --seq-len 1024 --backend mlx:cpu",
)
MODEL = "RUN_OR_CHECKPOINT"
SEQ_LEN = 512
HELD_OUT = "held-out text"


@dataclass(frozen=True, kw_only=True)
class EvalConfig(RunFolder):
    """Options of `mlxhog eval`."""

    data: str | None = option(
        None,
        "a corpus in the package, or a text file, folder or glob; a flag each for several",
        none="held-out",
        lines=True,
    )
    text_key: str | None = option(None, "for .jsonl, the key that holds the text", none="auto")
    strict_data: bool = option(
        False,
        "refuse damaged, unreadable or empty files of a folder or glob; by default they are "
        "skipped",
    )
    checkpoint: str = option(
        "latest", "of the run: latest, best, or the name of a folder in its checkpoints"
    )
    seq_len: int | None = option(
        None,
        f"length of a sequence; auto is that of the run's training, else {SEQ_LEN}",
        unit="tokens",
        low=2,
        none="auto",
    )
    backend: str = backend_option()


def run(arguments: list[str]) -> int:
    """Run the command; returns its exit code."""
    flags = Flags("eval", ABOUT, EXAMPLES, (MODEL,))
    flags.argument("model", metavar=MODEL, help=RUN_HELP)
    flags.plugin()
    flags.argument("--json", action="store_true", help="one JSON object instead of a table")
    parsed, config = flags.read(EvalConfig, arguments)
    # These import a framework: a wrong name is reported before.
    from mlxhog.checkpoint.checkpoint import locate
    from mlxhog.checkpoint.run import run_of
    from mlxhog.data import corpora, encodings
    from mlxhog.decoding.scoring import Score
    from mlxhog.live.opening import open_source
    from mlxhog.models.families import check_length
    from mlxhog.report.views import StatusLine

    chosen = "checkpoint" in parsed.values
    path = locate(parsed.other.model, Path(config.out), config.checkpoint if chosen else None)
    trained = run_of(path.resolve())  # a run's `model` is a link to one
    options = None if trained is None else _options(trained, config.data)
    if config.data is None and options is None:
        raise ConfigError(
            f"{path} is not a checkpoint of a run, so it has no held-out text; name one with --data"
        )
    corpus = None
    if config.data is not None:
        corpus = corpora.readable(config.data, config.text_key, strict=config.strict_data)
        for note in corpus.notes(listed_by="--json"):
            print(f"note: {note}", file=sys.stderr)
    began = time.monotonic()
    source, model = open_source(
        str(path),
        root=Path(config.out),
        backend=config.backend,
        mode=CHECKPOINT,
    )
    source.load(model.backend)
    seq_len = config.seq_len or (SEQ_LEN if options is None else options.seq_len)
    check_length(model.config, seq_len)
    scores: dict[str, Score] = {}
    with (
        tempfile.TemporaryDirectory(prefix="mlxhog-eval-") as folder,
        StatusLine(sys.stderr, quiet=False) as line,
    ):
        for name, file in _files(config, corpus, options, model, path, Path(folder)):
            scores[name] = _score(model, name, file, seq_len, line.show)
        part = None
        if corpus is None and trained is not None and (own := _own_part(trained, file)) is not None:
            part = _score(model, name, own, seq_len, line.show)
    whole = sum(scores.values(), Score())
    if not whole.tokens:
        raise DataError(f"{encodings.words(config.data)} holds no text; choose other files")
    record = {
        "checkpoint": str(path),
        "seq_len": seq_len,
        "backend": model.backend.name,
        "files": [{"file": name, **_numbers(score)} for name, score in scores.items()],
        "skipped": [] if corpus is None else [one.to_json() for one in corpus.skipped],
        **_numbers(whole),
        **({} if part is None else {"part": _numbers(part)}),
        "seconds": round(time.monotonic() - began, 3),
    }
    print(json.dumps(record) if parsed.other.json else _table(record, scores, whole, part))
    return 0


def _own_part(run: "Run", file: "TokenFile | None") -> "TokenFile | None":
    """Return the part of the held-out text that evaluations of a run score; None if it is all."""
    from mlxhog.data import subset

    held_out = run.read_status().get("held_out")
    n_bytes = held_out.get("asked_bytes") if isinstance(held_out, dict) else None
    if file is None or type(n_bytes) is not int or n_bytes <= 0:
        return None
    part = subset.of(file, n_bytes)
    return None if part is file else part


def _options(run: "Run", data: str | None) -> TrainConfig:
    """Return the options of a run, with the place of its text unless another text is named."""
    return train_config([run.options(data=data)])


def _files(
    config: EvalConfig,
    corpus: "Corpus | None",
    options: TrainConfig | None,
    model: "Model",
    path: Path,
    folder: Path,
) -> "Iterator[tuple[str, TokenFile | None]]":
    """Yield the name and the tokens of each file; None for a file without text."""
    from mlxhog.data import encodings
    from mlxhog.decoding.scoring import held_out_tokens, token_files

    if corpus is None:
        assert options is not None  # `run` has refused it
        own = str(path) if options.tokenizer == "auto" else options.tokenizer
        tokens = held_out_tokens(
            model,
            options.data,
            tokenizer=own,
            text_key=options.text_key,
            skip_machine_data=options.skip_machine_data,
            loss_on=options.loss_on,
            val=options.val,
        )
        yield f"{encodings.words(options.data)} ({HELD_OUT})", tokens
        return
    yield from token_files(model, corpus, config.text_key, folder)


def _score(model: "Model", name: str, file: "TokenFile | None", seq_len: int, show: Any) -> "Score":
    from mlxhog.decoding.scoring import Score, score

    if file is None:
        return Score()
    file_name = Path(name).name
    return score(
        model, file, seq_len=seq_len, progress=lambda part: show(f"{part:.0%}  {file_name}")
    )


def _numbers(score: "Score") -> dict[str, float | int | None]:
    return {
        "bits_per_byte": score.bits_per_byte,
        "perplexity": score.perplexity,
        "nats": score.nats,
        "bytes": score.n_bytes,
        "tokens": score.tokens,
    }


def _table(
    record: dict[str, Any], scores: "dict[str, Score]", whole: "Score", part: "Score | None"
) -> str:
    """Return the table of the files with text and their sum, with checkpoint and backend."""
    from mlxhog.report.table import aligned, cut_path

    header = ("file", "bits/byte", "perplexity", "bytes", "tokens")
    many = {"whole": whole} if len(scores) > 1 else {}
    if part is not None:
        many["its part of every evaluation"] = part
    rows = [
        (
            cut_path(name, 36),
            "-" if score.bits_per_byte is None else f"{score.bits_per_byte:.3f}",
            "-" if score.perplexity is None else f"{score.perplexity:.4g}",
            f"{score.n_bytes:,}",
            f"{score.tokens:,}",
        )
        for name, score in (*scores.items(), *many.items())
    ]
    read = f"read in sequences of {record['seq_len']} tokens by {record['backend']}"
    return "\n".join([*aligned(header, rows), f"{record['checkpoint']}, {read}"])
