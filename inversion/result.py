"""What an inversion attack returns: one image a label, what it reached, and what it cost."""

from dataclasses import dataclass

from jaxtyping import Float, Float64, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Inversion:
    """One image for each label y: x is its best iterate, `cost` and `confidence` are those of x.

    `cost` is what the attack minimised, of MI-FACE 1 - confidence + penalty. `steps` counts the steps that
    were made, also those after the best; `queries` what the image asked of an oracle, restarts included, 0
    for a white box. Before anything was answered cost and confidence are NaN. `stop_reason` is one of stall,
    confidence, literal_gamma, max_iter, diverged, budget; of label-only search also no_start, redraws,
    unbounded.
    `curve[j]` holds the confidence after (j + 1) * watch steps; it stays as it is once an image has stopped.
    """

    x: Float[Tensor, "c *d"]
    y: Int[Tensor, "c"]
    cost: Float64[Tensor, "c"]
    confidence: Float64[Tensor, "c"]
    steps: Int[Tensor, "c"]
    queries: Int[Tensor, "c"]
    stop_reason: tuple[str, ...]
    curve: Float[Tensor, "k c"] | None = None
