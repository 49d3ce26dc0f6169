"""What one model says about records: the rows of the arrays that a zoo keeps."""

import warnings
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Float32, Float64, Int
from torch import Tensor, nn

from glasslab import masks
from glasslab.augment import queries as grid
from glasslab.checks import Floored
from glasslab.oracle import answer, forward, log_answer

Signal = Callable[[nn.Module, Tensor, Tensor], Tensor]  # (model, x, y) -> [n] or [n, L]
AT_ONCE = 8192  # inputs held at a time, all queries of a record counted


def logits(model: nn.Module, x: Float[Tensor, "n *d"], queries: int) -> Float32[Tensor, "n {queries} c"]:
    """Of each record and each of its queries, on the CPU."""
    parts = []
    for some in x.split(max(AT_ONCE // queries, 1)):
        asked = grid(some, queries)
        z = forward(model, asked.flatten(0, 1))
        parts.append(z.unflatten(0, asked.shape[:2]).transpose(0, 1))
    return torch.cat(parts).cpu()


def masked(z: Float[Tensor, "n k c"], mask: Sequence[masks.Mask]) -> Float64[Tensor, "n k c"]:
    """Log-probabilities behind the masks, as an attacker reads them; float64, so that ties stay ties."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Floored)  # said of the target's answers, which the same floor cuts
        return log_answer(answer(z, mask), masks.floor(mask))


def values(
    signal: Signal, model: nn.Module, x: Float[Tensor, "n *d"], y: Int[Tensor, "n"]
) -> Float64[Tensor, "L n"]:
    """A signal of the caller's own, on the CPU. ValueError unless it gives [n] or [n, L]."""
    seen = signal(model, x, y).detach()
    if seen.ndim not in (1, 2) or len(seen) != len(y):
        raise ValueError(f"signal must give [n] or [n, L] for n = {len(y)} records, got {tuple(seen.shape)}")
    return seen.double().cpu().reshape(len(y), -1).T.contiguous()
