"""Which recipe and which size a run takes when nobody says otherwise.

A named recipe is for one data set and one net. Sizes set defaults only: an explicit flag wins. Sources of the
paper's recipes stand beside them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from glasslab.data import Data
from glasslab.nets import NETS
from glasslab.recipe import Recipe

SizeName = Literal["quick", "standard", "paper"]


@dataclass(frozen=True)
class Size:
    """Defaults of a run; `records` caps the pool (None: all of it), `search` the queries of a search."""

    records: int | None
    shadows: int
    targets: int
    attacks: str
    search: int


SIZES: Mapping[str, Size] = MappingProxyType(
    {
        "quick": Size(2000, 64, 8, "default", 100),
        "standard": Size(None, 64, 8, "standard", 250),
        "paper": Size(None, 256, 8, "all", 2500),
    }
)

DENSE = Recipe(net="mlp", epochs=60, batch=64, lr=0.1)
CONV = Recipe(net="cnn", epochs=40, batch=128, lr=0.1, weight_decay=5e-4)
RESNET9 = replace(CONV, net="resnet9", lr=0.01)  # at 0.1 it learns nothing, of a few thousand images

RECIPES: Mapping[tuple[str, str], Recipe] = MappingProxyType(
    {
        ("digits", "mlp"): Recipe(net="mlp", epochs=100, batch=32, lr=0.1),
        ("location30", "mlp"): Recipe(net="mlp", hidden=(1024, 512), epochs=50, batch=256, lr=0.1),
        ("purchase100", "mlp"): Recipe(net="mlp", hidden=(1024, 512), epochs=60, batch=128, lr=0.05),
        ("texas100", "mlp"): Recipe(net="mlp", hidden=(1024, 512), epochs=60, batch=128, lr=0.05),
        ("mnist", "cnn"): replace(CONV, epochs=20),
        ("fashion_mnist", "cnn"): replace(CONV, epochs=10),
        ("cifar10", "cnn"): CONV,
        ("cifar100", "cnn"): CONV,
    }
)


@dataclass(frozen=True)
class Paper:
    """A recipe as its authors state it, and the queries a record that they ask."""

    recipe: Recipe
    queries: int
    source: str


_WIDE = Recipe(
    net="wrn28-2",
    epochs=100,
    batch=256,
    lr=0.1,
    momentum=0.9,
    weight_decay=5e-4,
    schedule="cosine",
    augment=("mirror", "crop"),
)
_CARLINI = Paper(_WIDE, 18, "Carlini et al. 2022, arXiv:2112.03570")

PAPERS: Mapping[tuple[str, str], Paper] = MappingProxyType(
    {("cifar10", "wrn28-2"): _CARLINI, ("cifar100", "wrn28-2"): _CARLINI}
)


def named(data: Data, net: str | None, size: SizeName) -> tuple[Recipe, int]:
    """(recipe, queries a record). `net` None: the one that is usual for these records.

    Raises ValueError for an unknown net, and for size "paper" where no paper's recipe is written.
    """
    if net is not None and net not in NETS:
        raise ValueError(f"net must be one of {', '.join(NETS)}, got {net!r}")
    if size == "paper":
        found = {key: paper for key, paper in PAPERS.items() if key[0] == data.name and net in (None, key[1])}
        if not found:
            known = ", ".join(f"{name} with {wide}" for name, wide in PAPERS)
            raise ValueError(
                f"size paper is written for {known}; got {data.name} with {net or 'no net named'}"
            )
        paper = next(iter(found.values()))
        return paper.recipe, paper.queries
    usual = net or _usual(data)
    return RECIPES.get((data.name, usual), replace(_general(usual), net=usual)), 1


def changed(recipe: Recipe, changes: str) -> Recipe:
    """The recipe with the changes of a line such as "epochs=50,lr=0.05,hidden=256+128,augment=mirror+crop".

    Raises ValueError for an unknown field, and for a value that it cannot take.

    >>> changed(Recipe(), "epochs=5,hidden=64+32").hidden
    (64, 32)
    """
    kinds = {name: kind for name, kind in get_type_hints(Recipe).items() if name != "net"}
    values: dict[str, Any] = {}
    for part in filter(None, changes.split(",")):
        name, equals, text = (piece.strip() for piece in part.partition("="))
        if not equals or name not in kinds:
            fields = ", ".join(kinds)
            raise ValueError(f"recipe must be like epochs=50,lr=0.1, of {fields}; got {part!r}")
        values[name] = _read(name, text, kinds[name])
    return replace(recipe, **values)


def _read(name: str, text: str, kind: Any) -> Any:
    """A value of the field's type. Lists are joined by `+`; nothing after `=` is the empty list."""
    if get_origin(kind) is tuple:
        return tuple(_read(name, piece, get_args(kind)[0]) for piece in filter(None, text.split("+")))
    try:
        if get_origin(kind) is Literal:
            if text not in get_args(kind):
                raise ValueError
            return text
        return kind(text)
    except ValueError:
        words = " or ".join(map(str, get_args(kind))) or kind.__name__
        raise ValueError(f"recipe {name} must be {words}, got {text!r}") from None


def _usual(data: Data) -> str:
    """A convolutional net for images of 16 pixels a side and more."""
    return "cnn" if len(data.shape) == 3 and min(data.shape[1:]) >= 16 else "mlp"


def _general(net: str) -> Recipe:
    return DENSE if net in ("softmax", "mlp", "dae") else RESNET9 if net == "resnet9" else CONV
