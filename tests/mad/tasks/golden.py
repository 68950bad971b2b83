"""Files of rows: the references' in tests/mad/golden, and our own, which have the same form."""

import json
from dataclasses import fields
from pathlib import Path

import numpy as np

from mlxhog.mad.tasks import Dataset

GOLDEN = Path(__file__).parents[1] / "golden"


def read(path):
    """Return the data set of a file."""
    with np.load(path) as file:
        stored = {name: file[name] for name in file.files}
    meta = json.loads(str(stored.pop("meta")))
    ends = {"_inputs": "_x", "_targets": "_y"}
    for end, short in ends.items():
        stored = {name.replace(end, short): values for name, values in stored.items()}
    names = {field.name for field in fields(Dataset)} & stored.keys()
    return Dataset(**{name: stored[name].astype(np.int32) for name in names}, meta=meta)
