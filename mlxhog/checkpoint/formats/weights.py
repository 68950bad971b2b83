"""Find and read the files of a checkpoint's tensors, safetensors or torch.

A directory is searched in this order, as transformers and the xlstm package do:

    model.safetensors
    model.safetensors.index.json     names the shard of every tensor
    model_0.safetensors, ...         the xlstm package's shards
    pytorch_model.bin                or its .index.json
    NAME-00001-of-00002.safetensors  numbered shards of which the index is missing
    a single *.safetensors, *.pt, *.pth, *.ckpt or *.bin file
"""

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.base import cache, mapped, plain_json, reading, tensors
from mlxhog.base.durable import replace_file
from mlxhog.errors import CheckpointError, EnvironmentLacks

MODEL = "model.safetensors"
INDEX = "model.safetensors.index.json"
_NAMED = (MODEL, INDEX, "model_0.safetensors", "pytorch_model.bin", "pytorch_model.bin.index.json")
MAX_NAME = 255  # longest file name that every disk allows
ENDINGS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
_NO_MODEL = ("optimizer", "training_args", "scheduler", "scaler", "rng_state")
shard = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.safetensors|\.bin)").fullmatch
_SHOWN = 8


def candidates(path: Path) -> list[Path]:
    """Return the files in a directory that may have its tensors, the preferred one first."""
    if path.is_file():
        return [path] if path.name.endswith((".index.json", *ENDINGS)) else []
    if not path.is_dir():
        return []
    named = [path / name for name in _NAMED if (path / name).is_file()]
    return named or [
        file
        for file in sorted(path.iterdir())
        if file.suffix in ENDINGS and not file.name.startswith(_NO_MODEL)
    ]


def find(path: Path) -> Path:
    """Return the file of a directory's tensors, or the index that names its files."""
    if not path.exists():
        raise CheckpointError(f"no checkpoint {path}: there is no such file or directory")
    files = candidates(path)
    if not files:
        why = f"has no checkpoint: no {_NAMED[0]}, {_NAMED[1]} or other file of tensors"
        if path.is_file():
            why = f"is not a checkpoint: its name ends in none of {', '.join(ENDINGS)}"
        raise CheckpointError(f"{path} {why}; name a checkpoint's directory or its file")
    if len(files) > 1 and files[0].name not in _NAMED and not {*files} <= {*parts(files[0])}:
        names = ", ".join(file.name for file in files[:4])
        raise CheckpointError(f"{path} has several checkpoints: {names}; name one of these files")
    return files[0]


def read(file: Path) -> dict[str, NDArray[Any]]:
    """Return the tensors of the result of `find` as views of mappings of its files."""
    arrays: dict[str, NDArray[Any]] = {}
    for part in parts(file):
        of_part = _one(part)
        if twice := sorted(arrays.keys() & of_part.keys()):
            raise CheckpointError(f"{twice[0]} is in {part} and in an earlier file")
        arrays |= of_part
    return arrays


def parts(file: Path) -> list[Path]:
    """Return the files of tensors, for the result of `find`."""
    names = [file.name]
    if file.name.endswith(".index.json"):
        names = sorted(set(_weight_map(file).values()))
    elif file.name == "model_0.safetensors":  # the xlstm package's are numbered without a gap
        count = sum(one.stem[6:].isdecimal() for one in file.parent.glob("model_*.safetensors"))
        names = [f"model_{number}.safetensors" for number in range(count)]
    elif numbered := shard(file.name):
        stem, _, of_all, ending = numbered.groups()
        names = [f"{stem}-{number:05}-of-{of_all}{ending}" for number in range(1, int(of_all) + 1)]
    for name in names:
        if not (file.parent / name).is_file():
            raise CheckpointError(
                f"{file} has no shard {name}, which is missing; fetch it again from where the "
                "checkpoint comes from"
            )
    return [file.parent / name for name in names]


def digest(arrays: Mapping[str, NDArray[Any]], files: Iterable[Path]) -> str:
    """Return the SHA-256 of tensors by name, shape, type and bytes, as hex.

    It takes a second per 1.5 GB, once for `files`: the cache folder keeps it by their inodes, sizes
    and times, so a hard link is not read again.
    """
    heads = {name: [name, array.shape, array.dtype.name] for name, array in arrays.items()}
    about: list[object] = [heads[name] for name in sorted(heads)]
    for status in map(os.stat, files):
        about.append([status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns])
    key = hashlib.sha256(plain_json.dumps(about)).hexdigest()
    kept = cache.user_cache_directory() / f"digest-{key[:16]}"
    with suppress(OSError, ValueError, EnvironmentLacks):  # then it is computed
        if cache.is_kept(kept) and len(text := reading.read_bytes(kept, 64).decode()) == 64:
            return text

    def of(name: str) -> bytes:
        one = hashlib.sha256(plain_json.dumps(heads[name]))
        for chunk in mapped.chunks(arrays[name]):
            one.update(chunk.view(np.uint8).data)
        return one.digest()

    with ThreadPoolExecutor(2) as pool:  # hashing releases the GIL
        result = hashlib.sha256(b"".join(pool.map(of, sorted(arrays)))).hexdigest()
    with suppress(OSError, EnvironmentLacks):
        replace_file(cache.own_directory(kept.parent) / kept.name, result.encode())
    return result


def _one(file: Path) -> dict[str, NDArray[Any]]:
    if file.suffix == ".safetensors":
        return tensors.read(file)
    reading.refuse_lfs_pointer(file)
    from mlxhog.checkpoint.formats.state_dict_torch import read as read_torch

    return read_torch(file)


def _weight_map(index: Path) -> dict[str, str]:
    try:
        content = reading.read_small(index, most=reading.MAX_HEADER_BYTES)
        weight_map = dict(plain_json.loads(content)["weight_map"])
        for name in weight_map.values() or [None]:
            if not isinstance(name, str) or Path(name).name != name or len(name) > MAX_NAME:
                raise ValueError("it names no files beside it")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f'{index} is not an index of shards, {{"weight_map": {{TENSOR: FILE, ...}}}}: {error}; '
            "fetch it again from where the checkpoint comes from"
        ) from error
    return weight_map


def listed(faults: Sequence[str]) -> str:
    """Return the first few faults in one line, and the number of the others."""
    more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
    return "; ".join(faults[:_SHOWN]) + more
