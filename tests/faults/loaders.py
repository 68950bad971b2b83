"""Everything that reads a file which a user or another program made, each with a small valid one.

A subject writes its files with our own writers and reads them as the program does, as far as
anything is computed from what was read. Its reader returns, or raises an `MlxhogError`.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import lzma
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from mlxhog import cli
from mlxhog.arena import layout
from mlxhog.checkpoint import checkpoint, formats, manifest
from mlxhog.checkpoint import run as runs
from mlxhog.checkpoint.formats import contents
from mlxhog.classic.loaders.pairs import load_graph, load_ratings
from mlxhog.classic.loaders.rows import load_cifar10, load_svmlight
from mlxhog.config.config import TrainConfig
from mlxhog.config.sources import read_yaml, resolve
from mlxhog.data import bpe, corpora, prepare, tokenizers
from mlxhog.data.byte_tokenizer import ByteTokenizer
from mlxhog.data.tokens import TokenFile, TokenWriter
from mlxhog.decoding.text import read_prompts
from mlxhog.errors import MlxhogError
from mlxhog.files import plain_json, tensors
from mlxhog.machine import verdicts
from mlxhog.mad.options import Protocol
from mlxhog.mad.run import Point, RunConfig
from mlxhog.mad.search.samplers import Listed
from mlxhog.mad.search.space import read_space
from mlxhog.mad.study import store, study
from mlxhog.mad.study.scheduler import Proposals
from mlxhog.mad.tasks import check, make_task
from mlxhog.mad.tasks import dataset as files
from mlxhog.models import families, registry
from mlxhog.models.mad.sequence import canonical, parse
from mlxhog.parity import cases
from mlxhog.theory.analysis import staleness, target

GOLDEN = Path(__file__).parents[1] / "golden" / "xlstm"
MAC = verdicts.Identity("Apple M4 Pro", "macos 26.1", "0.2.0", "0.32.4", "2.13.0")

LARGE = {
    "vocab_size": 320, "hidden_size": 16, "num_hidden_layers": 1, "num_heads": 2,
    "ffn_round_up_to_multiple_of": 16, "chunk_size": 8,
}  # fmt: skip
V1 = {
    "vocab_size": 320, "embedding_dim": 16, "num_blocks": 2, "context_length": 32, "slstm_at": [1],
    "mlstm_block": {"mlstm": {"num_heads": 2, "round_proj_up_to_multiple_of": 8}},
    "slstm_block": {
        "slstm": {"num_heads": 2, "bias_init": "zeros"},
        "feedforward": {"proj_factor": 1.3, "act_fn": "gelu", "round_proj_up_to_multiple_of": 8},
    },
}  # fmt: skip
MAD = {
    "version": 1,
    "model": {
        "dim": 16, "vocab_size": 320, "position": "learned", "max_length": 32,
        "defaults": {"mlstm": {"heads": 2}},
        "layers": ["mlstm", {"type": "slstm", "heads": 2}, {"repeat": 2, "layers": ["swiglu"]}],
    },
}  # fmt: skip
PRESET = {
    "version": 1,
    "model": {"dim": 16, "blocks": {"preset": "xlstm", "ratio": "1:1", "count": 2, "style": "v1"}},
}
SPACE = """space:
  depth: [2, 4]
  mixers: [{type: mh-attention, heads: [2, 4]}, mlstm]
  channels: [swiglu, mlp]
  defaults: {mlstm: {heads: 2}}
  max_count: {mh-attention: 1}
  budget: {params: 700_000, state: 16384, length: 256, rescale: false}
  start: ["mlstm swiglu mlstm swiglu"]
  dim: 16
  position: none
  suite: lite
"""
TEXTS = ["Never wait, add without a lock. ", "Zwölf Boxkämpfer jagen Viktor. ", "x = 1\n" * 20]


@dataclass(frozen=True)
class Subject:
    """A loader.

    Attributes:
        name: what it reads.
        write: makes the valid files in a folder, and returns those that are mutated.
        read: reads the folder as the program does.
        weight: its share of all mutations; less for what is slow.
    """

    name: str
    write: Callable[[Path], Iterable[Path]]
    read: Callable[[Path], object]
    weight: int = 4


def _text(name: str, content: str | bytes) -> Callable[[Path], Iterable[Path]]:
    def write(folder: Path) -> Iterable[Path]:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return [folder / name]

    return write


def _yaml(name: str, value: object) -> Callable[[Path], Iterable[Path]]:
    return _text(name, yaml.safe_dump(value, sort_keys=False))


def _json(name: str, value: object) -> Callable[[Path], Iterable[Path]]:
    return _text(name, json.dumps(value, indent=1))


# -- configurations and architectures -------------------------------------------------------------


def _read_config(folder: Path) -> None:
    resolve(TrainConfig, [read_yaml(folder / "train.yaml")])


def _architecture(name: str) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        model = registry.load_architecture(folder / name)
        families.param_count(model)
        assert all(min(spec.shape) > 0 for spec in families.param_spec(model).values())
        again = plain_json.loads(plain_json.dumps(model.to_dict()))
        assert families.read(again) == model

    return read


def _read_space(folder: Path) -> None:
    space = read_space(folder / "space.yaml")
    space.to_dict()


def _analyze(folder: Path) -> None:
    target.find_target(str(folder / "any.yaml"), [], folder)


# -- checkpoints ----------------------------------------------------------------------------------


def _params(fields: dict[str, Any]) -> tuple[Any, dict[str, NDArray[np.float32]]]:
    model = families.read(fields)
    return model, families.init_params(model, 0)


def _touch(path: Path) -> None:
    opened = formats.open(path)
    out = {name: np.empty(a.shape, np.float32) for name, a in opened.tensors.items()}
    opened.copy_into(out)
    opened.tokenizer()


def _write_hf(folder: Path) -> Iterable[Path]:
    model, params = _params(LARGE)
    tensors.write(folder / "model.safetensors", params)
    config = contents.our_config_json(model, dtype=np.dtype(np.float32)) | {"bos_token_id": 256}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    tokenizer = bpe.train(TEXTS_BYTES, 270)
    for name, content in tokenizer.files().items():
        (folder / name).write_bytes(content)
    return [folder / name for name in ("model.safetensors", "config.json", "tokenizer.json")]


def _write_shards(folder: Path) -> Iterable[Path]:
    model, params = _params(LARGE)
    names = sorted(params)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, held in parts.items():
        tensors.write(folder / file, {name: params[name] for name in held})
    weight_map = {name: file for file, held in parts.items() for name in held}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(
        json.dumps(contents.our_config_json(model, dtype=np.dtype(np.float32)))
    )
    return [index, *(folder / file for file in parts)]


def _write_torch(folder: Path) -> Iterable[Path]:
    _, params = _params(V1)
    file = folder / "model.pt"
    torch.save({"state_dict": {name: torch.from_numpy(a) for name, a in params.items()}}, file)
    (folder / "config.yaml").write_text(yaml.safe_dump(V1))
    return [file, folder / "config.yaml"]


def _write_old_torch(folder: Path) -> Iterable[Path]:
    (file, config) = _write_torch(folder)
    state = torch.load(file, weights_only=True)
    torch.save(state, file, _use_new_zipfile_serialization=False)
    return [file]


def _write_run(folder: Path) -> Iterable[Path]:
    run = runs.create(folder, "fuzz")
    model, params = _params(LARGE)
    checkpoint.save(
        run,
        step=3,
        params=params,
        model_config=model.to_dict(),
        optimizer={"m.1/x": np.arange(4, dtype=np.float32)},
        state={"version": 3, "ledger": {"epoch": 0, "done": []}, "used": {"steps": 3}},
        tokenizer=ByteTokenizer(),
    )
    run.config_path.write_text(TrainConfig(steps=3).to_yaml())
    run.write_status(
        {"status": "running", "pids": [1], "steps": 3, "gpu_write": "cpu", "kernels": "native"}
        | {"result": {"val_bits_per_byte": 2.5}, "emulated": False}
    )
    worker = {"slot": 1, "backend": "torch:cpu", "steps": 3, "dropped": 0, "mean_staleness": 0.5}
    for step in (1, 3):
        run.append_metrics(
            {"step": step, "elapsed_s": 1.0, "supervisor_pid": 7, "tokens_per_s": 10.0}
            | {"workers": [worker | {"max_staleness": 2, "staleness": {"0": 2, "1": 1}}]}
            | {"staleness": {"0": 2, "1": 1}, "lost_update_rate": None}
        )
    run.append_sample("a sample")
    other = folder / "20200101-000000-other"
    shutil.copytree(run.directory, other)
    return [
        other / name
        for name in ("run.json", "metrics.jsonl", "checkpoints/latest", "samples.txt", "lock")
        if (other / name).exists()
    ]


def _read_runs(folder: Path) -> None:
    for words in (["runs"], ["runs", "--json"]):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            code = cli.main([*words, "--out", str(folder)])
        assert code == 0, "one bad run must not break the list"
        assert out.getvalue().count("\n") >= 2
    run = runs.find("20200101-000000-other", folder)
    run.last_sample()
    run.read_status()
    for read in (lambda: staleness.of_run(run, "lossless"), lambda: checkpoint.latest(run)):
        with contextlib.suppress(MlxhogError):
            read()


def _write_checkpoint(folder: Path) -> Iterable[Path]:
    _write_run(folder)
    (path,) = folder.glob("*-fuzz/checkpoints/step-*")
    path.rename(folder / "step-00000003")
    for name in folder.glob("*-*"):
        if name.name != "step-00000003":
            shutil.rmtree(name)
    return sorted((folder / "step-00000003").iterdir())


def _read_checkpoint(folder: Path) -> None:
    checkpoint.load(folder / "step-00000003")


def _read_signed(folder: Path) -> None:
    """As if whoever changed a file had also written a manifest that fits."""
    path = folder / "step-00000003"
    state = path / manifest.NAME
    kept = state.read_bytes()
    try:
        try:
            record = json.loads(kept)
            files = {p: p.read_bytes() for p in path.iterdir() if p != state}
            for file, content in files.items():
                entry = record["files"][file.name]
                entry["bytes"], entry["sha256"] = len(content), manifest._digest(file)
            record["sha256"] = manifest._own_digest(record)
            state.write_text(json.dumps(record))
        except (ValueError, TypeError, KeyError, RecursionError, AttributeError):
            pass  # the manifest itself was changed
        checkpoint.load(path)
        checkpoint.check_architecture(checkpoint.load(path), families.read(LARGE).to_dict())
    finally:
        state.write_bytes(kept)


# -- text, tokens and tokenizers ------------------------------------------------------------------

TEXTS_BYTES = [text.encode() for text in TEXTS]
RECORDS = "".join(
    json.dumps(record) + "\n"
    for record in (
        {"text": TEXTS[0]}, {"content": TEXTS[1], "n": 1.5}, {"prompt": "a", "completion": "b"},
        {"messages": [{"role": "user", "content": "hello"}]},
    )
)  # fmt: skip


def _read_corpus(name: str) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        for _ in corpora.find(str(folder / name)).documents():
            pass

    return read


def _write_tokens(folder: Path) -> Iterable[Path]:
    with TokenWriter(folder / "t.bin", ByteTokenizer(), split="train", source="x") as writer:
        for text in TEXTS_BYTES:
            writer.add(text)
    return [folder / f"t{ending}" for ending in (".bin", ".idx", ".len", ".json")]


def _read_tokens(folder: Path) -> None:
    file = TokenFile.open(folder / "t.bin")
    if file.n_sequences(4):
        file.batch(np.array([0, file.n_sequences(4) - 1]), 4)
    file.verify()
    assert file.digest
    assert file.bos >= 0


def _write_prepared(folder: Path) -> Iterable[Path]:
    (folder / "corpus.jsonl").write_text(RECORDS * 8)
    prepare.prepare(
        str(folder / "corpus.jsonl"), cache_dir=folder / "cache", out_dir=folder / "out"
    )
    return [folder / "out" / name for name in ("prepared.json", "train.json", "val.bin")]


def _read_prepared(folder: Path) -> None:
    prepare._key_of(folder / "out")
    prepare._existing(folder / "out")


def _write_tokenizer(folder: Path) -> Iterable[Path]:
    for name, content in bpe.train(TEXTS_BYTES, 270).files().items():
        (folder / name).write_bytes(content)
    return [folder / "tokenizer.json", folder / "tokenizer_config.json"]


def _read_tokenizer(folder: Path) -> None:
    tokenizer = tokenizers.load(folder, 0)
    ids = tokenizer.encode(TEXTS_BYTES[1])
    tokenizer.decode(ids)
    tokenizer.byte_lengths()


# -- recorded cases, MAD, doctor ------------------------------------------------------------------


def _case(name: str) -> Subject:
    def write(folder: Path) -> Iterable[Path]:
        for ending in (".safetensors", ".json"):
            shutil.copy(GOLDEN / f"{name}{ending}", folder / f"case{ending}")
        return [folder / "case.safetensors", folder / "case.json"]

    def read(folder: Path) -> None:
        cases.read(folder / "case.safetensors", steps=0)

    return Subject(f"recorded case {name}", write, read, 2)


def _write_rows(folder: Path) -> Iterable[Path]:
    rows = make_task("in-context-recall", seq_len=16, vocab=8, train_rows=16, test_rows=8)
    files.write(folder / "rows.npz", rows)
    return [folder / "rows.npz"]


def _read_rows(folder: Path) -> None:
    check(files.read(folder / "rows.npz"))


def _write_study(folder: Path) -> Iterable[Path]:
    candidate = canonical(parse("gated-conv"))
    made_study = study.Study(candidates=(candidate,), suite="smoke", protocol={"steps": 2})
    held = store.create(folder, "s", made_study.to_dict())
    of_run = RunConfig(
        task="in-context-recall", settings={"vocab": 8}, layers=parse("gated-conv"), dim=8,
        protocol=Protocol(steps=2), seed=0,
    )  # fmt: skip
    one = store.Record(
        key=of_run.key(), candidate=candidate, config=of_run.to_dict(), label="baseline",
        status="done", acc_token=0.5, acc_macro=0.25, val_token=None, val_macro=None, ceiling=1.0,
        loss=1.5, steps=10, seconds=0.1, params=100, state=16, reason="", host="here",
        at="2026-01-01T00:00:00.000+00:00",
    )  # fmt: skip
    with held.lock():
        held.append(one, [Point(step=1, seconds=0.1, loss=1.0, acc_token=0.1, acc_macro=0.2)])
        held.add_proposal({"candidate": candidate})
        held.add_proposal({"candidate": candidate, "score": 0.5})
    (curve,) = (folder / "s" / "curves").iterdir()
    return [folder / "s" / n for n in ("study.yaml", "runs.jsonl", "candidates.jsonl")] + [curve]


def _read_study(folder: Path) -> None:
    held = store.find(str(folder / "s"), folder)
    errors: list[MlxhogError] = []
    for read in (
        lambda: study.read(held).measured(),
        lambda: [held.curve(one.key) for one in held.records()],
        lambda: Proposals(Listed([parse("gated-conv")]), held),
    ):
        try:
            read()
        except MlxhogError as error:
            errors.append(error)
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        cli.main(["mad", "board", str(folder / "s")])
    if errors:
        raise errors[0]


def _write_record(folder: Path) -> Iterable[Path]:
    row = {
        "writers": ["metal:mlx", "torch:cpu"], "where": "processes", "mode": "cas", "adds": 10,
        "lost": 0, "torn": 0, "adds_per_s": 1e6, "emulated": False, "naive": False,
        "kernel": "dense",
    }  # fmt: skip
    alone = row | {"writers": ["metal:mlx"] * 2, "where": "threads"}
    content = {
        "format": verdicts.FORMAT,
        "identity": asdict(MAC),
        "litmus": [row, alone, row | {"kernel": "rows"}, alone | {"kernel": "rows"}],
        "reads": [
            {"reader": "mlx:gpu", "kind": "live", "writer": "native", "samples": 5, "torn": 0}
            | {"backwards": 0, "visible_s": 0.001, "emulated": False}
        ],
        "kernels": [{"name": "x", "instance": "", "engine": "mlx", "ok": True, "emulated": False}],
        "tokens_per_s": {"mlx:gpu": 10.0},
        "tokens_per_s_metal": {"mlx:gpu": 11.0},
    }
    path = folder / MAC.file_name
    path.write_bytes(plain_json.dumps(content, indent=1))
    return [path]


def _read_record(folder: Path) -> None:
    found = verdicts.load(folder, MAC)
    for verdict in (
        found.gpu_write(["mlx:gpu", "torch:cpu"]), found.live_read("mlx:gpu"),
        found.kernels("mlx"), found.model_kernels("mlx:gpu"),
    ):  # fmt: skip
        assert isinstance(verdict.ok, bool)
        assert verdict.reason
    assert all(speed >= 0 or speed < 0 for speed in found.tokens_per_s.values())


# -- classic, the arena ---------------------------------------------------------------------------

SVM = "+1 1:0.5 3:1e-3 # c\n-1 2:-4 3:7\n+1 1:1 2:2\n" * 3
RATINGS = "user,item,rating\n1,2,3.5\n2,2,5\n3,9,1\n1,3,2\n"
PRIZE = "1:\n30,3,2005-09-06\n7,5,2005-05-13\n2:\n30,4,2005-10-19\n"
EDGES = "# a graph\n0 1 2.5\n1\t2\t1\n2 3 1\n0 3 0.5\n"


def _write_edges(folder: Path) -> Iterable[Path]:
    (folder / "edges.txt").write_text(EDGES)
    (folder / "terminals.txt").write_text("0 0\n2 1\n")
    return [folder / "edges.txt", folder / "terminals.txt"]


def _write_layout(folder: Path) -> Iterable[Path]:
    spec = families.param_spec(families.read(LARGE))
    planned = layout.plan(spec, max_workers=2, private=("m",), n_tickets=10)
    (folder / "layout.json").write_text(planned.to_json())
    return [folder / "layout.json"]


SUBJECTS = (
    Subject("train.yaml", _text("train.yaml", TrainConfig(steps=3).to_yaml()), _read_config, 6),
    Subject("xLSTM Large in YAML", _yaml("large.yaml", LARGE), _architecture("large.yaml")),
    Subject("xLSTM v1 in YAML", _yaml("v1.yaml", V1), _architecture("v1.yaml")),
    Subject("MAD in YAML", _yaml("mad.yaml", MAD), _architecture("mad.yaml"), 6),
    Subject("MAD by a preset", _yaml("mad.yaml", PRESET), _architecture("mad.yaml"), 2),
    Subject(
        "xLSTM Large in config.json",
        _json("config.json", families.read(LARGE).to_dict()),
        _architecture("config.json"),
    ),
    Subject(
        "xLSTM v1 in config.json",
        _json("config.json", families.read(V1).to_dict()),
        _architecture("config.json"),
    ),
    Subject(
        "MAD in config.json",
        _json("config.json", families.read(MAD).to_dict()),
        _architecture("config.json"),
    ),
    Subject("search space", _text("space.yaml", SPACE), _read_space, 4),
    Subject(
        "what analyze is given", _text("any.yaml", TrainConfig(steps=3).to_yaml()), _analyze, 2
    ),
    Subject("directory of transformers", _write_hf, _touch, 4),
    Subject("shards", _write_shards, _touch, 3),
    Subject("torch file", _write_torch, lambda folder: _touch(folder / "model.pt"), 4),
    Subject("old torch file", _write_old_torch, lambda folder: _touch(folder / "model.pt"), 2),
    Subject("checkpoint", _write_checkpoint, _read_checkpoint, 2),
    Subject("checkpoint with a manifest that fits", _write_checkpoint, _read_signed, 4),
    Subject("runs", _write_run, _read_runs, 4),
    Subject("study", _write_study, _read_study, 2),
    Subject("doctor's record", _write_record, _read_record, 4),
    Subject("MAD rows", _write_rows, _read_rows, 4),
    Subject("text", _text("a.txt", "".join(TEXTS)), _read_corpus("a.txt"), 1),
    Subject("JSON lines", _text("a.jsonl", RECORDS), _read_corpus("a.jsonl"), 3),
    Subject(
        "packed JSON lines",
        _text("a.jsonl.gz", gzip.compress(RECORDS.encode())),
        _read_corpus("a.jsonl.gz"),
        2,
    ),
    Subject(
        "packed text",
        _text("a.txt.xz", lzma.compress("".join(TEXTS).encode())),
        _read_corpus("a.txt.xz"),
        1,
    ),
    Subject("tokens", _write_tokens, _read_tokens, 4),
    Subject("prepared corpus", _write_prepared, _read_prepared, 2),
    Subject("tokenizer", _write_tokenizer, _read_tokenizer, 5),
    Subject(
        "prompts",
        _text("p.jsonl", '{"prompt": "a"}\n{"prompt": "b\\n"}\n'),
        lambda folder: read_prompts(str(folder / "p.jsonl")),
        1,
    ),
    *map(_case, ("hf_e_len1", "mlstm_cell_f_len1", "slstm_cell_b_init", "components")),
    Subject("svmlight", _text("a.svm", SVM), lambda folder: load_svmlight(folder / "a.svm"), 3),
    Subject("ratings", _text("a.csv", RATINGS), lambda folder: load_ratings(folder / "a.csv"), 3),
    Subject("prize", _text("a.txt", PRIZE), lambda folder: load_ratings(folder / "a.txt"), 2),
    Subject(
        "packed ratings",
        _text("a.csv.gz", gzip.compress(RATINGS.encode())),
        lambda folder: load_ratings(folder / "a.csv.gz"),
        1,
    ),
    Subject(
        "graph",
        _write_edges,
        lambda folder: load_graph(folder / "edges.txt", str(folder / "terminals.txt")),
        3,
    ),
    Subject(
        "CIFAR-10", _text("a.bin", bytes(3073 * 2)), lambda f: load_cifar10(f / "a.bin"), 1
    ),
    Subject(
        "layout of an arena",
        _write_layout,
        lambda f: layout.Layout.from_json((f / "layout.json").read_text("utf-8", "replace")),
        3,
    ),
)  # fmt: skip
