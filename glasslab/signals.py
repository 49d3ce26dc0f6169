"""What a model's output says about one record: logits in, one number out, in its natural sign.

z are logits or log-probabilities (logits up to a constant). All is float64 and in log space: finite logits,
even of 1e4, give finite signals, and no tail is cut. Sources: phi is the logit scaling of Carlini et al.
2022, arXiv:2112.03570; modified entropy is that of Song & Mittal 2021, arXiv:2003.10595.
"""

import warnings

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor
from torch.nn.functional import one_hot

from glasslab.checks import Floored


def loss(z: Float[Tensor, "*m n c"], y: Int[Tensor, "n"]) -> Float64[Tensor, "*m n"]:
    """Cross-entropy -log p_y in nats, 0 or more; equals log(1 + exp(-phi)). Lower = member."""
    return -_own(_log_p(z), y)


def confidence(z: Float[Tensor, "*m n c"], y: Int[Tensor, "n"]) -> Float64[Tensor, "*m n"]:
    """Probability of the true class."""
    return (-loss(z, y)).exp()


def confidence_max(z: Float[Tensor, "*m n c"], y: Int[Tensor, "n"]) -> Float64[Tensor, "*m n"]:
    """Highest probability; the label is not used."""
    return _log_p(z).amax(-1).exp()


def phi(z: Float[Tensor, "*m n c"], y: Int[Tensor, "n"]) -> Float64[Tensor, "*m n"]:
    """Log-odds log(p_y / (1 - p_y)) in nats.

    >>> phi(torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([0]))  # 2 - ln 2
    tensor([1.3069], dtype=torch.float64)
    """
    z = z.double()
    return _own(z, y) - z.masked_fill(_is(y, z), -torch.inf).logsumexp(-1)


def hinge(z: Float[Tensor, "*m n c"], y: Int[Tensor, "n"]) -> Float64[Tensor, "*m n"]:
    """Logit of the true class less the highest other one, in nats."""
    z = z.double()
    return _own(z, y) - z.masked_fill(_is(y, z), -torch.inf).amax(-1)


def entropy(z: Float[Tensor, "*m n c"], y: Int[Tensor, "n"]) -> Float64[Tensor, "*m n"]:
    """Entropy of the probabilities in nats, 0 log 0 = 0; the label is not used. Lower = member."""
    log_p = _log_p(z)
    return -(log_p.exp() * log_p).masked_fill(log_p == -torch.inf, 0.0).sum(-1)


def modified_entropy(z: Float[Tensor, "*m n c"], y: Int[Tensor, "n"]) -> Float64[Tensor, "*m n"]:
    """-(1 - p_y) log p_y - sum over i != y of p_i log(1 - p_i), in nats. Lower = member.

    >>> p = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64)
    >>> modified_entropy(p.log(), torch.tensor([0])), modified_entropy(p.log(), torch.tensor([1]))
    (tensor([0.1622], dtype=torch.float64), tensor([2.1409], dtype=torch.float64))
    """
    log_p = _log_p(z)
    log_rest = _log_rest(z, log_p)
    others = (log_p.exp() * log_rest).masked_fill(_is(y, z), 0.0).sum(-1)
    return -_own(log_rest, y).exp() * _own(log_p, y) - others


def correct(z: Float[Tensor, "*m n c"], y: Int[Tensor, "n"]) -> Float64[Tensor, "*m n"]:
    """1 where the argmax is the label, else 0; of equal logits the lowest class counts."""
    return (z.argmax(-1) == y).double()


SIGNALS = {
    f.__name__: f for f in (loss, confidence, confidence_max, phi, hinge, entropy, modified_entropy, correct)
}


def bounded(phi: Float64[Tensor, "*n"], limit: float = 700.0) -> Float64[Tensor, "*n"]:
    """phi within +-limit nats, beyond which float64 probabilities end; warns `Floored` with the number cut.

    For log-odds that are read off probabilities, and for those of the shadows that stand beside them.
    """
    cut = int((phi.abs() > limit).sum())
    if cut:
        warnings.warn(f"{cut} of {phi.numel()} log-odds clamped at +-{limit:g}", Floored, 2)
    return phi.clamp(-limit, limit)


def _own(z: Float[Tensor, "*m n c"], y: Int[Tensor, "n"]) -> Float[Tensor, "*m n"]:
    """The true class's entry of each row."""
    return z.gather(-1, y.long().expand(z.shape[:-1])[..., None]).squeeze(-1)


def _is(y: Int[Tensor, "n"], z: Float[Tensor, "*m n c"]) -> Bool[Tensor, "n c"]:
    return one_hot(y.long(), z.shape[-1]).bool()


def _log_p(z: Float[Tensor, "*m n c"]) -> Float64[Tensor, "*m n c"]:
    """Log-softmax that keeps the tail at p near 1 too: its largest entry is -log1p(the sum of the others)."""
    z = z.double()
    top = z.max(-1, keepdim=True)
    below = z - top.values
    others = below.exp().scatter(-1, top.indices, 0.0).sum(-1, keepdim=True)
    return below - others.log1p()


def _log_rest(z: Float[Tensor, "*m n c"], log_p: Float64[Tensor, "*m n c"]) -> Float64[Tensor, "*m n c"]:
    """log(1 - p) of each class: only the largest p can be near 1, and 1 - p is then the sum of the others."""
    top = log_p.argmax(-1, keepdim=True)
    others = log_p.scatter(-1, top, -torch.inf).logsumexp(-1, keepdim=True)
    return (-log_p.exp()).log1p().scatter(-1, top, others)
