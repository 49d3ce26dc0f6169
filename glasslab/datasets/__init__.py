"""`load(name)`: the data sets one can ask for by name, all as `Data` with labels 0 .. classes - 1."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from glasslab.data import Data, all_classes
from glasslab.datasets.basket import basket
from glasslab.datasets.bundled import breast_cancer, digits
from glasslab.datasets.fetched import adult, lfw, olivetti
from glasslab.datasets.local import folder, npz
from glasslab.datasets.place import home
from glasslab.datasets.privacytrustlab import location30, purchase100, texas100
from glasslab.datasets.vision import cifar10, cifar100, fashion_mnist, mnist, svhn

BUNDLED: dict[str, Callable[[], Data]] = {  # no file of their own
    "digits": digits,
    "breast_cancer": breast_cancer,
    "basket": partial(basket, 10_000),
}
FILES = {
    "olivetti": olivetti,
    "lfw": lfw,
    "adult": adult,
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "svhn": svhn,
    "purchase100": purchase100,
    "texas100": texas100,
    "location30": location30,
}
PATHS = {"npz": npz, "folder": folder}


def load(name: str, root: str | Path | None = None, *, download: bool = True) -> Data:
    """The data set of that name, all its official parts joined; or `npz:PATH`, or `folder:PATH`.

    Files are looked for in `root`, else in the folder that GLASSLAB_DATA names, else in
    ~/.cache/glasslab/data; what is not there is downloaded to it, unless `download` is False.
    Purchase, Texas and Location are never downloaded. PATH is taken as it stands, without the root.

    Raises ValueError, one line, for an unknown name, files that are missing, truncated or fail their
    checksum, NaN or infinite features, labels outside 0 .. classes - 1, a class without records.
    """
    kind, _, path = name.partition(":")
    if name in BUNDLED:
        data = BUNDLED[name]()
    elif name in FILES:
        data = FILES[name](home(root), download)
    elif kind in PATHS and path:
        data = PATHS[kind](Path(path).expanduser(), name)
    else:
        known = ", ".join([*BUNDLED, *FILES, *(f"{kind}:PATH" for kind in PATHS)])
        raise ValueError(f"name must be one of {known}; got {name!r}")
    return all_classes(data)
