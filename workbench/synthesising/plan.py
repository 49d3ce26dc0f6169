"""What `glasslab synthesize` is asked for, checked before anything is trained, and how a block is made of it.

The attacker knows what values a feature may have: kinds, and ranges as in aux. Marginals and noisy records
take the records of aux themselves, which no target has learned.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from glasslab.data import Data
from glasslab.oracle import Oracle
from glasslab.split import split, stream, subseed
from glasslab.train import pick_device
from synthesis.climb import Tick
from synthesis.features import Features, check_legal, features_of, units, with_marginals
from synthesis.hillclimb import PRESETS, hillclimb
from synthesis.marginals import marginals
from synthesis.noisy import noisy
from synthesis.synthetic import Synthetic, named
from workbench import steps
from workbench.options import SynthesizeOptions, ZooOptions
from workbench.steps import Order

USUAL = 300  # records
PLACES = ("out", "root", "data_root", "device")  # change no record
LENGTH = ("records", "budget")  # decide how many, and not which
TENSORS = ("x", "y", "confidence", "wanted", "success", "queries")
SUFFIXES = (".safetensors", ".npz")


@dataclass(frozen=True, eq=False)
class Plan:
    """n wanted records; `climbing` are hill climbing's numbers; aux is what the attacker has of the data."""

    options: SynthesizeOptions
    order: Order
    aux: Data
    n: int
    features: Features
    start: Literal["random", "marginals"] | Float[Tensor, "r *d"]
    climbing: dict[str, Any]

    @property
    def asks(self) -> bool:
        """Whether the target is asked; who asks nothing makes all records at once."""
        return self.options.method == "hillclimb" or (
            self.options.method == "marginals" and not self.options.by_class
        )

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that decides the records, but for their number and the target."""
        skip = {*PLACES, *LENGTH, "preset", "conf_min", "iter_max"}
        said = {name: value for name, value in asdict(self.options).items() if name not in skip}
        return said | self.climbing

    def named(self, zoo: str) -> str:
        """The method with a digest of its settings, of records to start from, and of the target."""
        return named(self.options.method, self.settings | {"start": self.start, "zoo": zoo})

    @property
    def learned(self) -> Data | None:
        """Real records that went into it: of aux, or of the user's file."""
        if isinstance(self.start, Tensor):
            return replace(self.aux, x=self.start, y=torch.zeros(len(self.start), dtype=torch.long))
        return None if self.options.method == "hillclimb" and self.start == "random" else self.aux

    def labels(self, ids: Int[Tensor, "b"]) -> Int[Tensor, "b"]:
        """One class after the other and round again, so that a longer run begins as a shorter one."""
        return ids % self.aux.classes

    def block(self, oracle: Oracle, ids: Int[Tensor, "b"], number: int, tick: Tick) -> Synthetic:
        """The wanted records `ids`; each block has a draw of its own."""
        options, draw = self.options, stream(self.options.seed, "synthesize", number)
        if options.method == "marginals":
            asked = oracle if self.asks else None
            return marginals(self.aux, len(ids), oracle=asked, by_class=options.by_class, generator=draw)
        if options.method == "noisy":
            order = torch.randperm(len(self.aux), generator=stream(options.seed, "synthesize", "noisy"))
            return _whole(noisy(self.aux[order[ids]], options.rate, generator=draw))
        made = hillclimb(
            oracle,
            self.labels(ids).to(pick_device(options.device)),
            self.features,
            shape=self.aux.shape,
            change=options.change,
            start=self.start,
            seed=subseed(options.seed, "synthesize", number),
            tick=tick,
            **self.climbing,
        )
        return replace(made, **{name: getattr(made, name).cpu() for name in TENSORS})


def planned(options: SynthesizeOptions) -> Plan:
    """Raises ValueError for what cannot be, before anything is trained."""
    steps.masks_of(options.mask)
    order = steps.ordered(_zoo(options))
    aux = order.data[split(order.data, options.seed).aux]
    _check(options, aux)
    n = options.records or (min(USUAL, len(aux)) if options.method == "noisy" else USUAL)
    if options.method == "marginals" and options.budget is not None and options.budget < n:
        raise ValueError(f"budget must be {n}+, a query a record, for marginals, got {options.budget}")
    features = features_of(aux)
    plan = Plan(options, order, aux, n, features, "random", {})
    if options.method != "hillclimb":
        return plan
    climbing, u = _climbing(options), int(units(features).max()) + 1
    if climbing.get("k_max", 0) > u:
        raise ValueError(
            f"preset {options.preset} needs {climbing['k_max']}+ features, got {u} in {options.data}"
        )
    start: Any = options.start
    if start == "marginals":
        features = with_marginals(features, aux)
    elif start != "random":
        start = _file(Path(start), aux.shape)
        check_legal(features, start.flatten(1), "start")
    return Plan(options, order, aux, n, features, start, climbing)


def _zoo(options: SynthesizeOptions) -> ZooOptions:
    return ZooOptions(
        data=options.data,
        net=options.net,
        shadows=0,
        targets=1,
        recipe=options.recipe,
        seed=options.seed,
        device=options.device,
        root=options.root,
        data_root=options.data_root,
    )


def _climbing(options: SynthesizeOptions) -> dict[str, Any]:
    """A flag before the preset, the preset before the usual."""
    found: dict[str, Any] = {"conf_min": 0.2, "iter_max": 1000}
    found |= dict(PRESETS[options.preset]) if options.preset else {}
    flags = {"conf_min": options.conf_min, "iter_max": options.iter_max}
    return found | {name: value for name, value in flags.items() if value is not None}


def _check(options: SynthesizeOptions, aux: Data) -> None:
    method = options.method
    for name in ("records", "budget", "iter_max"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}")
    for name, share in (("conf_min", options.conf_min), ("rate", options.rate)):
        if share is not None and not 0 <= share <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {share:g}")
    usual = SynthesizeOptions()
    only: dict[str, tuple[str, ...]] = dict.fromkeys(
        ("conf_min", "iter_max", "preset", "start", "change"), ("hillclimb",)
    )
    only |= {"by_class": ("marginals",), "rate": ("noisy",), "budget": ("hillclimb", "marginals")}
    for name, methods in only.items():
        if method not in methods and getattr(options, name) != getattr(usual, name):
            raise ValueError(f"{name} must be left out for {method}, got {getattr(options, name)}")
    if method == "noisy" and options.records is not None and options.records > len(aux):
        raise ValueError(f"records must be at most aux's {len(aux)} for noisy, got {options.records}")
    if options.by_class and options.budget is not None:
        raise ValueError(f"budget must be left out for by_class, which asks nothing, got {options.budget}")
    if options.by_class and 0 in aux.counts:
        raise ValueError(f"aux must hold every class for by_class, got none of class {aux.counts.index(0)}")


def _file(path: Path, shape: tuple[int, ...]) -> Float[Tensor, "r *d"]:
    """The records x of a file; nothing in it is unpickled."""
    if not path.is_file() or path.suffix not in SUFFIXES:
        raise ValueError(
            f"start must be random, marginals or a file {' or '.join(SUFFIXES)}, got {str(path)!r}"
        )
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as held:
                x = torch.from_numpy(held["x"]).float()
        else:
            x = load_file(path)["x"].float()
    except (KeyError, ValueError, TypeError, BadZipFile, SafetensorError) as error:
        raise ValueError(f"start must hold records x, got {path}: {error}") from None
    if tuple(x.shape[1:]) != shape or not len(x):
        raise ValueError(f"start must hold records of shape {[*shape]}, got {[*x.shape]} in {path}")
    return x


def _whole(data: Data) -> Synthetic:
    """Records of which none failed and nobody asked."""
    every, nothing = torch.ones_like(data.y), torch.full(data.y.shape, torch.nan, dtype=torch.float64)
    reason, method = ("sampled",) * len(data), data.name.removeprefix("synthetic:")
    return Synthetic(data.x, data.y, nothing, data.y, every.bool(), 0 * every, reason, method)
