"""Everything that reads a file which a user or another program made, each with a small valid one.

Readers of models, checkpoints and runs stand in `checkpoint_loaders`.
A subject writes its files with our own writers and reads them as the program does, as far as
anything is computed from what was read. Its reader returns, or raises an `MlxhogError`.
"""

import contextlib
import gzip
import io
import lzma
from dataclasses import asdict

import numpy as np

from mlxhog import cli
from mlxhog.arena import Arena, event_log
from mlxhog.arena.ledger import Ledger
from mlxhog.base import plain_json, verdicts
from mlxhog.checkpoint.run import Run
from mlxhog.classic.loaders import load_graph, load_ratings, load_svmlight
from mlxhog.cli.generate import read_prompts
from mlxhog.config.config import TrainConfig
from mlxhog.config.sources import read_yaml, resolve
from mlxhog.data import bpe, corpora, prepare, tokenizers
from mlxhog.data.examples import Example
from mlxhog.data.tokenizers import ByteTokenizer
from mlxhog.data.tokens import TokenFile, TokenWriter
from mlxhog.errors import MlxhogError
from mlxhog.mad.options import Protocol
from mlxhog.mad.run import Point, RunConfig
from mlxhog.mad.search.space import read_space
from mlxhog.mad.study import store, study
from mlxhog.mad.tasks import check, make_task
from mlxhog.mad.tasks import dataset as files
from mlxhog.models import families, registry
from mlxhog.models.mad.sequence import canonical, parse
from mlxhog.strategies import access_order
from mlxhog.theory import target
from mlxhog.training import replay, state
from mlxhog.training.plan import make_plan
from tests.faults import checkpoint_loaders
from tests.faults.subjects import (
    LARGE,
    MAD,
    RECORDS,
    SPACE,
    TEXTS,
    TEXTS_BYTES,
    V1,
    Subject,
    json_file,
    text_file,
    yaml_file,
)  # fmt: skip
from tests.training.small import small_config

MAC = verdicts.Identity("Apple M4 Pro", "macos 26.1", "0.2.0", "0.32.4", "2.13.0")

# -- configurations and architectures -------------------------------------------------------------


def _read_config(folder):
    resolve(TrainConfig, [read_yaml(folder / "train.yaml")])


def _architecture(name):
    def read(folder):
        model = registry.load_architecture(folder / name)
        families.param_count(model)
        assert all(min(spec.shape) > 0 for spec in families.param_spec(model).values())
        again = plain_json.loads(plain_json.dumps(model.to_dict()))
        assert families.read(again) == model

    return read


def _read_space(folder):
    space = read_space(folder / "space.yaml")
    space.to_dict()


def _analyze(folder):
    target.find_target(str(folder / "any.yaml"), {}, folder)


# -- text, tokens and tokenizers ------------------------------------------------------------------


def _read_corpus(name):
    def read(folder):
        for _ in corpora.find(str(folder / name)).documents():
            pass

    return read


def _write_tokens(folder, *examples):
    with TokenWriter(folder / "t.bin", ByteTokenizer(), split="train", source="x") as writer:
        for text in (*TEXTS_BYTES, *examples):
            writer.add(text)
    return sorted(folder.glob("t.*"))


def _write_examples(folder):
    return _write_tokens(folder, Example(b"2+2=", b"4"), Example(b"a ", b"b", b" c ", b"d"))


def _read_tokens(folder):
    file = TokenFile.open(folder / "t.bin")
    if file.n_sequences(4):
        file.batch(np.array([0, file.n_sequences(4) - 1]), 4)
    assert file.digest
    assert file.bos >= 0


def _write_prepared(folder):
    (folder / "corpus.jsonl").write_text(RECORDS * 8)
    prepared = prepare.prepare(str(folder / "corpus.jsonl"), cache_dir=folder / "cache")
    prepared.train.parent.rename(folder / "out")
    return [folder / "out" / name for name in ("prepared.json", "train.json", "val.bin")]


def _read_prepared(folder):
    prepare._record_of(folder / "out")
    prepare._existing(folder / "out", corpora.find("sotu"), "bytes", prepare._Scan(), "tail")


def _write_tokenizer(folder):
    for name, content in bpe.train_bpe(TEXTS_BYTES, 270).files().items():
        (folder / name).write_bytes(content)
    return [folder / "tokenizer.json", folder / "tokenizer_config.json"]


def _read_tokenizer(folder):
    tokenizer = tokenizers.load(folder, 0)
    ids = tokenizer.encode(TEXTS_BYTES[1])
    tokenizer.decode(ids)
    tokenizer.byte_lengths()


# -- MAD, doctor ------------------------------------------------------------------


def _write_rows(folder):
    rows = make_task("in-context-recall", seq_len=16, vocab=8, train_rows=16, test_rows=8)
    files.write(folder / "rows.npz", rows)
    return [folder / "rows.npz"]


def _write_recording(folder):
    """The record of a run of two workers, one of which died, without anything trained."""
    config = small_config(folder, workers="torch:cpu*2", determinism="record", optimizer="muon")
    plan, run = make_plan(config), Run(folder)
    with Arena.create(plan.layout) as arena:
        state.load(plan, arena, Ledger(arena))
        replay.begin_record(plan, folder, arena)
        numbers = event_log.Numbers(0, 1, 3, 2, 1.0, 1, 1, 0.1, 1.0)
        accesses = np.arange(20, dtype=np.uint32)
        sums = access_order.stripe_sums(arena)
        records = (
            event_log.Begin("torch:cpu", 1, "native"),
            event_log.Step(numbers, True, accesses, sums, bytes(32)),
            event_log.Torn(numbers, True, True, accesses, bytes(64), bytes(64)),
            event_log.Begin("torch:cpu", 1, "native"),
            event_log.Step(numbers, False, accesses, sums),
            event_log.Died(),
        )
        for slot in (1, 2):
            for record in records:
                event_log.append(event_log.worker_path(folder, slot), record)
        replay.end_record(folder, arena, print)
    replay.read(run)
    folder = folder / event_log.FOLDER
    return [*(folder / f"{n}.json" for n in ("header", "end")), *sorted(folder.glob("*.log"))]


def write_study(folder):
    candidate = canonical(parse("gated-conv"))
    new_study = study.Study(candidates=(candidate,), suite="smoke", protocol={"steps": 2})
    stored = store.create(folder, "s", new_study.to_dict())
    of_run = RunConfig(
        task="in-context-recall", settings={"vocab": 8}, layers=parse("gated-conv"), dim=8,
        protocol=Protocol(steps=2), seed=0,
    )  # fmt: skip
    one = store.StudyRecord(
        key=of_run.key(), candidate=candidate, config=of_run.to_dict(), label="baseline",
        status="done", acc_token=0.5, acc_macro=0.25, val_token=None, val_macro=None, ceiling=1.0,
        loss=1.5, steps=10, seconds=0.1, params=100, state=16, reason="", host="here",
        at="2026-01-01T00:00:00.000+00:00",
    )  # fmt: skip
    with stored.lock():
        stored.append(one, [Point(step=1, seconds=0.1, loss=1.0, acc_token=0.1, acc_macro=0.2)])
        stored.add_proposal(candidate)
        stored.add_proposal(candidate, 0.5)
    (curve,) = (folder / "s" / "curves").iterdir()
    return [folder / "s" / n for n in ("study.yaml", "runs.jsonl", "candidates.jsonl")] + [curve]


def _read_study(folder):
    stored = store.find(str(folder / "s"), folder)
    errors = []
    for read in (
        lambda: study.read(stored).measured(),
        lambda: [stored.curve(one.key) for one in stored.records()],
        stored.proposals,
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


def write_record(folder):
    row = {
        "writers": ["metal:mlx", "native"], "where": "processes", "mode": "cas", "adds": 10,
        "lost": 0, "torn": 0, "adds_per_s": 1e6, "kernel": "dense",
    }  # fmt: skip
    alone = row | {"writers": ["metal:mlx"] * 2, "where": "threads"}
    content = {
        "format": verdicts.FORMAT,
        "identity": asdict(MAC),
        "litmus": [row, alone, row | {"kernel": "rows"}, alone | {"kernel": "rows"}],
        "reads": [
            {"reader": "mlx:gpu", "kind": "live", "writer": "native", "samples": 5, "torn": 0}
            | {"backwards": 0, "visible_s": 0.001}
        ],
        "kernels": [{"name": "x", "instance": "", "engine": "mlx", "ok": True}],
        "tokens_per_s": {"mlx:gpu": 10.0},
        "tokens_per_s_metal": {"mlx:gpu": 11.0},
    }
    path = folder / MAC.file_name
    path.write_bytes(plain_json.dumps(content, indent=1))
    return [path]


def _read_record(folder):
    record = verdicts.load(folder, MAC)
    for verdict in (
        record.gpu_write(["mlx:gpu", "torch:cpu"]), record.live_read("mlx:gpu"),
        record.kernels("mlx"), record.model_kernels("mlx:gpu"),
    ):  # fmt: skip
        assert isinstance(verdict.ok, bool)
        assert verdict.reason
    assert all(speed >= 0 or speed < 0 for speed in record.tokens_per_s.values())


# -- classic, the arena ---------------------------------------------------------------------------

TALK = "".join(
    plain_json.dumps({"messages": messages}).decode() + "\n"
    for messages in [
        [
            {"role": "system", "content": "a"},
            {"role": "user", "content": [{"type": "text", "text": "b"}]},
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
            {"role": "tool", "content": "c"},
            {"role": "assistant", "refusal": "d"},
        ],
        [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}],
    ]
)
SVM = "+1 1:0.5 3:1e-3 # c\n-1 2:-4 3:7\n+1 1:1 2:2\n" * 3
RATINGS = "user,item,rating\n1,2,3.5\n2,2,5\n3,9,1\n1,3,2\n"
PRIZE = "1:\n30,3,2005-09-06\n7,5,2005-05-13\n2:\n30,4,2005-10-19\n"
EDGES = "# a graph\n0 1 2.5\n1\t2\t1\n2 3 1\n0 3 0.5\n"


def _write_edges(folder):
    (folder / "edges.txt").write_text(EDGES)
    (folder / "terminals.txt").write_text("0 0\n2 1\n")
    return [folder / "edges.txt", folder / "terminals.txt"]


def _corpora():
    """Texts in every form in which a corpus may lie in a file."""
    text, listed = "".join(TEXTS), f"[{','.join(RECORDS.splitlines())}]"
    for name, file, content, weight in (
        ("text", "a.txt", text, 1),
        ("text with a mark", "a.txt", text.encode("utf-8-sig"), 1),
        ("JSON lines", "a.jsonl", RECORDS, 3),
        ("JSON list", "a.json", listed, 1),
        ("packed JSON lines", "a.jsonl.gz", gzip.compress(RECORDS.encode()), 2),
        ("packed text", "a.txt.xz", lzma.compress(text.encode()), 1),
    ):
        yield Subject(name, text_file(file, content), _read_corpus(file), weight)


def _architectures():
    for name, fields in (("xLSTM Large", LARGE), ("xLSTM v1", V1), ("MAD", MAD)):
        weight = 6 if fields is MAD else 4
        own = families.read(fields).to_dict()
        yaml, json = yaml_file("a.yaml", fields), json_file("config.json", own)
        yield Subject(f"{name} in YAML", yaml, _architecture("a.yaml"), weight)
        yield Subject(f"{name} in config.json", json, _architecture("config.json"))


CONFIG = TrainConfig(steps=3).to_yaml()
PROMPTS = '{"prompt": "a"}\n{"prompt": "b\\n"}\n'
PACKED = gzip.compress(RATINGS.encode())
SUBJECTS = (
    Subject("train.yaml", text_file("train.yaml", CONFIG), _read_config, 6),
    *_architectures(),
    Subject("search space", text_file("space.yaml", SPACE), _read_space, 4),
    Subject("what analyze is given", text_file("any.yaml", CONFIG), _analyze, 2),
    *checkpoint_loaders.SUBJECTS,
    Subject("study", write_study, _read_study, 2),
    Subject("doctor's record", write_record, _read_record, 4),
    Subject("MAD rows", _write_rows, lambda f: check(files.read(f / "rows.npz")), 4),
    *_corpora(),
    Subject("a folder", text_file("a", "".join(TEXTS)),
            lambda f: list(corpora.readable(str(f)).documents()), 1),
    Subject("tokens", _write_tokens, _read_tokens, 4),
    Subject("tokens of examples", _write_examples, _read_tokens, 4),
    Subject("prepared corpus", _write_prepared, _read_prepared, 2),
    Subject("recorded run", _write_recording, lambda f: replay.read(Run(f), anyway=True), 6),
    Subject("tokenizer", _write_tokenizer, _read_tokenizer, 5),
    Subject("prompts", text_file("p.jsonl", PROMPTS),
            lambda f: read_prompts(str(f / "p.jsonl")), 1),
    Subject("conversations", text_file("a.jsonl", TALK),
            lambda f: (_read_corpus("a.jsonl")(f), read_prompts(str(f / "a.jsonl"))), 1),
    Subject("svmlight", text_file("a.svm", SVM), lambda f: load_svmlight(f / "a.svm"), 3),
    Subject("ratings", text_file("a.csv", RATINGS), lambda f: load_ratings(f / "a.csv"), 3),
    Subject("prize", text_file("a.txt", PRIZE), lambda f: load_ratings(f / "a.txt"), 2),
    Subject("packed ratings", text_file("a.csv.gz", PACKED),
            lambda f: load_ratings(f / "a.csv.gz"), 1),
    Subject("graph", _write_edges,
            lambda f: load_graph(f / "edges.txt", str(f / "terminals.txt")), 3),
)  # fmt: skip
