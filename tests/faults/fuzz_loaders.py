"""Give every loader mutated files, and say where one raised something else than our errors.

    python -m tests.faults.fuzz_loaders --mutations 100000 --seed 7

A loader reads a file that a user or another program made; what only mlxhog writes has digests or is
read by one typed reader (`tests/base/test_typed.py`). A subject has small valid files, and reads
them as the program does, as far as anything is computed from what was read.

Mutation `n` of a subject is a function of the seed, the subject's name and `n`. The process bounds
its own memory and the time of one case, so run it as a child: what crashes it names the case.
"""

import argparse
import faulthandler
import gzip
import io
import json
import signal
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
import safetensors.numpy
import torch
import yaml

from mlxhog.base import plain_json
from mlxhog.checkpoint import formats
from mlxhog.checkpoint.formats import contents
from mlxhog.cli.generate import read_prompts
from mlxhog.config.config import TrainConfig
from mlxhog.config.sources import read_yaml, resolve
from mlxhog.data import corpora, tokenizers
from mlxhog.errors import MAX_CHARACTERS, MlxhogError
from mlxhog.mad.samplers.space import read_space
from mlxhog.models import families, registry
from mlxhog.research.classic.loaders import load_graph, load_ratings, load_svmlight
from tests.data.test_conversations import TALKS
from tests.data.token_files import documents_of
from tests.faults.mutations import mutate
from tests.processes import limit_memory

CASE_S = 10
"""Seconds of the processor for one case; the slowest takes less than one."""
ROOM_BYTES = 3 << 30
"""Memory beside what the process has when it begins."""

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
TEXTS = ["Never wait, add without a lock. ", "Zwölf Boxkämpfer jagen Viktor. ", "x = 1\n" * 20]
SPACE = Path(registry.__file__).parent / "space-xlstm.yaml"
RECORDS = [
    {"text": TEXTS[0]}, {"content": TEXTS[1], "n": 1.5}, {"prompt": "a", "completion": "b"},
    {"messages": [{"role": r, "content": "hello"} for r in ("user", "assistant")]},
]  # fmt: skip
TALK = [
    *({"messages": talk} for talk in TALKS),
    {"messages": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
]


class Subject(NamedTuple):
    """A loader: `files()` are its valid files by name, and `weight` its share of all mutations."""

    name: str
    files: object
    read: object
    weight: int = 4


def lines(records):
    return "".join(json.dumps(record) + "\n" for record in records)


def parameters(fields):
    return families.init_params(families.read(fields), 0)


def large_config():
    own = contents.our_config_json(families.read(LARGE), dtype=np.dtype(np.float32))
    return json.dumps(own | {"bos_token_id": 256}, indent=1)


def learned():
    files = tokenizers.train_bpe([text.encode() for text in TEXTS], 270).files()
    return {name: files[name] for name in ("tokenizer.json", "tokenizer_config.json")}


def transformers_files():
    tensors = safetensors.numpy.save(parameters(LARGE))
    return {"model.safetensors": tensors, "config.json": large_config(), **learned()}


def shards():
    params, names = parameters(LARGE), sorted(parameters(LARGE))
    files = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    weight_map = {name: file for file, own in files.items() for name in own}
    parts = {
        file: safetensors.numpy.save({name: params[name] for name in own})
        for file, own in files.items()
    }
    index = json.dumps({"metadata": {}, "weight_map": weight_map})
    return {"model.safetensors.index.json": index, "config.json": large_config(), **parts}


def torch_files():
    file, arrays = io.BytesIO(), parameters(V1)
    torch.save({"state_dict": {name: torch.from_numpy(a) for name, a in arrays.items()}}, file)
    return {"model.pt": file.getvalue(), "config.yaml": yaml.safe_dump(V1)}


def opened(path):
    checkpoint = formats.open(path)
    checkpoint.copy_into({n: np.empty(a.shape, np.float32) for n, a in checkpoint.tensors.items()})
    checkpoint.tokenizer()


def architecture(path):
    model = registry.load_architecture(path)
    families.param_count(model)
    assert all(min(spec.shape) > 0 for spec in families.param_spec(model).values())
    assert families.read(plain_json.loads(plain_json.dumps(model.to_dict()))) == model


def corpus(path):
    documents_of(corpora.find(str(path)))


def tokenizer(path):
    loaded = tokenizers.load(path.parent, 0)
    loaded.decode(loaded.encode(TEXTS[1].encode()))
    loaded.byte_lengths()


def of_file(name, file, content, read, weight=4):
    """A subject of one file."""
    return Subject(name, lambda: {file: content}, lambda folder: read(folder / file), weight)


def architectures():
    for name, fields in (("xLSTM Large", LARGE), ("xLSTM v1", V1), ("MAD", MAD)):
        text = yaml.safe_dump(fields, sort_keys=False)
        own = json.dumps(families.read(fields).to_dict(), indent=1)
        yield of_file(f"{name} in YAML", "a.yaml", text, architecture, 6 if fields is MAD else 4)
        yield of_file(f"{name} in config.json", "config.json", own, architecture)


SUBJECTS = (
    of_file("train.yaml", "train.yaml", TrainConfig(steps=3).to_yaml(),
            lambda path: resolve(TrainConfig, [read_yaml(path)]), 6),
    *architectures(),
    of_file("search space", "space.yaml", SPACE.read_text(), read_space),
    Subject("directory of transformers", transformers_files, opened),
    Subject("shards", shards, opened, 3),
    Subject("torch file", torch_files, lambda folder: opened(folder / "model.pt")),
    of_file("text", "a.txt", "".join(TEXTS), corpus, 2),
    of_file("JSON lines", "a.jsonl", lines(RECORDS), corpus, 3),
    of_file("JSON list", "a.json", json.dumps(RECORDS), corpus, 1),
    of_file("packed JSON lines", "a.jsonl.gz", gzip.compress(lines(RECORDS).encode()), corpus, 2),
    Subject("tokenizer", learned, lambda folder: tokenizer(folder / "tokenizer.json"), 5),
    of_file("conversations", "a.jsonl", lines(TALK),
            lambda path: (corpus(path), read_prompts(str(path))), 2),
    of_file("svmlight", "a.svm", "+1 1:0.5 3:1e-3 # c\n-1 2:-4 3:7\n+1 1:1 2:2\n" * 3,
            load_svmlight, 3),
    of_file("ratings", "a.csv", "user,item,rating\n1,2,3.5\n2,2,5\n3,9,1\n1,3,2\n",
            load_ratings, 3),
    Subject("graph", lambda: {"e.txt": "# a\n0 1 2.5\n1\t2\t1\n2 3 1\n", "t.txt": "0 0\n2 1\n"},
            lambda folder: load_graph(folder / "e.txt", str(folder / "t.txt")), 3),
)  # fmt: skip


def failures_of(subject, seed, folder, count):
    """The failures in mutations 0 .. count - 1 of a subject, in a folder of its own."""
    files = {}
    for name, content in subject.files().items():
        files[folder / name] = content if isinstance(content, bytes) else content.encode()
        (folder / name).write_bytes(files[folder / name])
    subject.read(folder)  # what is valid is read
    for number in range(count):
        rng = Random(f"{seed}/{subject.name}/{number}")
        path = rng.choice(sorted(files))
        path.write_bytes(mutate(files[path], rng))
        print(f"{subject.name}, mutation {number} of {path.name}", file=sys.stderr)
        if (error := failure(subject, folder)) is not None:
            yield {"subject": subject.name, "number": number, "file": path.name, "error": error}
        path.write_bytes(files[path])


class Hang(BaseException):
    """A case took longer than `CASE_S`."""


def failure(subject, folder):
    """Read mutated files; None where that ended in a value or one of our errors."""
    faulthandler.dump_traceback_later(30 * CASE_S, exit=True)  # it waits, however slow this is
    signal.setitimer(signal.ITIMER_PROF, CASE_S)
    try:
        subject.read(folder)
    except MlxhogError as error:
        n = len(str(error))
        return None if 0 < n < MAX_CHARACTERS + 100 else f"{n} characters: {str(error)[:200]}"
    except BaseException as error:  # a panic of Rust is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        return "".join(traceback.format_exception(error)[-6:])[-3000:]
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.cancel_dump_traceback_later()
    return None


def main():
    """Run the command; prints a JSON line per failure and one summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutations", type=int, default=5200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="name of one subject")
    options = parser.parse_args()
    warnings.simplefilter("error")

    def hang(number, frame):
        raise Hang(f"more than {CASE_S} s")

    signal.signal(signal.SIGPROF, hang)
    limit_memory(ROOM_BYTES, more=True)
    subjects = [s for s in SUBJECTS if options.only in (None, s.name)]
    shares, failures, total = sum(subject.weight for subject in subjects), 0, 0
    for subject in subjects:
        with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
            count = -(-options.mutations * subject.weight // shares)
            total += count
            for case in failures_of(subject, options.seed, Path(folder), count):
                failures += 1
                print(json.dumps(case), flush=True)
    print(json.dumps({"mutations": total, "failures": failures}), flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
