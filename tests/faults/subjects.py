"""What is mutated: a loader with its small valid files, and the contents of such files."""

import json
from typing import NamedTuple

import yaml

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
SPACE = """space:
  depth: [2, 4]
  mixers: [{type: mh-attention, heads: [2, 4]}, mlstm]
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
