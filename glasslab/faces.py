"""The three nets of the face experiments (Fredrikson, Jha & Ristenpart 2015), and splits person by person.

softmax regression; one hidden layer of 3,000 sigmoid units; a stacked denoising autoencoder 1000-300 with a
softmax on top. The paper trains on 7 of a person's 10 images.
"""

import math
from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Generator, Tensor, nn

from glasslab import autoencoder, nets
from glasslab.data import Data, all_classes
from glasslab.recipe import Recipe
from glasslab.split import stream, subseed
from glasslab.train import train

NAMES = ("softmax", "mlp", "dae")
TRAIN = {"paper": 7, "even": 5}  # images a person to train on, of the faces' 10


def sigmoid_mlp(shape: tuple[int, ...], classes: int) -> nn.Module:
    """One hidden layer of 3,000 sigmoid units: a net for Recipe.net."""
    hidden = nn.Linear(math.prod(shape), 3000)
    nn.init.xavier_uniform_(hidden.weight, gain=4)  # of sigmoids (Glorot & Bengio 2010)
    return nn.Sequential(nn.Flatten(), hidden, nn.Sigmoid(), nn.Linear(3000, classes))


# Plain gradient descent on all records at once: `batch` becomes their number.
SOFTMAX = Recipe(
    net="softmax",
    epochs=1000,
    lr=0.02,
    momentum=0.0,
    schedule="constant",
    scale="none",
    engine="stacked",
    precision="float32",
)
MLP = Recipe(
    net=sigmoid_mlp,
    epochs=100,
    batch=35,
    lr=0.02,
    scale="none",
    engine="serial",
    precision="float32",
)


def per_class(
    y: Int[Tensor, "n"], train: int, generator: Generator
) -> tuple[Int[Tensor, "t"], Int[Tensor, "h"]]:
    """Ids of `train` records a class, drawn at random, and of the others: both in rising order.

    Raises ValueError where a class has no record more than `train`, or `train` is below 1.
    """
    if train < 1:
        raise ValueError(f"train must be 1 or more, got {train}")
    drawn = []
    for c in y.unique():
        rows = (y == c).nonzero().squeeze(1)
        if len(rows) <= train:
            raise ValueError(
                f"train must leave every class a record, got {train} of {len(rows)} in class {c}"
            )
        drawn.append(rows[torch.randperm(len(rows), generator=generator).to(rows.device)[:train]])
    member = torch.zeros(len(y), dtype=torch.bool, device=y.device)
    member[torch.cat(drawn)] = True
    return member.nonzero().squeeze(1), (~member).nonzero().squeeze(1)


def face_model(name: str, data: Data, train_index: Int[Tensor, "t"], seed: int) -> nn.Module:
    """The net called `name`, trained on data[train_index], in eval mode on the data's device.

    Raises ValueError on another name, and on a class of which train_index names no record.
    """
    if name not in NAMES:
        raise ValueError(f"name must be one of {', '.join(NAMES)}, got {name!r}")
    own = all_classes(data[train_index])
    if name == "dae":
        return autoencoder.trained(own, generator=stream(seed, "face", name))
    recipe = replace(SOFTMAX, batch=len(own)) if name == "softmax" else MLP
    return _trained(recipe, own, subseed(seed, "face", name))


def _trained(recipe: Recipe, data: Data, seed: int) -> nn.Module:
    def net() -> nn.Module:
        return nets.build(recipe, data.shape, data.classes)

    with torch.random.fork_rng(devices=[]):
        model = net()
    everyone = torch.ones(1, len(data)).bool()
    state = train(net, recipe, data.x, data.y, everyone, [seed], device=data.x.device)
    model.load_state_dict({name: t[0] for name, t in state.items()})
    return model.to(data.x.device).eval()
