"""The nets that a recipe names. Raw records in, logits out, fresh weights from torch's global generator.

All but `dae` are chains of separate modules (no operation in place, no module used twice), so that hooks and
torch.func can look at every layer. Sources: AlexNet for small images, Krizhevsky et al. 2012 cut down as in
the CIFAR literature; resnet18, He et al. 2016, arXiv:1512.03385; resnet9, D. Page's DAWNBench net of 2018;
lenet, after LeCun et al. 1998; wide resnet, Zagoruyko & Komodakis 2016, arXiv:1605.07146; dae,
the net of Fredrikson et al. 2015 (MI-FACE).
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

from glasslab.layers import (
    GlobalMax,
    Residual,
    Shape,
    basic,
    conv,
    dropout,
    head,
    norm,
    stages,
    wide,
    window,
)
from glasslab.recipe import Recipe


def build(
    recipe: Recipe, shape: Shape, classes: int, scale: tuple[Tensor, Tensor] | None = None
) -> nn.Module:
    """A fresh net for records of one shape, behind `scale` = (mean, std) of the features or of the channels.

    Raises ValueError on an unknown name, a table or too small an image for a convolutional net, and on
    `hidden` or `width` for a net that has none.
    """
    net = _named(recipe, shape, classes) if isinstance(recipe.net, str) else recipe.net(shape, classes)
    return net if scale is None else nn.Sequential(Scale(*scale, shape), net)


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and spread of records, one a feature for tables, one a channel for images: a `scale`."""
    features = x.double().transpose(0, 1).flatten(1)
    return features.mean(1).float(), features.std(1, correction=0).float()


class Scale(nn.Module):
    """(x - mean) / std; where std is 0, 1 stands in. One number a feature, or one a channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor, shape: Shape) -> None:
        super().__init__()
        channels = (-1, *[1] * (len(shape) - 1))
        for name, value in (("mean", mean), ("std", torch.where(std == 0, 1.0, std))):
            self.register_buffer(name, value.float().reshape(channels) if value.ndim == 1 else value.float())

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class Dae(nn.Module):
    """Stacked denoising autoencoder with a softmax on top: `above` classifies the code of `encode`.

    The code is that of the first layer. Its decoder is kept as buffers: `forward` does not use it, so
    training the classifier leaves it as it is, and it is saved with the net. Records lie in [0, 1].
    """

    def __init__(self, shape: Shape, hidden: Shape, classes: int) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), hidden[0]), nn.Sigmoid())
        deeper = [
            m for a, b in zip(hidden, hidden[1:], strict=False) for m in (nn.Linear(a, b), nn.Sigmoid())
        ]
        self.above = nn.Sequential(*deeper, nn.Linear(hidden[-1], classes))
        self.decode = Decoder(hidden[0], shape)

    def forward(self, x: Float[Tensor, "b *d"]) -> Float[Tensor, "b c"]:
        return self.above(self.encode(x))


class Decoder(nn.Module):
    """From codes back to records in [0, 1]: sigmoid(weight h + bias), both of them buffers."""

    weight: Tensor
    bias: Tensor

    def __init__(self, code: int, shape: Shape) -> None:
        super().__init__()
        fresh = nn.Linear(code, math.prod(shape))
        self.register_buffer("weight", fresh.weight.detach())
        self.register_buffer("bias", fresh.bias.detach())
        self.shape = shape

    def forward(self, h: Float[Tensor, "b k"]) -> Float[Tensor, "b *d"]:
        return linear(h, self.weight, self.bias).sigmoid().unflatten(1, self.shape)


def softmax(recipe: Recipe, shape: Shape, classes: int) -> nn.Module:
    """Softmax regression."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes))


def mlp(recipe: Recipe, shape: Shape, classes: int) -> nn.Module:
    """Dense layers with ReLU and dropout; one hidden layer of 128 unless `hidden` says otherwise."""
    sizes = [math.prod(shape), *(recipe.hidden or (128,))]
    layers: list[nn.Module] = [nn.Flatten()]
    for a, b in zip(sizes, sizes[1:], strict=False):
        layers += [nn.Linear(a, b), nn.ReLU(), *dropout(recipe.dropout)]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], classes))


def dae(recipe: Recipe, shape: Shape, classes: int) -> nn.Module:
    """Denoising autoencoder 1000-300 with sigmoids and a softmax on top."""
    return Dae(shape, recipe.hidden or (1000, 300), classes)


def cnn(recipe: Recipe, shape: Shape, classes: int) -> nn.Module:
    """The beginning of VGG-11, half as wide: 32, 64, 128, 128 channels, 0.24 million weights."""
    w = recipe.width or 32
    return nn.Sequential(
        *conv(shape[0], w, recipe.norm, pool=True),
        *conv(w, 2 * w, recipe.norm, pool=True),
        *conv(2 * w, 4 * w, recipe.norm),
        *conv(4 * w, 4 * w, recipe.norm),
        *head(4 * w, classes, recipe.dropout),
    )


def lenet(recipe: Recipe, shape: Shape, classes: int) -> nn.Module:
    """Two convolutions of 16 and 32 channels and a dense layer of 128. The first pools 4 x 4: it is cheap."""
    w, hidden = recipe.width or 16, recipe.hidden or (128,)
    sizes = (2 * w * math.prod(side // 8 for side in shape[1:]), *hidden)
    dense = [m for a, b in zip(sizes, sizes[1:], strict=False) for m in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(
        window(shape[0], w, 3, 1, recipe.norm),
        *norm(recipe.norm, w),
        nn.MaxPool2d(4),
        nn.ReLU(),
        *conv(w, 2 * w, recipe.norm, pool=True),
        nn.Flatten(),
        *dense,
        *dropout(recipe.dropout),
        nn.Linear(sizes[-1], classes),
    )


def alexnet(recipe: Recipe, shape: Shape, classes: int) -> nn.Module:
    """Five convolutions of 64, 192, 384, 256, 256 channels; the first has windows of 11 and stride 4."""
    w = recipe.width or 64
    return nn.Sequential(
        *conv(shape[0], w, recipe.norm, side=11, stride=4, pool=True),
        *conv(w, 3 * w, recipe.norm, side=5, pool=True),
        *conv(3 * w, 6 * w, recipe.norm),
        *conv(6 * w, 4 * w, recipe.norm),
        *conv(4 * w, 4 * w, recipe.norm),
        GlobalMax(),
        *dropout(recipe.dropout),
        nn.Linear(4 * w, classes),
    )


def resnet9(recipe: Recipe, shape: Shape, classes: int) -> nn.Module:
    """64, 128, 256, 512 channels with two residual pairs of convolutions, 6.6 million weights."""
    w, kind = recipe.width or 64, recipe.norm
    return nn.Sequential(
        *conv(shape[0], w, kind),
        *conv(w, 2 * w, kind, pool=True),
        Residual(nn.Sequential(*conv(2 * w, 2 * w, kind), *conv(2 * w, 2 * w, kind))),
        *conv(2 * w, 4 * w, kind, pool=True),
        *conv(4 * w, 8 * w, kind, pool=True),
        Residual(nn.Sequential(*conv(8 * w, 8 * w, kind), *conv(8 * w, 8 * w, kind))),
        GlobalMax(),
        *dropout(recipe.dropout),
        nn.Linear(8 * w, classes),
    )


def resnet18(recipe: Recipe, shape: Shape, classes: int) -> nn.Module:
    """Four stages of two blocks, 64 to 512 channels, first window 3, no pooling: 11.2 million weights."""
    w, kind = recipe.width or 64, recipe.norm
    blocks = [basic(a, b, s, kind) for a, b, s in stages(w, (w, 2 * w, 4 * w, 8 * w), 2)]
    return nn.Sequential(*conv(shape[0], w, kind), *blocks, *head(8 * w, classes, recipe.dropout))


def wrn28_2(recipe: Recipe, shape: Shape, classes: int) -> nn.Module:
    """Wide resnet of 28 layers, twice as wide: 1.5 million weights."""
    return _wide_resnet(recipe, shape, classes, blocks=4, widen=2)


def wrn16_4(recipe: Recipe, shape: Shape, classes: int) -> nn.Module:
    """Wide resnet of 16 layers, four times as wide: 2.7 million weights."""
    return _wide_resnet(recipe, shape, classes, blocks=2, widen=4)


NETS: dict[str, Callable[[Recipe, Shape, int], nn.Module]] = {
    "softmax": softmax,
    "mlp": mlp,
    "dae": dae,
    "cnn": cnn,
    "lenet": lenet,
    "alexnet": alexnet,
    "resnet9": resnet9,
    "resnet18": resnet18,
    "wrn28-2": wrn28_2,
    "wrn16-4": wrn16_4,
}
USES = {  # the other nets are convolutional and use width and dropout
    "softmax": (),
    "mlp": ("hidden", "dropout"),
    "dae": ("hidden",),
    "lenet": ("hidden", "width", "dropout"),
}
DENSE = ("softmax", "mlp", "dae")  # take tables
LEAST = {"cnn": 4, "lenet": 8, "alexnet": 13, "resnet9": 8}  # pixels a side that leave one at the end


def _named(recipe: Recipe, shape: Shape, classes: int) -> nn.Module:
    name = str(recipe.net)
    if name not in NETS:
        raise ValueError(f"net must be one of {', '.join(NETS)} or a factory, got {name!r}")
    for field in ("hidden", "width", "dropout"):
        if getattr(recipe, field) and field not in USES.get(name, ("width", "dropout")):
            raise ValueError(f"{field} must be left out for net {name!r}, got {getattr(recipe, field)}")
    least = LEAST.get(name, 1)
    if name not in DENSE and (len(shape) != 3 or min(shape[1:]) < least):
        raise ValueError(
            f"net {name!r} needs images (channels, height, width) of {least} x {least} pixels or more, "
            f"got records of shape {shape}"
        )
    return NETS[name](recipe, shape, classes)


def _wide_resnet(recipe: Recipe, shape: Shape, classes: int, *, blocks: int, widen: int) -> nn.Module:
    w, kind = recipe.width or 16, recipe.norm
    halving = stages(w, (widen * w, 2 * widen * w, 4 * widen * w), blocks)
    return nn.Sequential(
        window(shape[0], w, 3, 1, kind),
        *(wide(a, b, stride, kind, recipe.dropout) for a, b, stride in halving),
        *norm(kind, 4 * widen * w),
        nn.ReLU(),
        *head(4 * widen * w, classes, 0.0),
    )
