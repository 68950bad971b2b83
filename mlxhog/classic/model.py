"""Files of a solved problem's weights, and predictions for a data file.

A file of weights is a safetensors file; its metadata `classic` is JSON: the problem, the facts that
are needed to read further data, and the measures at the end of training. The tensors:

    svm, logistic, least-squares, synthetic-svm, linear-regression
        weights (features,), in the order of the data file's features
    image-svm
        weights (classes, pixels), centre (pixels,)
    matrix-completion
        users (users, rank), items (items, rank), and user_ids, item_ids: their identifiers in the
        data file
    graph-cuts
        labels (vertices,), and vertex_ids

Predictions are lines in the order of the data file, columns separated by tabs:

    svm, synthetic-svm                  LABEL  SCORE          the score's sign is the label
    logistic                            LABEL  PROBABILITY    of the positive label
    least-squares, linear-regression    VALUE          where labels are -1 and +1: LABEL  VALUE
    image-svm                           CLASS  SCORE
    matrix-completion                   USER  ITEM  RATING
    graph-cuts                          VERTEX  LABEL         each vertex once
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from mlxhog.classic.loaders.pairs import read_edges, read_ratings
from mlxhog.classic.loaders.rows import CLASSES, PIXELS, parse_label_map, read_cifar10, read_rows
from mlxhog.classic.problem import Float32, Problem
from mlxhog.classic.problems.completion import MatrixCompletion
from mlxhog.classic.problems.cuts import GraphCuts
from mlxhog.classic.problems.linear import DenseLinear, SparseLinear
from mlxhog.errors import ConfigError, DataError
from mlxhog.files.durable import disk_errors, replace_file

Arrays = Mapping[str, NDArray[Any]]
_KEY = "classic"
_IMAGES_AT_ONCE = 1_000


@dataclass(frozen=True)
class ClassicModel:
    """A solved problem.

    Attributes:
        problem: its name.
        facts: the metadata of its file.
        arrays: its tensors.
    """

    problem: str
    facts: Mapping[str, Any]
    arrays: Arrays


@dataclass(frozen=True)
class ClassicPrediction:
    """The predictions of a model for a file.

    Attributes:
        columns: columns of text or numbers, of equal length; entry k of each is in line k.
        examples: number of examples in the file.
        unknown: number of them with a feature, user, item or vertex that training did not see.
        measure: name of the measure: accuracy, rmse or cut.
        value: value of the measure; None if the file has no labels or ratings to compare with.
        trained: the same measure at the end of training, on the test data if there were any, else
            on the training data.
    """

    columns: tuple[NDArray[Any], ...]
    examples: int
    unknown: int
    measure: str
    value: float | None
    trained: float | None

    def lines(self) -> Iterator[str]:
        """Yield the lines of the output, numbers with six digits."""
        words = (
            [f"{x:.6g}" for x in column] if column.dtype.kind == "f" else column.tolist()
            for column in self.columns
        )
        for row in zip(*words, strict=True):
            yield "\t".join(map(str, row))


# -- files -----------------------------------------------------------------------------------------


def check_target(path: Path) -> None:
    """Refuse a file that could not be written, before anything is computed for it.

    Raises:
        ConfigError: `path` is a folder, or its folder is missing or not writable.
    """
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; name a file in it")
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: there is no folder {path.parent}; create it first")
    if not os.access(path.parent, os.W_OK):
        raise ConfigError(f"{path}: the folder is not writable; choose another one")


def save(problem: Problem, params: Mapping[str, Float32], measures: Any, path: Path) -> None:
    """Write a solved problem into a file; the file is replaced in one step.

    Args:
        problem: the solved problem.
        params: its parameters at the end, by name.
        measures: its measures at the end, by name.
        path: the file.

    Raises:
        ConfigError: problems of this class cannot be written.
        EnvironmentLacks: the file cannot be written.
    """
    facts, arrays = _contents(problem, params)
    facts = {"problem": problem.name, **facts, "measures": measures}
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    with disk_errors(f"writing {path}"):
        replace_file(path, to_bytes(whole, {_KEY: json.dumps(facts)}))


def load(path: Path) -> ClassicModel:
    """Read a file of weights.

    Raises:
        DataError: the file is missing, damaged, or not a file of weights.
    """
    try:
        with safe_open(path, "numpy") as file:
            facts = json.loads((file.metadata() or {}).get(_KEY, "null"))
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read as weights: {error}; `mlxhog classic PROBLEM --save FILE` "
            "writes them"
        ) from error
    if not isinstance(facts, dict) or facts.get("problem") not in _PREDICT:
        raise DataError(
            f"{path} is not a file of weights; `mlxhog classic PROBLEM --save FILE` writes one"
        )
    model = ClassicModel(facts["problem"], facts, arrays)
    _check(model, path)
    return model


_SHAPES: Mapping[str, tuple[str, ...]] = {
    "linear": ("weights 1 f",),
    "images": ("weights 2 f", "centre 1 f"),
    "ratings": ("users 2 f", "items 2 f", "user_ids 1 i", "item_ids 1 i"),
    "vertices": ("labels 1 i", "vertex_ids 1 i"),
}
"""Form of a model -> its tensors: name, number of dimensions, kind of dtype."""

_FACTS: Mapping[str, Mapping[str, type | tuple[type, ...]]] = {
    "linear": {"first": int, "loss": str, "labels": (str, type(None))},
    "images": {},
    "ratings": dict.fromkeys(("mean", "lowest", "highest"), (float, int)),
    "vertices": {},
}


def _check(model: ClassicModel, path: Path) -> None:
    """Refuse a file whose contents do not fit its problem."""
    form = _FORMS[model.problem]
    for line in _SHAPES[form]:
        name, dimensions, kind = line.split()
        array = model.arrays.get(name)
        fits = array is not None and array.ndim == int(dimensions) and array.dtype.kind == kind
        if array is None or not fits or not np.isfinite(array).all():
            raise DataError(
                f"{path}: tensor {name} is missing, has NaN or infinity, or has not the "
                f"dimensions and dtype of {model.problem}; save it again"
            )
    for name, fact_type in _FACTS[form].items():
        if not isinstance(model.facts.get(name), fact_type):
            raise DataError(f"{path}: the metadata have no valid {name}; save it again")
    if not _sizes_fit(form, {name: array.shape for name, array in model.arrays.items()}):
        raise DataError(f"{path}: the sizes of its tensors contradict each other; save it again")


def _sizes_fit(form: str, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    if form == "linear":
        return shapes["weights"][0] > 0
    if form == "images":
        return shapes["weights"] == (CLASSES, PIXELS) and shapes["centre"] == (PIXELS,)
    if form == "vertices":
        return shapes["labels"] == shapes["vertex_ids"] != (0,)
    (users, rank), (items, same) = shapes["users"], shapes["items"]
    ids = shapes["user_ids"], shapes["item_ids"]
    return rank == same and ids == ((users,), (items,)) and users > 0 and items > 0


def _contents(
    problem: Problem, params: Mapping[str, Float32]
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    facts: dict[str, Any]
    if isinstance(problem, SparseLinear):
        rows = problem.train
        weights = params["x"].ravel()[: rows.n_features]
        if rows.number is not None:
            weights = weights[rows.number]
        facts = {"first": rows.first, "loss": problem.loss, "labels": problem.labels}
        return {**facts, "signs": rows.label_kind == "signs"}, {"weights": weights}
    if isinstance(problem, DenseLinear):
        weights = problem.weights(params).astype(np.float32)
        if problem.train.label_kind == "classes":
            centre = problem.train.centre
            none = np.zeros(problem.train.n_features, np.float32)
            return {}, {"weights": weights, "centre": none if centre is None else centre}
        return {"first": 1, "loss": problem.loss, "labels": None, "signs": False}, {
            "weights": weights[0]
        }
    if isinstance(problem, MatrixCompletion):
        train = problem.train
        facts = {"mean": problem.mean, "lowest": train.lowest, "highest": train.highest}
        return facts, {
            "users": params["users"][:, : problem.rank],
            "items": params["items"][:, : problem.rank],
            "user_ids": _ids(train.user_ids, train.n_users),
            "item_ids": _ids(train.item_ids, train.n_items),
        }
    if isinstance(problem, GraphCuts):
        graph = problem.graph
        return {}, {
            "labels": problem.rounded(params["x"]).astype(np.int64),
            "vertex_ids": _ids(graph.vertex_ids, graph.n_vertices),
        }
    raise ConfigError(f"{problem.name} cannot be saved: its class has no file format")


def _ids(ids: NDArray[np.int64] | None, n: int) -> NDArray[np.int64]:
    return np.arange(n, dtype=np.int64) if ids is None else ids


# -- predictions -----------------------------------------------------------------------------------


def predict(model: ClassicModel, path: Path) -> ClassicPrediction:
    """Predict for a data file in the format that the model's problem reads.

    Raises:
        DataError: the file is missing or malformed; the message names the line.
    """
    return _PREDICT[model.problem](model, path)


def answer(model: ClassicModel, prediction: ClassicPrediction) -> str:
    """State the accuracy of the predictions in one line."""
    who, value = f"{model.problem}: {prediction.examples:,} predicted", prediction.value
    if prediction.unknown:
        who += f", {prediction.unknown:,} of them with features or identifiers new to the model"
    if value is None:
        return f"{who}; the file has no values to compare them with"
    trained = prediction.trained
    beside = "" if trained is None else f"; at the end of training: {_spell(prediction, trained)}"
    return f"{who}: {_spell(prediction, value)}{beside}"


def _spell(prediction: ClassicPrediction, value: float) -> str:
    if prediction.measure == "accuracy":
        return f"{value:.2%} correct"
    return f"{'a cut of' if prediction.measure == 'cut' else 'rmse'} {value:.5g}"


def _measured(model: ClassicModel, *names: str) -> float | None:
    measures = model.facts.get("measures")
    values = [measures.get(name) for name in names] if isinstance(measures, dict) else []
    return next((float(x) for x in values if isinstance(x, int | float)), None)


def _linear(model: ClassicModel, path: Path) -> ClassicPrediction:
    rows, weights = read_rows(path), model.arrays["weights"].astype(np.float64)
    places = rows.features.astype(np.int64) - model.facts["first"]
    known = (places >= 0) & (places < len(weights))
    with np.errstate(over="ignore", invalid="ignore"):
        products = np.where(known, rows.values * weights[np.where(known, places, 0)], 0.0)
        begins = np.concatenate([[0], np.cumsum(rows.lengths)[:-1]])
        scores = np.add.reduceat(products, begins)
        lacks = np.add.reduceat(~known, begins) > 0
    unknown, n = int(lacks.sum()), len(scores)
    mapping = parse_label_map(model.facts.get("labels"))
    labels = rows.labels
    if mapping is not None:
        labels = np.array([mapping.get(label, np.nan) for label in labels.tolist()])
    if model.facts["loss"] == "squares" and not model.facts.get("signs"):
        known_labels = np.isfinite(labels)
        rmse = _root_mean_square((scores - labels)[known_labels])
        loss = _measured(model, "test_loss", "train_loss")  # half of the mean square
        trained = None if loss is None else (2 * loss) ** 0.5
        return ClassicPrediction((scores,), n, unknown, "rmse", rmse, trained)
    signs = np.where(scores >= 0, 1, -1)
    labelled = np.abs(labels) == 1
    right = float(np.mean(signs[labelled] == labels[labelled])) if labelled.any() else None
    columns = (_words(signs, mapping), scores)
    if model.facts["loss"] == "logistic":
        columns = (columns[0], np.exp(-np.logaddexp(0.0, -scores)))
    return ClassicPrediction(columns, n, unknown, "accuracy", right, _accuracy(model))


def _accuracy(model: ClassicModel) -> float | None:
    error = _measured(model, "test_error", "train_error")
    return None if error is None else 1 - error


def _root_mean_square(errors: NDArray[np.float64]) -> float | None:
    return float(np.sqrt(np.mean(np.square(errors)))) if errors.size else None


def _words(signs: NDArray[Any], mapping: Mapping[float, float] | None) -> NDArray[Any]:
    """Signs as the file spells them, if exactly one of its labels was mapped to each sign."""
    if mapping is None:
        return signs
    spelled = {sign: [old for old, new in mapping.items() if new == sign] for sign in (-1.0, 1.0)}
    if any(len(old) != 1 for old in spelled.values()):
        return signs
    return np.where(signs > 0, f"{spelled[1.0][0]:g}", f"{spelled[-1.0][0]:g}")


def _images(model: ClassicModel, path: Path) -> ClassicPrediction:
    images, classes = read_cifar10(path)
    images -= model.arrays["centre"]
    weights = model.arrays["weights"].astype(np.float64).T
    chosen, best = [], []
    for begin in range(0, len(images), _IMAGES_AT_ONCE):
        scores = images[begin : begin + _IMAGES_AT_ONCE].astype(np.float64) @ weights
        chosen.append(scores.argmax(axis=1))
        best.append(scores.max(axis=1))
    labels = np.concatenate(chosen)
    right = float(np.mean(labels == classes))
    columns = (labels, np.concatenate(best))
    return ClassicPrediction(columns, len(images), 0, "accuracy", right, _accuracy(model))


def _ratings(model: ClassicModel, path: Path) -> ClassicPrediction:
    entries, facts, arrays = read_ratings(path), model.facts, model.arrays
    user, user_known = _places(arrays["user_ids"], entries.users)
    item, item_known = _places(arrays["item_ids"], entries.items)
    known = user_known & item_known
    products = np.einsum("ij,ij->i", arrays["users"][user], arrays["items"][item], dtype=np.float64)
    ratings = facts["mean"] + np.where(known, products, 0.0)
    rated = (entries.ratings >= facts["lowest"]) & (entries.ratings <= facts["highest"])
    error = _root_mean_square((ratings - entries.ratings)[rated])
    return ClassicPrediction(
        (entries.users, entries.items, ratings),
        len(ratings),
        int((~known).sum()),
        "rmse",
        error,
        _measured(model, "test_error", "train_error"),
    )


def _places(ids: NDArray[np.int64], values: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Index of each value among ascending identifiers, and whether it is one of them."""
    at = np.minimum(np.searchsorted(ids, values), len(ids) - 1)
    return at, ids[at] == values


def _vertices(model: ClassicModel, path: Path) -> ClassicPrediction:
    heads, tails, weights = read_edges(path)
    ids, labels = model.arrays["vertex_ids"], model.arrays["labels"]
    names = np.unique(np.concatenate([heads, tails]))
    at, known = _places(ids, names)
    spelled = np.where(known, labels[at].astype(str), "?")
    (head, head_known), (tail, tail_known) = _places(ids, heads), _places(ids, tails)
    both = head_known & tail_known
    apart = both & (labels[head] != labels[tail])
    cut = float(weights[apart].sum(dtype=np.float64)) if both.any() else None
    unknown = int((~known).sum())
    return ClassicPrediction(
        (names, spelled), len(names), unknown, "cut", cut, _measured(model, "cut")
    )


_FORMS: Mapping[str, str] = {
    **dict.fromkeys(
        ("svm", "logistic", "least-squares", "synthetic-svm", "linear-regression"), "linear"
    ),
    "image-svm": "images",
    "matrix-completion": "ratings",
    "graph-cuts": "vertices",
}
_BY_FORM: Mapping[str, Callable[[ClassicModel, Path], ClassicPrediction]] = {
    "linear": _linear,
    "images": _images,
    "ratings": _ratings,
    "vertices": _vertices,
}
_PREDICT = {name: _BY_FORM[form] for name, form in _FORMS.items()}
