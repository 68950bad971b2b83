"""Frozen weights of a base: how their tensors are held, and one converted file for all processes.

A format is one of `FORMATS`. It holds for the matrices of linear layers and for the embedding, see
`is_reduced`; all other parameters are float32, and each process has its own copy: they are few.

    keep        as in the file, float32 or bfloat16; a file's float16 becomes float32
    float32     4 bytes an element
    bfloat16    2 bytes
    8bit, 4bit  quantized, see `models/ops/frozen.py`; matrices that do not suit are float32

Every worker maps the files of the base and reads the tensors where they lie, so a machine has them
once in memory. A file in another format is converted once, by `shared`, into the user's cache:

    bases/DIGEST-FORMAT/00000.safetensors   one file for each weight: whole, or the folder is absent
    bases/DIGEST-FORMAT.lock                locked while a process converts or removes the folder

A process that uses a folder has a shared lock on its first file until it ends.

A mapped tensor must not be copied, or each worker had its own base. So a base is read through its
mapping while it is used, and a program that shortens the file in place ends the workers by a bus
error. A file that is removed, or replaced by a rename, as downloads are, stays whole.
"""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.base import cache, durable, mapped
from mlxhog.base import tensors as files
from mlxhog.base.locks import is_in_use, lock_file
from mlxhog.errors import CheckpointError, ConfigError, EnvironmentLacks, ShapeError
from mlxhog.models import families
from mlxhog.models.adapters import is_adapter
from mlxhog.models.families import ModelConfig
from mlxhog.models.ops.frozen import GROUP_SIZES, FrozenWeight, names_of, quantize, suits
from mlxhog.models.spec import ParamSpec

Tensors = Mapping[str, NDArray[Any]]

WEIGHTS = {"float32": np.dtype(np.float32), "bfloat16": mapped.BFLOAT16}
"""Formats of floats."""

QUANTIZED_BITS = {"8bit": 8, "4bit": 4}
"""Formats of quantized weights, and their bits per element."""

FORMATS = ("keep", *WEIGHTS, *QUANTIZED_BITS)

_FIRST = "00000.safetensors"
_held = dict[Path, int]()  # folder of a converted base -> descriptor of its first file


def is_reduced(model: ModelConfig, name: str) -> bool:
    """Whether a format holds for a parameter: a matrix of linear layers, or the embedding."""
    spec = model.layout.spec[name]
    is_used_so = spec.autocast or name in (families.embedding(model), families.head(model))
    return is_used_so and len(spec.shape) == 2 and not is_adapter(name)


def weight(model: ModelConfig, tensors: Tensors, name: str, weights: str) -> FrozenWeight:
    """Return a parameter that `is_reduced` in a format, where it lies or converted in memory.

    Raises:
        ConfigError: no such format, or the tensor is quantized in another one.
        ShapeError: a quantized tensor has another shape than the model's.
    """
    if weights not in FORMATS:
        raise ConfigError(f"weights are {weights!r}; choose one of {', '.join(FORMATS)}")
    tensor, shape = tensors[name], model.layout.spec[name].shape
    if tensor.dtype not in mapped.FLOATS:
        own = FrozenWeight(
            tuple(map(_in_place, (tensors[part] for part in names_of(name)))),
            tensor.shape[1] * 32 // shape[1],
        )
        if own.shape != shape or own.bits not in QUANTIZED_BITS.values():
            raise ShapeError(
                f"{name} has quantized weights of shape {tensor.shape}, the model's are {shape}; "
                "use the files of this model in 4 or 8 bits"
            )
        if weights not in ("keep", f"{own.bits}bit"):
            raise ConfigError(
                f"{name} has {own.bits} bits, and weights are {weights}; use keep, or a base "
                "that is not quantized"
            )
        return own
    bits, dtype = _format(tensor.dtype, shape, weights)
    if bits:
        return FrozenWeight(quantize(tensor, bits), bits)
    if tensor.dtype == dtype:
        return FrozenWeight((_in_place(tensor),))
    out = np.empty(shape, dtype)
    mapped.copy(tensor, out)
    return FrozenWeight((out,))


def bytes_of(spec: ParamSpec, weights: str, dtype: np.dtype[Any]) -> int:
    """Return the memory of a parameter that `is_reduced` in a format; `dtype` is its file's."""
    bits, held = _format(dtype, spec.shape, weights)
    if not bits:
        return spec.size * held.itemsize
    group = next(size for size in GROUP_SIZES if spec.shape[1] % size == 0)
    return spec.size * bits // 8 + spec.size // group * 8  # a scale and an offset for each group


def _format(
    dtype: np.dtype[Any], shape: tuple[int, ...], weights: str
) -> tuple[int, np.dtype[Any]]:
    """Return the bits of floats that are quantized in a format, or 0 and their dtype."""
    if weights in QUANTIZED_BITS and suits(shape):
        return QUANTIZED_BITS[weights], np.dtype(np.uint32)
    if weights == "keep" and dtype in WEIGHTS.values():  # operators have no float16
        return 0, dtype
    return 0, WEIGHTS.get(weights, WEIGHTS["float32"])


def _in_place(tensor: NDArray[Any]) -> NDArray[Any]:
    """Return a tensor as kernels read it; a copy of one that is not aligned."""
    return np.require(tensor, requirements=["C", "A"])


def shared(
    model: ModelConfig, tensors: Tensors, weights: str, *, digest: str,
    say: Callable[[str], object] = lambda message: None,
) -> Tensors:  # fmt: skip
    """Return the tensors of a base, with those in a format that are not in its own files.

    The first process that asks for them converts them, which takes a second for 10^8 parameters; a
    run calls it before it starts workers. `digest` names the base; `say` hears of a conversion.

    Raises:
        ConfigError: no such format, or the base is quantized in another one.
        CheckpointError: a tensor has NaN or an infinity.
        EnvironmentLacks: the cache cannot be written, or its disk is too small.

    Concurrency: one process converts, and the others wait; what is absent or whole is a folder,
    which `remove` leaves alone until this process ends.
    """
    wanted = dict[str, int]()  # names and bytes
    for name, spec in model.layout.spec.items():
        if name not in tensors or not is_reduced(model, name):
            continue
        tensor = tensors[name]
        if weights not in FORMATS or tensor.dtype not in mapped.FLOATS:
            weight(model, tensors, name, weights)  # refuses it, or it is where it lies
        elif tensor.dtype != _format(tensor.dtype, spec.shape, weights)[1]:
            wanted[name] = bytes_of(spec, weights, tensor.dtype)
    if not wanted:
        return tensors
    folder = cache.user_cache_directory() / "bases"
    try:
        target = cache.own_directory(folder) / f"{digest}-{weights}"
        with _locked(target):
            if not target.is_dir() or not cache.is_own(target):
                size = f"{sum(wanted.values()) / 1e9:.1f} GB"
                say(f"converting the base to {weights}, once: {size} in {target}")
                _convert(model, tensors, weights, wanted, target)
            _hold(target)
    except OSError as error:
        raise EnvironmentLacks(
            f"{folder}: {durable.explained(error)}; set XDG_CACHE_HOME to a folder on another disk"
        ) from error
    own = dict(tensors)
    for file in sorted(target.glob("*.safetensors")):
        own |= files.read(file)
    return own


@contextlib.contextmanager
def _locked(target: Path, kind: int = fcntl.LOCK_EX) -> Iterator[None]:
    with open(target.with_name(f"{target.name.partition('.')[0]}.lock"), "w") as lock:
        with lock_file(lock, target, kind):
            yield


def _hold(target: Path) -> None:
    """Mark a folder as in use until this process ends."""
    own = os.open(target / _FIRST, os.O_RDONLY)
    with contextlib.suppress(OSError):  # a disk may have no locks
        fcntl.flock(own, fcntl.LOCK_SH)
    if (earlier := _held.get(target)) is not None:
        os.close(earlier)
    _held[target] = own


def converted(bases: Path) -> list[tuple[Path, bool]]:
    """Return the converted bases in a folder of the cache, and whether a process uses each."""
    if not bases.is_dir():
        return []
    folders = (path for path in sorted(bases.iterdir()) if path.suffix != ".lock")
    return [(path, is_in_use(path / _FIRST)) for path in folders]


def remove(folder: Path) -> bool:
    """Remove a converted base unless a process uses or converts it; return whether it is gone."""
    with contextlib.suppress(BlockingIOError), _locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB):
        if not is_in_use(folder / _FIRST):
            durable.remove(folder)
    return not os.path.lexists(folder)


def _convert(
    model: ModelConfig, tensors: Tensors, weights: str, wanted: Mapping[str, int], target: Path
) -> None:
    """Write the folder of the converted weights of a base."""
    doing = f"converting a base to {weights}"
    for end in ("part", "old"):  # of a killed process
        durable.remove(target.with_name(f"{target.name}.{end}"))
    durable.require_space(target.parent, sum(wanted.values()), doing)
    with durable.disk_errors(doing, only_full=True), durable.new_directory(target) as part:
        for number, name in enumerate(wanted):
            if not mapped.is_finite(tensors[name]):
                raise CheckpointError(
                    f"{name} of the base has NaN or an infinity; use another base"
                )
            parts = weight(model, tensors, name, weights).parts
            names = names_of(name)[: len(parts)]
            files.write(part / f"{number:05}.safetensors", dict(zip(names, parts, strict=True)))
        with contextlib.suppress(OSError):  # a disk may keep no modes
            cache.restrict(part)
