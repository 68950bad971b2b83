"""One case of the test vectors, and its two files; `FORMAT.md` describes them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from mlxhog.base import plain_json, reading
from mlxhog.errors import DataError, message_of, shown

Array = NDArray[Any]

FORMAT = 1
MANIFEST = "manifest.json"
ENDINGS = ("json", "safetensors")
STEPS = "steps."
"""Prefix of a result from one token at a time; it is expected to equal the one without."""


class ResultTolerance(NamedTuple):
    """How far a result may be from the expected one, in any entry, and why."""

    allowed: float
    why: str


@dataclass(frozen=True, kw_only=True)
class Case:
    """Inputs of some equations, and their results in float64.

    Attributes:
        name: of its files, such as "mlstm-documents".
        equations: their name, such as "mlstm".
        version: of the equations; a change of their results raises it.
        text: the equations as plain text.
        about: what the case is for.
        options: numbers of the equations, such as eps.
        dtypes: in which the inputs are exact.
        roles: of each input: "input", "state", "parameter", "tokens", "targets" or "reset_mask".
        inputs: float32, of tokens int32, of reset masks uint8.
        cotangents: of results, float32; the loss is the sum of both products.
        expected: results by name ("h", "state.C", "grad.q"), float64.
        checks: of "forward", "states", "steps" and "gradients", the results that belong to it.
        tolerances: of each of `dtypes`, and each expected result.
    """

    name: str
    equations: str
    version: int
    text: str
    about: str
    options: Mapping[str, Any]
    dtypes: tuple[str, ...]
    roles: Mapping[str, str]
    inputs: Mapping[str, Array]
    cotangents: Mapping[str, Array]
    expected: Mapping[str, Array]
    checks: Mapping[str, Sequence[str]]
    tolerances: Mapping[str, Mapping[str, ResultTolerance]]

    def write(self, folder: Path) -> dict[str, str]:
        """Write the two files of the case; return its entry in the manifest."""
        arrays = _prefixed("input", self.inputs) | _prefixed("cotangent", self.cotangents)
        arrays |= _prefixed("expected", self.expected)
        header = {
            "format": FORMAT,
            "case": self.name,
            "equations": {"name": self.equations, "version": self.version, "text": self.text},
            "about": self.about,
            "options": self.options,
            "dtypes": self.dtypes,
            "tensors": {
                name: {"dtype": x.dtype.name, "shape": x.shape, "role": self._role(name)}
                for name, x in arrays.items()
            },
            "checks": self.checks,
            "tolerances": {
                dtype: {name: one._asdict() for name, one in own.items()}
                for dtype, own in self.tolerances.items()
            },
        }
        contents = {
            "json": f"{_lines(header)}\n".encode(),
            "safetensors": save({name: np.array(x, order="C") for name, x in arrays.items()}),
        }
        for ending, content in contents.items():
            (folder / f"{self.name}.{ending}").write_bytes(content)
        return {"name": self.name} | {
            ending: hashlib.sha256(content).hexdigest() for ending, content in contents.items()
        }

    @classmethod
    def read(cls, folder: Path, name: str) -> "Case":
        """Read a case from its two files.

        Raises:
            DataError: a file is missing, damaged, or of another version of the format.
        """
        header = _read_json(folder / f"{name}.json")
        path = folder / f"{name}.safetensors"
        try:
            if header["case"] != name:
                raise KeyError(header["case"])
            arrays = load(reading.read_bytes(path))
            tensors = {
                prefix: {
                    key.removeprefix(f"{prefix}."): arrays[key]
                    for key in header["tensors"]
                    if key.startswith(f"{prefix}.")
                }
                for prefix in ("input", "cotangent", "expected")
            }
            equations, roles = header["equations"], header["tensors"]
            return cls(
                name=header["case"],
                equations=equations["name"],
                version=equations["version"],
                text=equations["text"],
                about=header["about"],
                options=header["options"],
                dtypes=tuple(header["dtypes"]),
                roles={key: roles[f"input.{key}"]["role"] for key in tensors["input"]},
                inputs=tensors["input"],
                cotangents=tensors["cotangent"],
                expected=tensors["expected"],
                checks=header["checks"],
                tolerances={
                    dtype: {key: ResultTolerance(**one) for key, one in own.items()}
                    for dtype, own in header["tolerances"].items()
                },
            )
        except OSError as error:
            raise DataError(
                f"cannot read {shown(str(path))}: {message_of(error)}; export it again"
            ) from error
        except (SafetensorError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{shown(str(path))} and its JSON are not a case of format {FORMAT} ({error!r}); "
                "export it again: mlxhog parity export"
            ) from error

    def _role(self, name: str) -> str:
        prefix, _, rest = name.partition(".")
        if prefix == "input":
            return self.roles[rest]
        if prefix == "cotangent":
            return prefix
        kinds = {"grad": "gradient", "state": "state"}
        return kinds.get(rest.partition(".")[0], "output")


def names(folder: Path) -> list[str]:
    """Return the names of the cases of a set, after a check of every file's sha256.

    Raises:
        DataError: it is not a set, a file is missing or was changed, or it has another format.
    """
    entries = listed(folder)
    for name, digests in entries.items():
        for ending, expected in digests.items():
            path = folder / f"{name}.{ending}"
            try:
                found = hashlib.sha256(reading.read_bytes(path)).hexdigest()
            except OSError as error:
                raise DataError(
                    f"cannot read {shown(str(path))}: {message_of(error)}; export the set again: "
                    "mlxhog parity export"
                ) from error
            if found != expected:
                raise DataError(
                    f"{shown(str(path))} is not the file that was exported (its sha256 is "
                    f"{found[:12]}.., that in {MANIFEST} {expected[:12]}..); export the set again: "
                    "mlxhog parity export"
                )
    return [*entries]


def listed(folder: Path) -> dict[str, dict[str, str]]:
    """Return the cases of a manifest by name, with the sha256 of each file by its ending.

    Raises:
        DataError: it is not a set, or one of another format.
    """
    path = folder / MANIFEST
    manifest = _read_json(path)
    try:
        entries = {
            str(one["name"]): {end: str(one[end]) for end in ENDINGS} for one in manifest["cases"]
        }
        if other := [name for name in entries if Path(name).name != name]:
            raise KeyError(other[0])  # a path to elsewhere
        return entries
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{shown(str(path))} is no manifest of format {FORMAT} ({error!r}); export the set "
            "again: mlxhog parity export"
        ) from error


def _read_json(path: Path) -> Any:
    """Return the content of a JSON file of this format."""
    try:
        value = plain_json.read(path)
    except (OSError, ValueError) as error:
        raise DataError(
            f"cannot read {shown(str(path))}: {message_of(error)}; name a folder that `mlxhog "
            "parity export` wrote"
        ) from error
    found = value.get("format") if isinstance(value, dict) else None
    if found != FORMAT:
        raise DataError(
            f"{shown(str(path))} has format {found!r}, and this mlxhog reads format {FORMAT}; "
            "export the set again: mlxhog parity export"
        )
    return value


def _lines(value: Any, *, is_top: bool = True) -> str:
    """Return JSON with a line for each entry of an object that has others, or is the outer one."""
    if not isinstance(value, Mapping) or not (
        is_top or any(isinstance(one, Mapping) for one in value.values())
    ):
        return json.dumps(value, allow_nan=False)
    entries = (f"{json.dumps(key)}: {_lines(one, is_top=False)}" for key, one in value.items())
    return "{\n" + ",\n".join(entries) + "\n}"


def _prefixed(prefix: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {f"{prefix}.{name}": x for name, x in arrays.items()}
