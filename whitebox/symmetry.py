"""Which hidden units of a net may change places, and where each of them is written down.

The units of a layer can be put in another order, undone by the layer that reads them: other weights, the same
function (Hecht-Nielsen 1990; Ainsworth et al. 2023, arXiv:2209.04836, section 2). One forward pass finds
these permutations, for nets of any wiring: every call of torch is followed, and each axis of each tensor
carries the stream of units that runs along it. What is added shares one stream, flattened channels become
blocks, norm layers follow their channels, running statistics too. Inputs and outputs keep their order.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from whitebox.gradients import check_eval
from whitebox.tracing import Place, Trace, Used


@dataclass(frozen=True)
class Symmetry:
    """The permutations of a net, in the order in which a forward pass meets them.

    sizes: units of each. groups: as many equal runs of neighbours, which a GroupNorm keeps together.
    scalable: only ReLU, pooling and sums lie behind these units, so that a factor can wander on.
    """

    places: tuple[Place, ...]
    sizes: dict[str, int]
    groups: dict[str, int]
    scalable: frozenset[str]


def symmetry(model: nn.Module, x: Float[Tensor, "n *d"]) -> Symmetry:
    """Which axis of which parameter and buffer carries which permutation, found by running two records.

    ValueError names the module whose forward pass calls what cannot be followed.
    """
    return trace(model, x[:2])[0]


@torch.no_grad()
def trace(model: nn.Module, x: Float[Tensor, "n *d"]) -> tuple[Symmetry, list[Used]]:
    """The symmetry, and what each dense or convolutional layer read of the units, call by call."""
    check_eval(model)
    like = next(model.parameters(), x)
    run = Trace(model)
    with run:
        z = model(x.to(like.device, like.dtype if like.is_floating_point() else x.dtype))
    if isinstance(z, Tensor):
        for label in run.of(z):
            run.streams.fix(label)
    places = run.places()
    sizes, groups, scalable = run.streams.table({place.permutation for place in places})
    return Symmetry(places, sizes, groups, scalable), run.read()


def permuted(model: nn.Module, permutations: Mapping[str, Int64[Tensor, "_"]], spec: Symmetry) -> nn.Module:
    """A copy of the model whose unit i is the model's unit permutations[name][i]: the same function.

    ValueError on names that the spec has not, and on what is no bijection in int64.
    """
    for name, p in permutations.items():
        if name not in spec.sizes:
            raise ValueError(f"permutations must be of {', '.join(spec.sizes) or 'nothing'}, got {name!r}")
        if p.dtype != torch.int64 or not p.sort().values.equal(torch.arange(spec.sizes[name]).to(p.device)):
            raise ValueError(
                f"permutations[{name!r}] must be a bijection of {spec.sizes[name]} units in int64"
            )
    out = copy.deepcopy(model)
    held = dict(chain(out.named_parameters(), out.named_buffers()))
    with torch.no_grad():
        for place in spec.places:
            if place.permutation in permutations:
                held[place.name].copy_(reordered(held[place.name], place, permutations[place.permutation]))
    return out


def reordered(t: Tensor, place: Place, p: Int64[Tensor, "u"]) -> Tensor:
    """The tensor with the units along one axis in the order p."""
    index = p[:, None] * place.block + torch.arange(place.block, device=p.device)
    return t.index_select(place.axis, index.flatten().to(t.device))


def check_shapes(model: nn.Module, reference: nn.Module, name: str) -> None:
    """ValueError where a parameter or buffer of the model, called `name`, has not the reference's shape."""
    ours, theirs = ({k: [*t.shape] for k, t in net.state_dict().items()} for net in (model, reference))
    for key in ours | theirs:
        if ours.get(key) != theirs.get(key):
            raise ValueError(
                f"{name} needs the reference's shapes, got {ours.get(key)} for {theirs.get(key)} at {key!r}"
            )
