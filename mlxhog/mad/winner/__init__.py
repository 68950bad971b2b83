"""From a study to a model that `mlxhog train` takes: who may win, and the file of the winner."""

from __future__ import annotations

from pathlib import Path

from mlxhog.errors import ConfigError, StudyError
from mlxhog.files.durable import replace_file
from mlxhog.mad.report.look import look
from mlxhog.mad.scores import UNFINISHED, Row
from mlxhog.mad.study import study as studies
from mlxhog.mad.study.store import ROOT, Store, find, is_study
from mlxhog.mad.suites import suite
from mlxhog.models.mad.architecture import VOCABULARY, to_yaml
from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.layer import Layer
from mlxhog.models.mad.sequence import canonical, parse, read_architecture


def finished(store: Store) -> list[Row]:
    """Return the candidates of a study that lack no runs, the best first.

    Raises:
        StudyError: there is none.
    """
    rows = look(store).rows
    found = [row for row in rows if row.status not in UNFINISHED]
    if not found:
        raise StudyError(
            f"study {store.name} has no candidate with all its runs ({len(rows)} have some); go on "
            f"with it: mlxhog mad resume {store.name}"
        )
    return found


def model(store: Store, layers: tuple[Layer, ...]) -> MADConfig:
    """Return layers as a language model for bytes, of the width that a study searched at."""
    study = studies.read(store)
    dim = suite(study.suite).dim if study.dim is None else study.dim
    return MADConfig(vocab_size=VOCABULARY, hidden_size=dim, layers=layers, position=study.position)


def source(what: str) -> tuple[str, MADConfig]:
    """Return the best candidate of a study, or an architecture; in words, and as a model.

    Args:
        what: a study's name or path, or what `read_architecture` takes.

    Raises:
        ConfigError: it is neither.
        StudyError: the study has no candidate with all its runs.
    """
    if is_study(ROOT / what) or is_study(Path(what)):
        store = find(what)
        best = finished(store)[0]
        said = f"best of study {store.name}, score {best.score:.3f}: {best.candidate}"
        return said, model(store, parse(best.candidate))
    try:
        cfg = read_architecture(what)
    except ConfigError as error:
        if " " in what or Path(what).exists():
            raise
        raise ConfigError(f"{what!r} is no study, and no architecture: {error}") from error
    return f"architecture: {canonical(cfg.layers)}", cfg


def place(out: str) -> Path:
    """Return where a model file is written, before anything is computed.

    Raises:
        ConfigError: nothing can be written there.
    """
    path = Path(out).expanduser()
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"--out is {out}; name a YAML file, such as {path.stem or 'winner'}.yaml")
    if path.is_dir() or not path.parent.is_dir():
        raise ConfigError(f"--out {out}: no folder {str(path.parent)!r} for a file; make it first")
    return path


def write(path: Path, cfg: MADConfig) -> None:
    """Write a model file; one that is there is replaced.

    Raises:
        ConfigError: the file cannot be written.
        EnvironmentLacks: the disk is full.
    """
    try:
        replace_file(path, to_yaml(cfg).encode())
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}; choose another --out") from error
