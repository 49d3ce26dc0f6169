"""The model that `glasslab invert` attacks: what it learned, what it never saw, and who judges.

Faces: one of the three nets of the literature, on 7 or 5 images a person. Other data: a target of a zoo. What
the target did not see is divided between the judge and the comparison set. Public records are a zoo's aux; of
faces, of which there is no more, the judge's share. Attacks that learn a prior get classes of their own: the
first half of the classes is the target's, the rest is public, and no one knows both.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from glasslab.data import Data
from glasslab.datasets import load
from glasslab.faces import TRAIN, face_model, per_class
from glasslab.oracle import forward
from glasslab.split import stream
from inversion.judge import Judge, judge, shares
from inversion.prior import public_split
from workbench import steps
from workbench.options import InvertOptions, ZooOptions
from workbench.recipes import changed, named
from workbench.steps import Order

FACES = "olivetti"
FACE_NETS = ("softmax", "mlp", "dae")
MIRRORED = (FACES, "fashion_mnist", "cifar10", "cifar100", "lfw")  # left and right mean the same


@dataclass(frozen=True, eq=False)
class Victim:
    """`data` holds the target's classes; `trained`, `judged`, `comparison` are ids in it, disjoint.

    `aux` is what the attacker may know of the data; `prior` public records of other classes, or None.
    """

    net: str
    model: nn.Module
    data: Data
    trained: Int[Tensor, "t"]
    judged: Int[Tensor, "e"]
    comparison: Int[Tensor, "h"]
    aux: Float[Tensor, "a *d"]
    prior: Data | None
    judge: Judge
    about: dict[str, Any]

    @property
    def unseen(self) -> Int[Tensor, "u"]:
        """Ids of what the target did not see, in rising order."""
        return torch.cat([self.judged, self.comparison]).sort().values


def victim(options: InvertOptions, *, apart: bool) -> Victim:
    """Trains what is missing; `apart` keeps half of the classes public. Raises ValueError as `load` does."""
    data = load(options.data, options.data_root)
    if len(data.shape) == 3 or not apart:
        return (_face if data.name == FACES else _of_zoo)(data, options, apart)
    raise ValueError(f"data must be images for an attack that learns a prior, got records {data.shape}")


def _face(data: Data, options: InvertOptions, apart: bool) -> Victim:
    net, seed = options.net or "softmax", options.seed
    if net not in FACE_NETS:
        raise ValueError(f"net must be one of {', '.join(FACE_NETS)} for {data.name}, got {net!r}")
    data, prior = _apart(data, apart)
    trained, _ = per_class(data.y, TRAIN[options.split], stream(seed, "faces"))
    steps.say(f"{data.name}, {net}: training on {len(trained)} images, {TRAIN[options.split]} a class")
    model = face_model(net, data, trained, seed)
    return judged(net, model, data, trained, None, prior, {"split": options.split}, seed)


def _of_zoo(data: Data, options: InvertOptions, apart: bool) -> Victim:
    if options.net == "dae":
        raise ValueError(f"net dae must come with --data {FACES}: only there its decoder is trained, got dae")
    order = steps.ordered(_zoo_options(options))
    own, prior = _apart(data, apart)
    recipe = changed(named(data, options.net, "quick")[0], options.recipe)
    zoo = steps.trained(Order(own, recipe, 1, order.settings))
    member = zoo.target_member[0]
    pool, trained = zoo.pool, member.nonzero()[:, 0]
    about = {"zoo": zoo.key, "recipe": zoo.recipe.key()}
    net = str(recipe.net)
    return judged(net, zoo.target(0), pool, trained, zoo.aux.x, prior, about, options.seed)


def _zoo_options(options: InvertOptions) -> ZooOptions:
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


def _apart(data: Data, apart: bool) -> tuple[Data, Data | None]:
    """(the target's classes, the public ones)."""
    if not apart:
        return data, None
    own, public = public_split(data, range(data.classes // 2))
    return replace(own, name=data.name), public


def judged(
    net: str,
    model: nn.Module,
    data: Data,
    trained: Int[Tensor, "t"],
    aux: Float[Tensor, "a *d"] | None,
    prior: Data | None,
    about: dict[str, Any],
    seed: int,
) -> Victim:
    """A victim whose unseen records are divided, with a trained judge; `about` goes into its own."""
    part = shares(data, trained, seed=seed)
    mirror = data.name.split(":")[0] in MIRRORED
    seat = judge(data, part.judge, trained, part.comparison, model, seed=seed, mirror=mirror)
    known = prior.x if prior is not None else data.x[part.judge] if aux is None else aux
    right = {
        name: float((forward(model, data.x[rows]).argmax(1) == data.y[rows]).double().mean())
        for name, rows in (("train", trained), ("comparison", part.comparison))
    }
    about = about | {
        "data": {"name": data.name, "digest": data.digest, "classes": data.classes},
        "trained": len(trained),
        "judged": len(part.judge),
        "comparison": len(part.comparison),
        "public": "other classes" if prior is not None else "the judge's images" if aux is None else "aux",
        "accuracy": right,
        "judge_accuracy": seat.accuracy,
        "judge_warning": seat.warning,
        "mirror": mirror,
    }
    return Victim(net, model, data, trained, part.judge, part.comparison, known, prior, seat, about)
