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
    """softmax, mlp, dae, cnn, lenet, alexnet, resnet9, resnet18, wrn28-2 or wrn16-4."""
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
    """What the interface hides, left to right: temperature:5 round_to:3 round_by:.05 top_k:3 noise:.2."""
    search: Annotated[int | None, By(metavar="N", help_behavior_hint="(default: the size's)")] = None
    """Queries a record that an attack may spend on a search around it (boundary, noise, merlin, morgan)."""
    shadow_data: str = "real"
    """What shadows learn (compare): real records, or those that an attacker makes: hillclimb, marginals or
    noisy:0.1. Then each target has shadows of its own, 16 unless --shadows says otherwise."""
    evaluate: Evaluate = "targets"
    """Models outside the shadows' design, or each shadow in its turn."""
    out: Annotated[Path | None, By(metavar="DIR", help_behavior_hint="(default: runs/TIME-DATA-NET)")] = None
    """Folder for the results."""


Gradient = Literal["autograd", "difference", "nes"]
Start = Literal["zero", "grey", "public_mean", "noise"]
_auto = By(metavar="N", help_behavior_hint="(default: the attack's)")


@dataclass(frozen=True)
class InvertOptions:
    """Whose model is inverted, and how."""

    data: str = "digits"
    """digits, olivetti, fashion_mnist, ..., npz:PATH or folder:PATH."""
    net: Annotated[str | None, By(metavar="NAME", help_behavior_hint="(default: usual for the data)")] = None
    """The target's net; of faces softmax, mlp or dae."""
    attack: str = "miface"
    """miface, deepinversion, gmi, kedmi, plg-mi, label-only, joined by commas."""
    gradient: Gradient = "autograd"
    """Where MI-FACE's gradient comes from: the weights, or answers by differences or NES."""
    labels: str = "all"
    """Labels to rebuild, joined by commas."""
    steps: Annotated[int | None, _auto] = None
    """Steps at most; MI-FACE takes 5,000 with the weights, 500 with NES, 50 with differences."""
    rate: float = 0.1
    """MI-FACE's step size."""
    confidence: float = 0.99
    """MI-FACE stops an image at this probability of its label."""
    literal_gamma: Annotated[float | None, By(metavar="G", help_behavior_hint="(default: none)")] = None
    """Stop where the cost is at most this, as the algorithm is printed; replaces --confidence."""
    start: Annotated[Start | None, By(help_behavior_hint="(default: public_mean with ReLU, else zero)")] = (
        None
    )
    """Where MI-FACE starts."""
    process_every: int = 50
    """Steps between two clean-ups of an autoencoder's candidate; 1 is literal, 0 none."""
    pairs: int = 50
    """Antithetic pairs of directions a step of NES: twice as many queries."""
    width: float = 0.01
    """How far estimated gradients look: h of differences, sigma of NES."""
    basis: int = 100
    """Low frequencies along which gradients of images are estimated; 0: all pixels."""
    mask: Annotated[tuple[str, ...], By(metavar="MASK", help_behavior_hint="(default: none)")] = ()
    """What the interface hides from those who ask: temperature:5 round_to:3 round_by:.05 top_k:3 noise:.2."""
    budget: Annotated[int | None, By(metavar="Q", help_behavior_hint="(default: no limit)")] = None
    """Queries in all that an attack may ask."""
    split: Literal["paper", "even"] = "paper"
    """Of faces: 7 images a person to train on, or 5."""
    recipe: Annotated[str, By(metavar="CHANGES", help_behavior_hint="(default: none)")] = ""
    """Changes to the usual recipe, such as epochs=50,label_smoothing=0.1; not of faces."""
    faces: Literal["few", "all"] = "few"
    """Faces that pictures show: 8 at most, or all."""
    seed: int = 0
    """Decides split, weights, starts and draws."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    root: Root = None
    """Folder of zoos."""
    data_root: DataRoot = None
    """Folder of data files."""
    out: Annotated[
        Path | None, By(metavar="DIR", help_behavior_hint="(default: runs/TIME-invert-DATA-NET)")
    ] = None
    """Folder for the results; attacks that are finished there are not run again."""


_preset = By(metavar="NAME", help_behavior_hint="(default: none)")
_conf = By(metavar="P", help_behavior_hint="(default: the preset's, else 0.2)")
_most = By(metavar="Q", help_behavior_hint="(default: the preset's, else 1000)")
_wanted = By(metavar="N", help_behavior_hint="(default: 300, of noisy no more than there are real ones)")
_budget = By(metavar="Q", help_behavior_hint="(default: no limit)")
_made = By(metavar="DIR", help_behavior_hint="(default: runs/TIME-synthesize-DATA-NET)")


@dataclass(frozen=True)
class SynthesizeOptions:
    """Whose model is asked, and how records are made."""

    data: str = "digits"
    """A data set's name (digits, location30, fashion_mnist, cifar10, ...), npz:PATH or folder:PATH."""
    net: Annotated[str | None, By(metavar="NAME", help_behavior_hint="(default: usual for the data)")] = None
    """The target's net: softmax, mlp, cnn, alexnet, resnet9, resnet18, wrn28-2 or wrn16-4."""
    method: Literal["hillclimb", "marginals", "noisy"] = "hillclimb"
    """Climb on the target's answers, draw each feature from its marginal in aux, or put noise on aux."""
    records: Annotated[int | None, _wanted] = None
    """Wanted records, of each class alike. A larger number later goes on in the same folder."""
    conf_min: Annotated[float | None, _conf] = None
    """hillclimb: a record is returned only above this probability of its class."""
    iter_max: Annotated[int | None, _most] = None
    """hillclimb: queries a record at most."""
    budget: Annotated[int | None, _budget] = None
    """Queries in all at most, those of earlier runs in the folder included."""
    preset: Annotated[Literal["shokri2017_purchase"] | None, _preset] = None
    """hillclimb: shokri2017_purchase, for 600 binary features, after Shokri et al. 2017, from memory and not
    checked against the paper; iter_max is ours."""
    start: Annotated[str, By(metavar="random|marginals|FILE")] = "random"
    """hillclimb: begin at uniform records, at draws from aux's marginals (then changes are drawn from them
    too), or at the records x of a file, .safetensors or .npz."""
    change: Literal["flip", "resample"] = "flip"
    """hillclimb: turn binary features, or redraw them as all others are."""
    rate: float = 0.1
    """noisy: share of the features that are changed."""
    by_class: bool = False
    """marginals: from the marginals of each class, a much stronger attacker, which asks nothing."""
    mask: Annotated[tuple[str, ...], By(metavar="MASK", help_behavior_hint="(default: none)")] = ()
    """What the interface hides: temperature:5 round_to:3 round_by:0.05 top_k:3 noise:0.2."""
    reveals: Literal["probabilities", "labels"] = "probabilities"
    """What the target answers."""
    recipe: Annotated[str, By(metavar="CHANGES", help_behavior_hint="(default: none)")] = ""
    """Changes to the target's usual recipe, such as epochs=50,lr=0.05."""
    seed: int = 0
    """Decides split, target and draws."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    root: Root = None
    """Folder of zoos."""
    data_root: DataRoot = None
    """Folder of data files."""
    out: Annotated[Path | None, _made] = None
    """Folder for the results; the same command with it goes on where it was stopped."""
