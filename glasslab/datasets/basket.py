"""Made-up shopping baskets: which of d articles each customer bought. No file, and as many records as asked.

An article's base rate is Beta(0.5, 2.5), so that most are rare; each class of customers shifts the logit of
each rate by N(0, shift^2), and given the class articles are bought independently. The smaller the shift, the
less a model can learn of the classes, and the more it has to remember.
"""

import torch
from jaxtyping import Float64
from scipy.special import betaincinv
from torch import Tensor

from glasslab.data import Data
from glasslab.split import stream

RARE = 1e-6  # the least base rate: a Beta of 0.5 comes as near to 0 as one likes


def basket(n: int, *, seed: int = 0, shift: float = 0.8, classes: int = 20, d: int = 200) -> Data:
    """n records of d zeros and ones; classes as equal in number as can be, in random order.

    The rates depend on the seed, shift, classes and d alone: a larger n gives more records of the same world.
    Raises ValueError for fewer records than classes, fewer than 2 classes, no article, a negative shift.
    """
    for name, value, least in (("classes", classes, 2), ("n", n, classes), ("d", d, 1), ("shift", shift, 0)):
        if not value >= least:
            raise ValueError(f"{name} must be {least} or more, got {value}")
    generator = stream(seed, "basket", n)
    y = (torch.arange(n) % classes)[torch.randperm(n, generator=generator)]
    bought = torch.rand(n, d, generator=generator) < rates(seed, shift, classes, d).float()[y]
    return Data(bought.float(), y, classes, "basket")


def rates(seed: int, shift: float, classes: int, d: int) -> Float64[Tensor, "{classes} {d}"]:
    """The probability with which each class buys each article."""
    generator = stream(seed, "basket's rates")
    u = torch.rand(d, generator=generator, dtype=torch.float64)
    base = torch.from_numpy(betaincinv(0.5, 2.5, u.numpy())).clamp(RARE, 1 - RARE)
    moved = torch.randn(classes, d, generator=generator, dtype=torch.float64)
    return (base.logit() + shift * moved).sigmoid()
