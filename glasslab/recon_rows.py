"""The five rows that stand in every table of inversions, so that its numbers can be read.

class mean: the most an aggregate can show. one step: the floor that an iterative attack must beat. random
private image: what an extracted training image would score. other class: the inversions under the next label,
the chance level of every measure. public mean: catches measures that reward any image of the kind.
"""

import warnings
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from glasslab.checks import Floored


class Row(NamedTuple):
    """Images with the labels that they are measured under; `reference`: they were made from private data."""

    x: Float[Tensor, "n *d"]
    y: Int[Tensor, "n"]
    reference: bool


def reference_rows(
    x: Float[Tensor, "n *d"],
    y: Int[Tensor, "n"],
    one_step: Float[Tensor, "n *d"],
    private: Float[Tensor, "p *d"],
    y_private: Int[Tensor, "p"],
    aux: Float[Tensor, "a *d"],
    *,
    generator: Generator,
) -> dict[str, Row]:
    """Rows by name, in the order of the table; as many images a label as the inversions x have.

    `one_step` is the attack's own first step from the same start. Warns Floored where there is one label
    alone, hence no other class. Raises ValueError for a label without a private image, and an empty aux.
    """
    if not len(aux):
        raise ValueError("aux must hold one record or more, got none")
    means, drawn = torch.empty_like(x), torch.empty_like(x)
    labels = y.unique()
    for label in labels:
        own, mine = private[y_private == label].to(x), y == label
        if not len(own):
            raise ValueError(f"y_private must hold every label of y, got no image of label {int(label)}")
        means[mine] = own.mean(0)
        drawn[mine] = own[torch.randint(len(own), (int(mine.sum()),), generator=generator).to(own.device)]
    rows = {
        "class mean": Row(means, y, True),
        "one step": Row(one_step, y, False),
        "random private image": Row(drawn, y, True),
        "other class": Row(x, _rolled(y), False),
        "public mean": Row(aux.mean(0).to(x).expand_as(x).clone(), y, False),
    }
    if len(labels) == 1:
        warnings.warn("1 label has no other class: that row is left out", Floored, stacklevel=2)
        del rows["other class"]
    return rows


def _rolled(y: Int[Tensor, "n"]) -> Int[Tensor, "n"]:
    """Each label replaced by the next one that occurs. Rolling y itself would keep some where several
    inversions share a label."""
    labels, place = y.unique(return_inverse=True)
    return labels[(place + 1) % len(labels)]
