"""Data sets inside scikit-learn's wheel: no file, no network."""

import numpy as np

from glasslab.data import Data
from glasslab.datasets.arrays import as_data


def digits() -> Data:
    """1,797 handwritten digits as 8 x 8 grey images (Alpaydin & Kaynak 1998, UCI)."""
    from sklearn.datasets import load_digits  # importing it takes a second: only when asked for

    held = load_digits()
    return as_data(held.images / 16, held.target, 10, "digits")


def breast_cancer() -> Data:
    """569 tumours, 30 measurements each, 0 = malignant, 1 = benign (Wolberg et al. 1995, UCI)."""
    from sklearn.datasets import load_breast_cancer

    held = load_breast_cancer()
    return as_data(np.asarray(held.data), held.target, 2, "breast_cancer")
