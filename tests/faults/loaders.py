"""Everything that reads a file which a user or another program made, each with a small valid one.

What only mlxhog writes, such as runs, checkpoints and records, has digests or is read by one typed
reader (`tests/checkpoint/test_damage.py`, `tests/base/test_typed.py`). A subject writes its files
with our own writers and reads them as the program does, as far as anything is computed from what
was read. Its reader returns, or raises an `MlxhogError`.
"""

import gzip
import json
from typing import NamedTuple

import numpy as np
import torch
import yaml

from mlxhog.base import plain_json, tensors
from mlxhog.checkpoint import formats
from mlxhog.checkpoint.formats import contents
from mlxhog.classic.loaders import load_graph, load_ratings, load_svmlight
from mlxhog.cli.generate import read_prompts
from mlxhog.config.config import TrainConfig
from mlxhog.config.sources import read_yaml, resolve
from mlxhog.data import corpora, tokenizers
from mlxhog.mad.search.space import read_space
from mlxhog.models import families, registry
from tests.data.token_files import documents_of

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
    "dim": 16, "vocab_size": 320, "position": "learned", "max_length": 32,
    "layers": ["mlstm(h2)", {"type": "slstm", "heads": 2}, "swiglu*2"],
}  # fmt: skip
SPACE = """space:
  depth: [2, 4]
  mixers: [mh-attention(h2), {type: mh-attention, heads: 4}, mlstm]
  channels: [swiglu, mlp]
  defaults: {mlstm: {heads: 2}}
  max_count: {mh-attention: 1}
  budget: {params: 700_000, state: 16384, length: 256}
  start: ["mlstm swiglu mlstm swiglu"]
  dim: 16
  position: none
  suite: lite
"""
TEXTS = ["Never wait, add without a lock. ", "Zwölf Boxkämpfer jagen Viktor. ", "x = 1\n" * 20]


TEXTS_BYTES = [text.encode() for text in TEXTS]
RECORDS = "".join(
    json.dumps(record) + "\n"
    for record in (
        {"text": TEXTS[0]}, {"content": TEXTS[1], "n": 1.5}, {"prompt": "a", "completion": "b"},
        {"messages": [{"role": r, "content": "hello"} for r in ("user", "assistant")]},
    )
)  # fmt: skip


class Subject(NamedTuple):
    """A loader.

    Attributes:
        name: what it reads.
        write: makes the valid files in a folder, and returns those that are mutated.
        read: reads the folder as the program does.
        weight: its share of all mutations; less for what is slow.
    """

    name: str
    write: object
    read: object
    weight: int = 4


def text_file(name, content):
    def write(folder):
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return [folder / name]

    return write


def yaml_file(name, value):
    return text_file(name, yaml.safe_dump(value, sort_keys=False))


def json_file(name, value):
    return text_file(name, json.dumps(value, indent=1))


# -- checkpoints -----------------------------------------------------------------------------------


def _params(fields):
    model = families.read(fields)
    return model, families.init_params(model, 0)


def _touch(path):
    opened = formats.open(path)
    out = {name: np.empty(a.shape, np.float32) for name, a in opened.tensors.items()}
    opened.copy_into(out)
    opened.tokenizer()


def _write_hf(folder):
    model, params = _params(LARGE)
    tensors.write(folder / "model.safetensors", params)
    config = contents.our_config_json(model, dtype=np.dtype(np.float32)) | {"bos_token_id": 256}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    tokenizer = tokenizers.train_bpe(TEXTS_BYTES, 270)
    for name, content in tokenizer.files().items():
        (folder / name).write_bytes(content)
    return [folder / name for name in ("model.safetensors", "config.json", "tokenizer.json")]


def _write_shards(folder):
    model, params = _params(LARGE)
    names = sorted(params)
    files = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, own in files.items():
        tensors.write(folder / file, {name: params[name] for name in own})
    weight_map = {name: file for file, own in files.items() for name in own}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(
        json.dumps(contents.our_config_json(model, dtype=np.dtype(np.float32)))
    )
    return [index, *(folder / file for file in files)]


def _write_torch(folder):
    _, params = _params(V1)
    file = folder / "model.pt"
    torch.save({"state_dict": {name: torch.from_numpy(a) for name, a in params.items()}}, file)
    (folder / "config.yaml").write_text(yaml.safe_dump(V1))
    return [file, folder / "config.yaml"]


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


# -- text, tokens and tokenizers ------------------------------------------------------------------


def _read_corpus(name):
    def read(folder):
        documents_of(corpora.find(str(folder / name)))

    return read


def _write_tokenizer(folder):
    for name, content in tokenizers.train_bpe(TEXTS_BYTES, 270).files().items():
        (folder / name).write_bytes(content)
    return [folder / "tokenizer.json", folder / "tokenizer_config.json"]


def _read_tokenizer(folder):
    tokenizer = tokenizers.load(folder, 0)
    ids = tokenizer.encode(TEXTS_BYTES[1])
    tokenizer.decode(ids)
    tokenizer.byte_lengths()


# -- classic ---------------------------------------------------------------------------

TALK = "".join(
    json.dumps({"messages": messages}) + "\n"
    for messages in (
        [{"role": "system", "content": "a"},
         {"role": "user", "content": [{"type": "text", "text": "b"}]},
         {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
         {"role": "tool", "content": "c"}, {"role": "assistant", "refusal": "d"}],
        [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}],
    )
)  # fmt: skip
SVM = "+1 1:0.5 3:1e-3 # c\n-1 2:-4 3:7\n+1 1:1 2:2\n" * 3
RATINGS = "user,item,rating\n1,2,3.5\n2,2,5\n3,9,1\n1,3,2\n"
EDGES = "# a graph\n0 1 2.5\n1\t2\t1\n2 3 1\n0 3 0.5\n"


def _write_edges(folder):
    (folder / "edges.txt").write_text(EDGES)
    (folder / "terminals.txt").write_text("0 0\n2 1\n")
    return [folder / "edges.txt", folder / "terminals.txt"]


def _architectures():
    for name, fields in (("xLSTM Large", LARGE), ("xLSTM v1", V1), ("MAD", MAD)):
        weight = 6 if fields is MAD else 4
        own = families.read(fields).to_dict()
        yaml, json = yaml_file("a.yaml", fields), json_file("config.json", own)
        yield Subject(f"{name} in YAML", yaml, _architecture("a.yaml"), weight)
        yield Subject(f"{name} in config.json", json, _architecture("config.json"))


LISTED = f"[{','.join(RECORDS.splitlines())}]"
PACKED = gzip.compress(RECORDS.encode())
SUBJECTS = (
    Subject("train.yaml", text_file("train.yaml", TrainConfig(steps=3).to_yaml()), _read_config, 6),
    *_architectures(),
    Subject("search space", text_file("space.yaml", SPACE),
            lambda f: read_space(f / "space.yaml"), 4),
    Subject("directory of transformers", _write_hf, _touch, 4),
    Subject("shards", _write_shards, _touch, 3),
    Subject("torch file", _write_torch, lambda f: _touch(f / "model.pt"), 4),
    Subject("text", text_file("a.txt", "".join(TEXTS)), _read_corpus("a.txt"), 2),
    Subject("JSON lines", text_file("a.jsonl", RECORDS), _read_corpus("a.jsonl"), 3),
    Subject("JSON list", text_file("a.json", LISTED), _read_corpus("a.json"), 1),
    Subject("packed JSON lines", text_file("a.jsonl.gz", PACKED), _read_corpus("a.jsonl.gz"), 2),
    Subject("tokenizer", _write_tokenizer, _read_tokenizer, 5),
    Subject("conversations", text_file("a.jsonl", TALK),
            lambda f: (_read_corpus("a.jsonl")(f), read_prompts(str(f / "a.jsonl"))), 2),
    Subject("svmlight", text_file("a.svm", SVM), lambda f: load_svmlight(f / "a.svm"), 3),
    Subject("ratings", text_file("a.csv", RATINGS), lambda f: load_ratings(f / "a.csv"), 3),
    Subject("graph", _write_edges,
            lambda f: load_graph(f / "edges.txt", str(f / "terminals.txt")), 3),
)  # fmt: skip
