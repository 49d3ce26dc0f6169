"""Attacks layer by layer: the net is cut at each, or its weights' gradients are looked at one layer at a time
(Leino & Fredrikson 2020, arXiv:1906.11798; Rezaei & Liu 2021, arXiv:2005.13702).
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from glasslab.game import game
from glasslab.split import stream
from glasslab.zoo import Zoo
from whitebox.cut import check_slice
from whitebox.gradients import norms, owners
from whitebox.proxy import bayes_wb
from workbench.experiments.runs import about, numbers, sized
from workbench.learned_weights import shares
from workbench.options import ZooOptions
from workbench.steps import Order

PROXIES = 5


def layers(zoo: Zoo, *, proxies: int = PROXIES, seed: int = 0) -> pd.DataFrame:
    """One row an (attack, layer), targets pooled: AUC, TPR at 1 and 0.1 % FPR with intervals.

    `bayes-wb`: cut at the output of that layer, all above it learned anew by the proxies. `gradnorm`: minus
    the log length of the loss's gradient in the layer's weights, or in the record ("input"). Layers that
    information flows around, and the last one, above which there is nothing, have no `bayes-wb`.
    Raises ValueError as `bayes_wb` does, such as for a class that aux lacks.
    """
    truth, scores = zoo.target_member, dict[tuple[str, str], list[Tensor]]()
    for a in range(len(truth)):
        held = game(zoo, a, weights=True)
        model, draw = zoo.target(a), stream(seed, "layers", a)
        rest = shares(held, stream(seed, "layers").initial_seed())[1]
        for name in _cuts(model, held.x[:8]):
            s = bayes_wb(model, held.x, held.y, rest, held.recipe, draw, cut=name, proxies=proxies).cpu()
            scores.setdefault(("bayes-wb", name), []).append(s)
        found = norms(model, held.x, held.y, of="loss")
        for k, name in enumerate(found.layers):
            scores.setdefault(("gradnorm", name), []).append(-found.log_layer[:, k].cpu())
        scores.setdefault(("gradnorm", "input"), []).append(-found.log_input.cpu())
    rows: list[dict[str, Any]] = []
    for (attack, layer), each in scores.items():
        rows.append({"attack": attack, "layer": layer} | numbers(torch.stack(each), truth, seed))
    frame = pd.DataFrame(rows)
    frame.attrs["zoos"] = about({zoo.data.name: zoo})
    return frame


def _cuts(model: nn.Module, x: Tensor) -> list[str]:
    """Layers that a net can be cut behind, but for the last one to run."""
    fit = []
    for name in owners(model)[:-1]:
        try:
            check_slice(model, name, x)
        except ValueError:  # a branch of a residual sum
            continue
        fit.append(name)
    return fit


def orders(options: ZooOptions, also: Sequence[str]) -> dict[str, Order]:
    return {options.data: sized(options, shadows=2, targets=8)}


def short(frame: pd.DataFrame) -> pd.DataFrame:
    """Numbers without their intervals."""
    return frame[["attack", "layer", "auc", "tpr_at_1pct", "tpr_at_0.1pct", "n_neg"]]
