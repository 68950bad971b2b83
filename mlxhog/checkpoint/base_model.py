"""The frozen model beside an adapter: where each process finds its tensors.

A run with an adapter names its base by path and digest. Every worker maps the files of the base by
itself, so that they exist once in a machine's memory; the arena has the adapter only. A base that
is a checkpoint of a run may be removed by that run, so a run of adapters keeps links to its files:

    RUN/base/          hard links, or copies on another disk
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

from numpy.typing import NDArray

from mlxhog.backends import frozen
from mlxhog.base import mapped, plain_json, reading, typed
from mlxhog.base.durable import disk_errors, new_directory
from mlxhog.checkpoint import formats, hub, manifest
from mlxhog.checkpoint.formats import Opened
from mlxhog.checkpoint.formats import weights as weight_files
from mlxhog.checkpoint.formats.opening import refuse_not_finite
from mlxhog.checkpoint.run import Run, is_run, run_of
from mlxhog.config.components import ADAPTERS
from mlxhog.errors import CheckpointError, ConfigError, message_of
from mlxhog.models import families
from mlxhog.models.adapters import LoRA
from mlxhog.models.families import ModelConfig

if TYPE_CHECKING:
    from mlxhog.backends.backend import Backend

KEPT = "base"  # folder of a run
OF_TRAINING = (manifest.NAME, manifest.CARD, "optimizer.safetensors")
"""Files of a checkpoint that a base does not need."""


@dataclass(frozen=True)
class BaseModel:
    """A frozen checkpoint, by name; picklable."""

    path: Path  # of the checkpoint, as `formats.open` takes it; or `KEPT`, in the run's folder
    title: str  # its name on the hub, or its path
    digest: str  # `Opened.digest`: SHA-256 of its tensors by name
    weights: str = "keep"  # how they are held: `TrainConfig.base_weights`

    @classmethod
    def of(cls, opened: Opened, weights: str = "keep") -> Self:
        """Return an open checkpoint as a base, whose files are read once for the digest.

        The only file of a folder is that folder, by which PEFT and a run's links know it.
        """
        is_whole = weight_files.candidates(opened.folder) == [opened.path]
        path = opened.folder if is_whole else opened.path
        return cls(path, hub.title(path) or str(path), opened.digest(), weights)

    def kept(self, run: Run) -> Self:
        """Return the base as a run keeps it: the checkpoint of a run by links to its files.

        Raises:
            EnvironmentLacks: the disk is full, or the system refuses.
        """
        folder, of_run = run.directory / KEPT, self.path.name == KEPT and is_run(self.path.parent)
        if self.path == folder:
            return replace(self, path=Path(KEPT))
        if run_of(self.path) is None and not of_run:
            return self
        with disk_errors(f"linking {self.path} into {folder}"), new_directory(folder) as part:
            for file in self.path.iterdir():
                if file.name in OF_TRAINING:
                    continue
                try:
                    os.link(file, part / file.name)
                except OSError:  # on another disk, or one without links
                    shutil.copyfile(file, part / file.name)
        return replace(self, path=Path(KEPT))

    def kept_again(self, run: Run) -> None:
        """Link the files anew for a run whose folder was removed, if they are where they were."""
        if self.path == Path(KEPT) and Path(self.title).is_dir():
            replace(self, path=Path(self.title)).kept(run)

    def to_json(self) -> dict[str, str]:
        """Return it for a checkpoint's state."""
        return asdict(self) | {"path": str(self.path)}

    def inside(self, run_dir: Path) -> Self:
        """Return the base with its path, which may be relative to the folder of the run."""
        return replace(self, path=run_dir / self.path)

    def tensors(self) -> Mapping[str, NDArray[Any]]:
        """Map the tensors, by our names; their pages are shared with every process that does.

        Raises:
            CheckpointError: the files are missing or no longer fit their config.
        """
        return formats.open(self.path, verify=False).tensors

    def check(self, model: ModelConfig, say: Callable[[str], object]) -> None:
        """Convert the base for all processes, if it has to be, and check that it is finite.

        Raises:
            CheckpointError: a number is not finite.
            EnvironmentLacks: the cache cannot be written.
        """
        tensors = self.tensors()
        names = families.frozen_names(model)
        refuse_not_finite((one for one in names if not mapped.is_finite(tensors[one])), self.path)
        self.shared(model, say)

    def load_into(self, backend: Backend, model: ModelConfig) -> None:
        """Load the frozen parameters of a model with an adapter, before `Backend.bind`.

        Raises:
            CheckpointError: the base is gone or damaged.
        """
        faults = backend.load_frozen(model, self.shared(model), weights=self.weights)
        refuse_not_finite(faults, self.path)

    def shared(
        self, model: ModelConfig, say: Callable[[str], object] = lambda message: None
    ) -> Mapping[str, NDArray[Any]]:
        """Map the tensors as they are held; see `frozen.shared`, also for errors."""
        return frozen.shared(model, self.tensors(), self.weights, digest=self.digest, say=say)


@dataclass(frozen=True, kw_only=True)
class _Described:
    """The adapter of a run, for readers of its arena."""

    adapter: Mapping[str, Any]
    base: Mapping[str, str]


def described_adapter(model: ModelConfig, base: BaseModel) -> bytes:
    """Return the adapter of a model and its base as JSON."""
    assert model.adapter is not None
    own = {"adapter": model.adapter.to_dict(), "base": base.to_json()}
    return plain_json.dumps(own, indent=1)


def read_adapter(path: Path, model: ModelConfig) -> tuple[ModelConfig, BaseModel]:
    """Return the model with the adapter of such a file, and its base.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        own = typed.read(_Described, plain_json.loads(reading.read_small(path)))
        adapter = cast(LoRA, ADAPTERS.read(own.adapter))
        names = (own.base[name] for name in ("title", "digest", "weights"))
        base = BaseModel(Path(own.base["path"]), *names)
    except (ConfigError, LookupError, OSError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} does not say what adapter the run trains: {message_of(error)}; read one of "
            "its checkpoints (--mode checkpoint)"
        ) from error
    return replace(model, adapter=adapter), base
