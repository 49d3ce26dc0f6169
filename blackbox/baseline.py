"""Attacks that need no shadow model, and thresholds for them that do.

Yeom et al. 2018, arXiv:1709.01604: correctness, loss and its two decisions. Song & Mittal 2021,
arXiv:2003.10595: confidence, entropy, modified entropy, a threshold a class. The attacker has: the target's
probabilities (a label will do for correctness), and shadow models where a threshold is wanted.
z are logits or log-probabilities, phi log-odds log(p_y / (1 - p_y)).
"""

import math
import warnings
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Generator, Tensor
from torch.nn.functional import logsigmoid

from glasslab import signals
from glasslab.checks import Floored


def random(n: int, generator: Generator) -> Float64[Tensor, "{n}"]:
    """Uniform on [0, 1): the floor of every table."""
    return torch.rand(n, generator=generator, dtype=torch.float64)


def correctness(z: Float[Tensor, "*t n c"], y: Int[Tensor, "n"]) -> Float64[Tensor, "*t n"]:
    """1 where the label is predicted, else 0; of equal logits the lowest class counts."""
    return signals.correct(_classes(z), y)


def loss(phi: Float[Tensor, "*t n"]) -> Float64[Tensor, "*t n"]:
    """Minus the cross-entropy in nats, -log(1 + exp(-phi)): members are fitted better."""
    return logsigmoid(_finite("phi", phi))


def confidence(phi: Float[Tensor, "*t n"]) -> Float64[Tensor, "*t n"]:
    """log p_y in nats. The logarithm keeps the tail; it is the loss attack by another name."""
    return loss(phi)


def entropy(z: Float[Tensor, "*t n c"]) -> Float64[Tensor, "*t n"]:
    """Minus the entropy in nats; needs no label, and is fooled where the model is sure and wrong."""
    return -signals.entropy(_classes(z), torch.zeros(z.shape[-2], dtype=torch.long, device=z.device))


def modified_entropy(z: Float[Tensor, "*t n c"], y: Int[Tensor, "n"]) -> Float64[Tensor, "*t n"]:
    """Minus the modified entropy in nats."""
    return -signals.modified_entropy(_classes(z), y)


def yeom(
    phi: Float[Tensor, "*t n"],
    shadow_phi: Float[Tensor, "m r"],
    shadow_member: Bool[Tensor, "m r"],
    *,
    rule: Literal["mean", "half_normal"] = "mean",
    published: tuple[float, float] | None = None,
) -> Float64[Tensor, "*t n"]:
    """Yeom's decisions: threshold minus loss, so that member means a score of 0 or more.

    With a and b the mean loss in and out of training, `mean` sets the threshold to a, and `half_normal` to
    where N(l; 0, a^2) = N(l; 0, b^2); that needs a < b, else it falls back to a and warns Floored. a and b
    are the shadows', or the target's own where they are `published`.
    Raises ValueError where the shadows lack members or non-members, and on a negative or infinite loss.
    """
    a, b = published or _mean_losses(shadow_phi, shadow_member)
    if not 0 <= a < math.inf or not 0 <= b < math.inf:
        raise ValueError(f"published must hold two finite losses of 0 or more, got {a} and {b}")
    if rule == "half_normal" and a >= b:
        warnings.warn(f"half_normal fell back to mean: {a:.3g} in, {b:.3g} out", Floored, stacklevel=2)
    return (_equal_density(a, b) if rule == "half_normal" and a < b else a) + loss(phi)


def per_class(
    score: Float[Tensor, "*t n"],
    y: Int[Tensor, "n"],
    shadow_score: Float[Tensor, "m r"],
    shadow_y: Int[Tensor, "r"],
    shadow_member: Bool[Tensor, "m r"],
) -> Float64[Tensor, "*t n"]:
    """score - tau_y with the `thresholds` tau: above 0 means member; the ROC slides a common offset."""
    classes = 1 + int(torch.cat([y, shadow_y]).max())
    tau = thresholds(shadow_score, shadow_y, shadow_member, classes)
    return _finite("score", score) - tau.to(score.device)[y.long()]


def thresholds(
    shadow_score: Float[Tensor, "m r"],
    shadow_y: Int[Tensor, "r"],
    shadow_member: Bool[Tensor, "m r"],
    classes: int,
) -> Float64[Tensor, "{classes}"]:
    """For each class the threshold of best balanced accuracy on the shadows, the strictest of several.

    It lies midway between two neighbouring scores, or at the largest where flagging nobody is best. A class
    without members or without non-members among the shadows' answers gets the threshold of all classes
    together, and is counted in a Floored warning.
    Raises ValueError where all classes together lack a side, and on NaN or infinite scores.
    """
    score = _finite("shadow_score", shadow_score)
    _both_sides(shadow_member)
    tau = torch.full((classes,), _threshold(score.flatten(), shadow_member.flatten()), dtype=torch.float64)
    without = 0
    for c in range(classes):
        own, inside = score[:, shadow_y == c].flatten(), shadow_member[:, shadow_y == c].flatten()
        if inside.any() and not inside.all():
            tau[c] = _threshold(own, inside)
        else:
            without += 1
    if without:
        warnings.warn(
            f"{without} of {classes} classes without both sides use the threshold of all",
            Floored,
            stacklevel=2,
        )
    return tau


def _threshold(score: Float64[Tensor, "p"], member: Bool[Tensor, "p"]) -> float:
    """Of greatest balanced accuracy, in one sort."""
    order = score.argsort(descending=True)
    value, inside = score[order], member[order].long()
    last = torch.cat([value[1:] < value[:-1], value.new_ones(1).bool()])  # of each group of equal scores
    hits, alarms = inside.cumsum(0)[last], (1 - inside).cumsum(0)[last]
    gain = hits * alarms[-1] - alarms * hits[-1]  # TPR - FPR in whole numbers, so that ties are ties
    level, first = value[last], int((gain == gain.max()).nonzero()[0])
    if gain[first] <= 0:
        return float(level[0])
    return float((level[first] + level[first + 1]) / 2)


def _mean_losses(shadow_phi: Float[Tensor, "m r"], member: Bool[Tensor, "m r"]) -> tuple[float, float]:
    """In and out of training, in nats."""
    if member.all() or not member.any():
        raise ValueError(
            f"shadow_member must hold both sides, got {int(member.sum())} of {member.numel()} in"
        )
    l = -loss(shadow_phi)
    return float(l[member].mean()), float(l[~member].mean())


def _equal_density(a: float, b: float) -> float:
    """l with N(l; 0, a^2) = N(l; 0, b^2), that is l^2 = 2 ln(b / a) / (1 / a^2 - 1 / b^2), for a < b."""
    q = a / b
    return a * math.sqrt(-2 * math.log(q) / ((1 - q) * (1 + q))) if 0 < q < 1 else a


def _both_sides(member: Bool[Tensor, "m r"]) -> None:
    if member.all() or not member.any():
        raise ValueError(
            f"shadow_member must hold both sides, got {int(member.sum())} of {member.numel()} in"
        )


def _finite(name: str, t: Float[Tensor, "*t n"]) -> Float64[Tensor, "*t n"]:
    if not t.isfinite().all():
        raise ValueError(f"{name} must be finite, got {int((~t.isfinite()).sum())} NaN or infinite values")
    return t.double()


def _classes(z: Float[Tensor, "*t n c"]) -> Float64[Tensor, "*t n c"]:
    if z.shape[-1] < 2:
        raise ValueError(f"z must hold two classes or more, got {z.shape[-1]}")
    return _finite("z", z)
