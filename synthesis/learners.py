"""What learners make of synthetic records: can they tell them from real ones, and do they learn the task?

two_sample: the accuracy of a classifier that tells synthetic from real, on records it did not learn from;
.5 = alike. Logistic regression sees shifted features alone, boosted trees also what features do together.
transfer: one net learns from synthetic records, one from as many real ones, and each is tested on both.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from glasslab import nets
from glasslab.data import Data
from glasslab.intervals import clopper_pearson
from glasslab.oracle import forward
from glasslab.recipe import Recipe
from glasslab.split import stream, subseed
from glasslab.train import resolve, train
from synthesis.closeness import chosen, some

FOLDS = 5
# Folds share what they learn from, so that hits spread more than those of independent tries: by how much the
# variance of their mean grows is the correction of Nadeau and Bengio 2003, Machine Learning 52.
WIDER = 1 + FOLDS / (FOLDS - 1)
TREES = 50
WIDE = 500  # features, at most, that trees are grown on
RECIPE = Recipe(net="mlp", hidden=(128,), epochs=30, batch=32, optimiser="adam", lr=1e-3, precision="float32")


class TooFew(ValueError):
    """Too few records to say anything; the text says what is needed and what came."""


@dataclass(frozen=True)
class Share:
    """A share of n tries with its 95 % interval (Clopper-Pearson), for the net or the folds at hand."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True)
class Told:
    """How well two classifiers tell synthetic from real; each Share is of twice `each` records."""

    logistic: Share
    boosting: Share
    each: int

    @property
    def best(self) -> Share:
        return max(self.logistic, self.boosting, key=lambda share: share.value)


@dataclass(frozen=True)
class Transfer:
    """Accuracy of nets that learned from `trained_on` records: FROM_on_TO."""

    synthetic_on_real: Share
    synthetic_on_synthetic: Share  # other records than it learned from
    real_on_synthetic: Share
    real_on_real: Share  # held-out records
    trained_on: int


def two_sample(x: Float[Tensor, "n d"], real: Float[Tensor, "r d"], *, seed: int) -> Told:
    """Five folds of equal numbers of both, all copies of a record in one fold.

    A record whose copy was learned with the other label would be told worse than by a coin.
    Raises TooFew where a side has fewer than five different records.
    """
    each = min(len(x), len(real))
    sides = [some(side, each, stream(seed, "two sample", i)) for i, side in enumerate((x, real))]
    rows = torch.cat(sides).double().cpu().numpy() + 0.0  # so that -0 is 0
    fake = np.arange(2 * each) < each
    fold = _folds(rows, fake, seed)
    narrow = chosen(rows.shape[1], WIDE, stream(seed, "two sample", "features")).numpy()

    def logistic() -> Any:
        return make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))

    def boosting() -> Any:
        return HistGradientBoostingClassifier(
            max_iter=TREES,
            max_leaf_nodes=8,
            max_bins=32,
            early_stopping=False,
            random_state=subseed(seed, "trees") % 2**31,
        )

    with threadpool_limits(1):  # on busy cores the threads of so small fits wait for each other
        told = [_told(logistic, rows, fake, fold), _told(boosting, rows[:, narrow], fake, fold)]
    return Told(told[0], told[1], each)


def _told(make: Callable[[], Any], rows: np.ndarray, fake: np.ndarray, fold: np.ndarray) -> Share:
    hits = 0
    for k in range(FOLDS):
        model = make().fit(rows[fold != k], fake[fold != k])
        hits += int((model.predict(rows[fold == k]) == fake[fold == k]).sum())
    return share(hits, len(fake), wider=WIDER)


def _folds(rows: np.ndarray, fake: np.ndarray, seed: int) -> np.ndarray:
    """A fold for each record. Records that equal each other share one; both sides are spread evenly."""
    _, group = np.unique(rows, axis=0, return_inverse=True)
    group = group.reshape(-1)
    held = np.zeros((group.max() + 1, 2), dtype=bool)
    held[group, fake.astype(int)] = True
    if (fewest := int(held.sum(0).min())) < FOLDS:
        raise TooFew(f"needs {FOLDS}+ different records on each side, got {fewest}")
    mixed = torch.randperm(len(held), generator=stream(seed, "two sample", "folds")).numpy()
    # By kind (synthetic, real, both), in random order within it: every fifth of each kind is of one fold.
    order = mixed[np.argsort((held @ np.array([1, 2]))[mixed], kind="stable")]
    fold = np.empty(len(held), dtype=int)
    fold[order] = np.arange(len(held)) % FOLDS
    return fold[group]


def transfer(synthetic: Data, train: Data, held: Data, *, seed: int, recipe: Recipe = RECIPE) -> Transfer:
    """Both nets learn from equal numbers: half of the synthetic records, or all of train, whichever is less.

    Raises TooFew where that leaves a net without a record.
    """
    m = min(len(synthetic) // 2, len(train))
    if not m:
        raise TooFew(f"needs 2+ synthetic and 1+ real records, got {len(synthetic)} and {len(train)}")
    kept = torch.zeros(len(synthetic), dtype=torch.bool)
    kept[chosen(len(synthetic), m, stream(seed, "transfer", "synthetic"))] = True
    real = train[chosen(len(train), m, stream(seed, "transfer", "real"))]
    from_synthetic = _learned(synthetic[kept], recipe, subseed(seed, "transfer", "from synthetic"))
    from_real = _learned(real, recipe, subseed(seed, "transfer", "from real"))
    return Transfer(
        synthetic_on_real=_right(from_synthetic, held),
        synthetic_on_synthetic=_right(from_synthetic, synthetic[~kept]),
        real_on_synthetic=_right(from_real, synthetic),
        real_on_real=_right(from_real, held),
        trained_on=m,
    )


def _learned(data: Data, recipe: Recipe, seed: int) -> nn.Module:
    """A net in eval mode."""
    recipe = replace(resolve(recipe, data, data.x.device), patience=0)
    scale = nets.statistics(data.x) if recipe.scale == "standard" else None

    def net() -> nn.Module:
        return nets.build(recipe, data.shape, data.classes, scale)

    everyone = torch.ones(1, len(data), dtype=torch.bool)
    state = train(net, recipe, data.x.float(), data.y, everyone, [seed], device=data.x.device)
    with torch.random.fork_rng(devices=[]):
        model = net().to(data.x.device).eval()
    model.load_state_dict({name: t[0] for name, t in state.items()})
    return model


def _right(model: nn.Module, data: Data) -> Share:
    return share(int((forward(model, data.x).argmax(1) == data.y).sum()), len(data))


def share(hits: int, n: int, *, wider: float = 1.0) -> Share:
    """hits of n; the interval is that of n / wider independent tries."""
    worth = max(1, round(n / wider))
    low, high = clopper_pearson(round(hits / n * worth), worth)
    return Share(hits / n, low, high, n)
