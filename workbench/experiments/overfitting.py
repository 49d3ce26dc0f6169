"""Overfitting and the shadow attack, over the number of classes (Table II of Shokri et al. 2017,
arXiv:1610.05820).

The paper clusters one data set into 2, 10, 20, 50 and 100 classes. Here a data set has its classes already,
and fewer are made by merging: k-means over the class means joins those that look alike. The records stay
the same, only the task grows finer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd
import torch
from jaxtyping import Bool, Float64, Int
from sklearn.cluster import KMeans
from torch import Tensor

from glasslab.data import Data
from glasslab.per_class import class_means, per_class
from glasslab.zoo import Zoo
from workbench.attacks import chosen
from workbench.experiments.runs import Row, about, seen, sized
from workbench.options import ZooOptions
from workbench.steps import Order

CLASSES = (2, 5, 10, 20, 30, 50, 100)


def overfitting(zoos: Mapping[str, Zoo], *, attack: str = "shadow", seed: int = 0) -> pd.DataFrame:
    """One row a zoo: classes, accuracies of its targets, precision and recall at the attack's own decision.

    Members and non-members of each class weigh the same, classes weigh as their records do: the baseline of
    precision is 1/2. `_sd` is the spread over targets. A precision is undefined (NaN) where nothing is
    flagged; `undefined` counts such classes. Raises ValueError for an attack without a decision of its own.
    """
    rows = []
    for name, zoo in zoos.items():
        flagged, truth = decided(zoo, attack, seed)
        y, c, right = zoo.pool.y, zoo.data.classes, zoo.accuracy()
        each = pd.DataFrame([precision_recall(f, m, y, c) for f, m in zip(flagged, truth, strict=True)])
        own = per_class(flagged, truth, y, c)
        row: Row = {"zoo": name, "data": zoo.data.name, "classes": c, "attack": attack}
        row |= {"train_accuracy": right["train"], "test_accuracy": right["test"], "gap": right["gap"]}
        row |= precision_recall(flagged, truth, y, c)
        row |= {"precision_sd": each["precision"].std(), "recall_sd": each["recall"].std()}
        row |= {"undefined": int(own.precision.isnan().sum()), "few": int(own.few.sum())}
        rows.append(row | {"candidates": len(zoo.pool), "targets": len(truth)})
    frame = pd.DataFrame(rows)
    frame.attrs["zoos"] = about(zoos)
    return frame


def decided(zoo: Zoo, attack: str, seed: int) -> tuple[Bool[Tensor, "t n"], Bool[Tensor, "t n"]]:
    """Whom the attack's own decision flags, and the truth."""
    decision = chosen(attack)[attack].decision
    if decision is None:
        raise ValueError(f"attack must have a decision of its own (as shadow has), got {attack!r}")
    held = seen(zoo, [attack], seed=seed)
    return held.scores[attack] > decision, held.truth


def precision_recall(
    flagged: Bool[Tensor, "*t n"], member: Bool[Tensor, "*t n"], y: Int[Tensor, "n"], classes: int
) -> dict[str, float]:
    """Over all classes that have members and non-members, each with both sides at equal weight."""
    tpr, fpr = class_means(flagged.double(), member, y, classes)
    share = torch.bincount(y.cpu().long(), minlength=classes).double()
    both = ~(tpr.isnan() | fpr.isnan())
    hits, alarms = (float((share * side)[both].sum() / share[both].sum()) for side in (tpr, fpr))
    return {"precision": hits / (hits + alarms) if hits + alarms else float("nan"), "recall": hits}


def merged(data: Data, classes: int, seed: int) -> Data:
    """The same records in fewer classes: those whose means k-means puts together become one.

    Raises ValueError unless 2 <= classes <= data.classes.
    """
    if not 2 <= classes <= data.classes:
        raise ValueError(f"classes must lie in 2 .. {data.classes}, got {classes}")
    if classes == data.classes:
        return data
    group = _groups(_class_means(data), classes, seed)
    return replace(data, y=group[data.y.long()], classes=classes, name=f"{data.name}, {classes} classes")


def _class_means(data: Data) -> Float64[Tensor, "c d"]:
    flat = data.x.flatten(1)
    return torch.stack([flat[data.y == c].double().mean(0) for c in range(data.classes)])


def _groups(mean: Float64[Tensor, "c d"], k: int, seed: int) -> Int[Tensor, "c"]:
    """Numbered by the lowest class of each, so that the same groups have the same labels."""
    label = KMeans(k, n_init=10, random_state=seed).fit_predict(mean.numpy()).tolist()
    place = {group: i for i, group in enumerate(dict.fromkeys(label))}
    if len(place) < k:
        raise ValueError(f"classes must have {k} different means to be merged into {k}, got {len(place)}")
    return torch.tensor([place[group] for group in label])


def orders(options: ZooOptions, also: Sequence[str]) -> dict[str, Order]:
    """One zoo a number of classes, the data set's own last."""
    order = sized(options, shadows=16, targets=8)
    wanted = sorted({c for c in CLASSES if c < order.data.classes} | {order.data.classes})
    return {
        f"{options.data}, {c} classes": replace(order, data=merged(order.data, c, options.seed))
        for c in wanted
    }


def short(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[["classes", "train_accuracy", "test_accuracy", "gap", "precision", "precision_sd", "recall"]]
