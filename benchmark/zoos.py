"""The zoos that benchmarks read, fixed here so that every table speaks of the same models."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from glasslab.data import Data
from glasslab.datasets import load
from glasslab.zoo import Zoo
from workbench.recipes import named


@dataclass(frozen=True)
class Fixed:
    """A data set, a net with its recipe in workbench/recipes.py, and how many models of which records."""

    data: Callable[[], Data]
    net: str
    records: int | None = None
    shadows: int = 64
    targets: int = 8

    def zoo(self, seed: int) -> Zoo:
        """Trained once, then found again."""
        data = self.data()
        recipe, _ = named(data, self.net, "quick")
        return Zoo.train(
            data, recipe, shadows=self.shadows, targets=self.targets, seed=seed, records=self.records
        )


ZOOS: Mapping[str, Fixed] = {
    "digits": Fixed(lambda: load("digits"), "mlp"),
    "location30": Fixed(lambda: load("location30"), "mlp"),
    "fashion_mnist": Fixed(lambda: load("fashion_mnist"), "cnn", records=10_000),
}
