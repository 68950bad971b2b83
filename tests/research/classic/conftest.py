"""Generated data that several files of tests look at, and none changes."""

import numpy as np
import pytest

from mlxhog.research.classic.generators import netflix_like, rcv1_like


@pytest.fixture(scope="package")
def netflix():
    """The ratings of the default size."""
    return netflix_like()


@pytest.fixture(scope="package")
def text():
    """The rows like RCV1 of the default number."""
    return rcv1_like()


@pytest.fixture(scope="package")
def digits(tmp_path_factory):
    """Images of digits, labels 2 (even) and 0 (odd), and the file scikit-learn makes of them."""
    from scipy.sparse import csr_matrix
    from sklearn.datasets import dump_svmlight_file, load_digits

    data = load_digits()
    pixels, labels = data.data / 16, np.where(data.target % 2 == 0, 2, 0)
    path = tmp_path_factory.mktemp("digits") / "digits.svm"
    dump_svmlight_file(pixels, labels, str(path), zero_based=False, comment="even digits")
    return csr_matrix(pixels), labels, path
