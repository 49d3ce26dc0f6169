"""An inversion as a membership score: how near does a record lie to what was rebuilt of its label?

The attacker has: what an attack of this family rebuilt of each label, MI-FACE for one (Fredrikson, Jha &
Ristenpart 2015, doi:10.1145/2810103.2813677), so for that one the target's weights. To calibrate (Watson et
al. 2022, arXiv:2111.08440) it also has shadow models, and inverts each of them.
Score: s(x, y) = -min over inversions R of label y of distance(x, R). Calibrated: s - mean over shadows of s.
The distance is 1 - correlation, the squared distance of features, or the Euclidean distance of pixels.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn

from glasslab.oracle import forward
from inversion.result import Inversion

Distance = Literal["correlation", "features", "pixels"]
Features = Callable[[Tensor], Tensor]  # [b *d] -> [b *f]

BATCH = 128  # records whose features are asked at a time
FLAT = 1e-12  # of the length of a record: what rounding leaves of a constant one


def membership(
    found: Inversion | Sequence[Inversion],
    x: Float[Tensor, "n *d"],
    y: Int[Tensor, "n"],
    *,
    distance: Distance = "correlation",
    features: Features | None = None,
) -> Float64[Tensor, "n"]:
    """Minus the distance of each record to the inversion of its label, to the nearest if there are several.

    `correlation` is 1 - Pearson's r, in [0, 2]; a constant record or inversion has r = 0. `pixels` is in the
    unit of x. `features` takes a network that never saw a candidate, so one trained on aux. Not a judge: its
    own training records are non-members, and its features tell the truth.
    Raises ValueError for a label without an inversion, records and inversions of two shapes, NaN or infinite
    values, no network with `features` or one without, and a network in training mode.
    """
    several = [found] if isinstance(found, Inversion) else list(found)
    rebuilt, label = _joined(several, x, y)
    if distance not in ("correlation", "features", "pixels"):
        raise ValueError(f"distance must be correlation, features or pixels, got {distance!r}")
    if (features is None) == (distance == "features"):
        got = "None" if features is None else "a network"
        raise ValueError(
            f"features must be given with distance 'features' alone, got {got} with {distance!r}"
        )
    if features is not None:
        x, rebuilt = _features(features, x), _features(features, rebuilt)
    nearest = torch.full((len(y),), torch.inf, dtype=torch.float64, device=x.device)
    for image, c in zip(rebuilt, label.tolist(), strict=True):
        rows = (y == c).nonzero()[:, 0]
        away = _away(x[rows].flatten(1).double(), image.flatten().double(), distance)
        nearest[rows] = torch.minimum(nearest[rows], away)
    return -nearest


def calibrated(
    target_score: Float[Tensor, "n"],
    shadow_scores: Float[Tensor, "m n"],
    *,
    inside: Bool[Tensor, "m n"] | None = None,
) -> Float64[Tensor, "n"]:
    """The score less its mean over all shadows, or over those that lack the record where `inside` is given.

    Raises ValueError where there is no shadow to take the mean of.
    """
    if shadow_scores.shape[1:] != target_score.shape:
        raise ValueError(
            f"shadow_scores must hold {len(target_score)} records, got shape {[*shadow_scores.shape]}"
        )
    if inside is not None and inside.shape != shadow_scores.shape:
        raise ValueError(f"inside must be of shape {[*shadow_scores.shape]}, got {[*inside.shape]}")
    shadow = shadow_scores.double()
    counts = torch.ones_like(shadow).bool() if inside is None else ~inside.to(shadow.device)
    held = counts.sum(0)
    if (held == 0).any():
        kind = "shadow_scores must hold 1+ shadows" if inside is None else "inside must leave 1+ shadows out"
        raise ValueError(f"{kind} of each record, got 0 for record {int((held == 0).int().argmax())}")
    return target_score.double() - shadow.masked_fill(~counts, 0.0).sum(0) / held


def _away(x: Float64[Tensor, "k d"], image: Float64[Tensor, "d"], distance: Distance) -> Float64[Tensor, "k"]:
    if distance == "correlation":
        return 1 - (_unit(x) * _unit(image)).sum(-1)
    square = (x - image).square().sum(-1)
    return square.sqrt() if distance == "pixels" else square


def _unit(t: Float64[Tensor, "*k d"]) -> Float64[Tensor, "*k d"]:
    """Centred, of length 1; 0 where nothing but rounding is left."""
    centred = t - t.mean(-1, keepdim=True)
    length = centred.norm(dim=-1, keepdim=True)
    return torch.where(length > FLAT * t.norm(dim=-1, keepdim=True), centred / length, 0.0)


@torch.no_grad()
def _features(features: Features, x: Float[Tensor, "b *d"]) -> Float[Tensor, "b f"]:
    if isinstance(features, nn.Module):
        return forward(features, x, BATCH).flatten(1)
    return torch.cat([features(part).flatten(1) for part in x.split(BATCH)])


def _joined(several: Sequence[Inversion], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """All inversions and their labels, on the records' device."""
    if len(x) != len(y):
        raise ValueError(f"y must hold one label a record, got {len(y)} for {len(x)} records")
    if not several:
        raise ValueError("found must hold 1+ inversions, got none")
    for each in several:
        if each.x.shape[1:] != x.shape[1:]:
            raise ValueError(
                f"x must be of the inversions' shape {[*each.x.shape[1:]]}, got {[*x.shape[1:]]}"
            )
    rebuilt, label = (
        torch.cat([value.to(x.device) for value in values])
        for values in ([each.x for each in several], [each.y for each in several])
    )
    for name, t in (("x", x), ("found", rebuilt)):
        if not t.isfinite().all():
            raise ValueError(
                f"{name} must be finite, got {int((~t.isfinite()).sum())} NaN or infinite values"
            )
    without = ~torch.isin(y, label)
    if without.any():
        raise ValueError(f"found must hold an inversion of each label, got none of {int(y[without][0])}")
    return rebuilt, label
