"""Stacked denoising autoencoder, layer by layer, then as a classifier (Vincent et al. 2008; 2010, JMLR 11).

A layer learns to undo noise on its input a: it minimises the cross-entropy between a and
sigmoid(V sigmoid(W a' + b) + c), where a' is a with a random share of its entries set to 0 (masking noise).
Its code of the clean input is the next layer's input. W and b of all layers, with a softmax on top, then
learn the labels. V and c of the first layer stay as they were: they turn codes into records.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from glasslab.data import Data, all_classes
from glasslab.nets import Dae
from glasslab.recipe import Recipe
from glasslab.train import Loss, train


class Masking(nn.Dropout):
    """Sets a random share p of the entries to 0 in training mode; the others keep their value."""

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        return super().forward(x) * (1 - self.p) if self.training else x


def trained(
    data: Data,
    *,
    generator: Generator,
    hidden: tuple[int, ...] = (1000, 300),
    corruption: float = 0.2,
    layer_epochs: int = 100,
    layer_lr: float = 0.02,
    epochs: int = 200,
    lr: float = 0.1,
    batch: int = 35,
) -> Dae:
    """A net in eval mode that classifies records in [0, 1] and has its first layer's decoder.

    Gradient steps with momentum 0.9, at `layer_lr` for `layer_epochs` a layer, then at `lr` for `epochs` on
    the labels; both rates fall to 0 along a cosine. An epoch takes half as many records as there are.
    `generator` gives the seeds of the weights, of the order of records and of the noise.
    Raises ValueError on features outside [0, 1], a class without a record, no layer or an empty one, and
    `corruption` outside [0, 1).
    """
    _check(data, hidden, corruption)
    # DIFFERS: with momentum, and the decoder has weights of its own; the paper ties V to the transpose of W.
    recipe = Recipe(batch=batch, engine="serial", precision="float32", scale="none")
    alone, tuned = replace(recipe, epochs=layer_epochs, lr=layer_lr), replace(recipe, epochs=epochs, lr=lr)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_seed(generator))
        dae = Dae(data.shape, hidden, data.classes)
    dae = dae.to(data.x.device)
    a = data.x.float().flatten(1)
    for i, layer in enumerate(_layers(dae)):
        state = _denoising(a, layer.out_features, corruption, alone, generator)
        with torch.no_grad():
            layer.load_state_dict({"weight": state["1.weight"], "bias": state["1.bias"]})
            if i == 0:
                dae.decode.load_state_dict({"weight": state["3.weight"], "bias": state["3.bias"]})
            a = layer(a).sigmoid()
    dae.load_state_dict(_learned(lambda: deepcopy(dae), tuned, data.x.float(), data.y, generator))
    return dae.eval()


def _layers(dae: Dae) -> list[nn.Linear]:
    """From the records up, without the softmax."""
    return [part for part in (*dae.encode, *dae.above[:-1]) if isinstance(part, nn.Linear)]


def _denoising(
    a: Float[Tensor, "n d"], width: int, corruption: float, recipe: Recipe, generator: Generator
) -> dict[str, Tensor]:
    """One layer's encoder (1.weight, 1.bias) and decoder (3.weight, 3.bias)."""
    d, mean = a.shape[1], a.mean(0).cpu()

    @torch.no_grad()
    def net() -> nn.Module:
        encoder, decoder = nn.Linear(d, width), nn.Linear(width, d)
        nn.init.xavier_uniform_(encoder.weight, gain=4)  # of sigmoids (Glorot & Bengio 2010)
        # DIFFERS: it starts at the mean record, units at 1/2; learning it takes most of the steps.
        encoder.bias.copy_(-encoder.weight @ mean)
        decoder.bias.copy_(mean.logit(eps=0.01) - decoder.weight.sum(1) / 2)
        return nn.Sequential(Masking(corruption), encoder, nn.Sigmoid(), decoder)

    return _learned(net, recipe, a, a, generator, loss=_cross_entropy)


def _learned(
    net: Callable[[], nn.Module],
    recipe: Recipe,
    x: Tensor,
    y: Tensor,
    generator: Generator,
    loss: Loss | None = None,
) -> dict[str, Tensor]:
    everyone = torch.ones(1, len(x)).bool()
    state = train(net, recipe, x, y, everyone, [_seed(generator)], loss=loss, device=x.device)
    return {name: t[0] for name, t in state.items()}


def _cross_entropy(z: Float[Tensor, "b d"], a: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    """Summed over a record, mean over records: a mean over both would make the steps d times as short."""
    return binary_cross_entropy_with_logits(z, a, reduction="sum") / len(z)


def _seed(generator: Generator) -> int:
    return int(torch.randint(2**31 - 1, (1,), generator=generator))


def _check(data: Data, hidden: tuple[int, ...], corruption: float) -> None:
    all_classes(data)
    low, high = float(data.x.min()), float(data.x.max())
    if low < 0 or high > 1:
        raise ValueError(f"data must hold features in [0, 1], got {low:g} to {high:g} in {data.name!r}")
    if not hidden or min(hidden) < 1:
        raise ValueError(f"hidden must give one layer or more of one unit or more, got {hidden}")
    if not 0 <= corruption < 1:
        raise ValueError(f"corruption must lie in [0, 1), got {corruption}")
