"""What the command line can say; light, so that `--help` is fast. Fields' comments are their help."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

SizeName = Literal["quick", "standard", "paper"]
Evaluate = Literal["targets", "leave-one-out"]
By = tyro.conf.arg  # a flag without a fixed default says where it comes from

_size = By(metavar="N", help_behavior_hint="(default: the size's)")
_root = By(metavar="DIR", help_behavior_hint="(default: $GLASSLAB_ZOO, else ./zoo)")
_data_root = By(metavar="DIR", help_behavior_hint="(default: $GLASSLAB_DATA, else a cache)")
Root = Annotated[Path | None, _root]
DataRoot = Annotated[Path | None, _data_root]


@dataclass(frozen=True)
class ZooOptions:
    """Which models, trained on what. What is on disk already is not trained again."""

    data: str = "digits"
    """A data set's name (digits, location30, fashion_mnist, cifar10, ...), npz:PATH or folder:PATH."""
    net: Annotated[str | None, By(metavar="NAME", help_behavior_hint="(default: usual for the data)")] = None
    """softmax, mlp, dae, cnn, alexnet, resnet9, resnet18, wrn28-2 or wrn16-4."""
    size: SizeName = "quick"
    """Defaults of the next four, of --attacks and of --search: quick takes 2,000 candidates and some minutes,
    standard the whole pool and all attacks that are not costly, paper a published recipe with 256 shadows."""
    shadows: Annotated[int | None, _size] = None
    """The attacker's own models; an even number."""
    targets: Annotated[int | None, _size] = None
    """Models under attack."""
    records: Annotated[int | None, _size] = None
    """Candidates at most; each is a member of about half of the models."""
    recipe: Annotated[str, By(metavar="CHANGES", help_behavior_hint="(default: none)")] = ""
    """Changes to the usual recipe, such as epochs=50,lr=0.05,hidden=256+128."""
    seed: int = 0
    """Decides split, membership, weights and intervals."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    root: Root = None
    """Folder of zoos."""
    data_root: DataRoot = None
    """Folder of data files."""


@dataclass(frozen=True)
class AttackOptions:
    """How the attacker may ask, and who is judged."""

    queries: Annotated[int | None, By(metavar="K", help_behavior_hint="(default: 1, paper: its own)")] = None
    """Versions of a record that are asked for: 1, 2, 18, 50 or 162; tables 1."""
    mask: Annotated[tuple[str, ...], By(metavar="MASK", help_behavior_hint="(default: none)")] = ()
    """What the interface hides, from left to right: temperature:5 round_to:3 top_k:3 noise:0.2."""
    search: Annotated[int | None, By(metavar="N", help_behavior_hint="(default: the size's)")] = None
    """Queries a record that an attack may spend on a search around it (boundary, noise, merlin, morgan)."""
    evaluate: Evaluate = "targets"
    """Models outside the shadows' design, or each shadow in its turn."""
    out: Annotated[Path | None, By(metavar="DIR", help_behavior_hint="(default: runs/TIME-DATA-NET)")] = None
    """Folder for the results."""
