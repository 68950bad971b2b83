"""Everything that reads a file which a user or another program made, each with a small valid one.

Readers of models and checkpoints stand in `checkpoint_loaders`. What only mlxhog writes, such as
runs, studies and records, is read by one typed reader (`tests/base/test_typed.py`).
A subject writes its files with our own writers and reads them as the program does, as far as
anything is computed from what was read. Its reader returns, or raises an `MlxhogError`.
"""

import gzip
import lzma

import numpy as np

from mlxhog.base import plain_json, verdicts
from mlxhog.classic.loaders import load_graph, load_ratings, load_svmlight
from mlxhog.cli.generate import read_prompts
from mlxhog.config.config import TrainConfig
from mlxhog.config.sources import read_yaml, resolve
from mlxhog.data import bpe, corpora, tokenizers
from mlxhog.data.examples import Example
from mlxhog.data.tokenizers import ByteTokenizer
from mlxhog.data.tokens import TokenFile, TokenWriter
from mlxhog.mad.search.space import read_space
from mlxhog.mad.tasks import check, make_task
from mlxhog.mad.tasks import dataset as files
from mlxhog.models import families, registry
from mlxhog.theory import target
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


def _write_tokenizer(folder):
    for name, content in bpe.train_bpe(TEXTS_BYTES, 270).files().items():
        (folder / name).write_bytes(content)
    return [folder / "tokenizer.json", folder / "tokenizer_config.json"]


def _read_tokenizer(folder):
    tokenizer = tokenizers.load(folder, 0)
    ids = tokenizer.encode(TEXTS_BYTES[1])
    tokenizer.decode(ids)
    tokenizer.byte_lengths()


# -- MAD ------------------------------------------------------------------


def _write_rows(folder):
    rows = make_task("in-context-recall", seq_len=16, vocab=8, train_rows=16, test_rows=8)
    files.write(folder / "rows.npz", rows)
    return [folder / "rows.npz"]


# -- classic ---------------------------------------------------------------------------

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
    Subject("MAD rows", _write_rows, lambda f: check(files.read(f / "rows.npz")), 4),
    *_corpora(),
    Subject("a folder", text_file("a", "".join(TEXTS)),
            lambda f: list(corpora.readable(str(f)).documents()), 1),
    Subject("tokens", _write_tokens, _read_tokens, 4),
    Subject("tokens of examples", _write_examples, _read_tokens, 4),
    Subject("tokenizer", _write_tokenizer, _read_tokenizer, 5),
    Subject("prompts", text_file("p.jsonl", PROMPTS),
            lambda f: read_prompts(str(f / "p.jsonl")), 1),
    Subject("conversations", text_file("a.jsonl", TALK),
            lambda f: (_read_corpus("a.jsonl")(f), read_prompts(str(f / "a.jsonl"))), 1),
    Subject("svmlight", text_file("a.svm", SVM), lambda f: load_svmlight(f / "a.svm"), 3),
    Subject("ratings", text_file("a.csv", RATINGS), lambda f: load_ratings(f / "a.csv"), 3),
    Subject("packed ratings", text_file("a.csv.gz", PACKED),
            lambda f: load_ratings(f / "a.csv.gz"), 1),
    Subject("graph", _write_edges,
            lambda f: load_graph(f / "edges.txt", str(f / "terminals.txt")), 3),
)  # fmt: skip
