"""Dense examples: every feature of every row."""

import dataclasses
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlxhog.classic.datasets.arrays import numbers, refuse_non_finite
from mlxhog.classic.datasets.labels import LabelKind, check_labels
from mlxhog.errors import DataError


@dataclass(frozen=True, eq=False)
class DenseRows:
    """Examples that touch every coordinate: images, or a few measured variables.

    Attributes:
        features: (rows, n_features) float32, C order, finite.
        labels: (rows,) float32, of the kind that `label_kind` says.
        label_kind: what labels are, see `LabelKind`.
        n_classes: number of classes, also of those without a row here; 2 for signs, 0 for numbers.

    Raises:
        DataError: at construction, for anything else; the message names the row.
    """

    features: NDArray[np.float32]
    labels: NDArray[np.float32]
    label_kind: LabelKind = "numbers"
    n_classes: int = 0

    def __post_init__(self) -> None:
        """Convert to the declared types, and check."""
        object.__setattr__(self, "features", numbers("features", self.features, 2))
        object.__setattr__(self, "labels", numbers("labels", self.labels))
        rows, n_features = self.features.shape
        if rows == 0 or n_features == 0:
            raise DataError(
                f"features have shape {self.features.shape}; wanted an example at least"
            )
        if rows != len(self.labels):
            raise DataError(
                f"{rows} rows of features and {len(self.labels)} labels; wanted as many"
            )
        refuse_non_finite(
            self.features, lambda row, feature: f"row {row}: the value of feature {feature}"
        )
        refuse_non_finite(self.labels, lambda row: f"row {row}: the label")
        check_labels(self.labels, self.label_kind, self.n_classes)

    @property
    def n_rows(self) -> int:
        """Number of examples."""
        return len(self.labels)

    @property
    def n_features(self) -> int:
        """Number of features of each."""
        return int(self.features.shape[1])

    def take(self, rows: ArrayLike) -> Self:
        """A copy that has these rows, in this order; at least one."""
        chosen = np.asarray(rows, dtype=np.int64)
        return dataclasses.replace(self, features=self.features[chosen], labels=self.labels[chosen])
