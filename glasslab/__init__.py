"""What the attack families share: data, recipes, zoos of trained models, games, metrics."""

from glasslab.data import Data
from glasslab.datasets import load
from glasslab.recipe import Recipe
from glasslab.zoo import Zoo

__all__ = ["Data", "Recipe", "Zoo", "load"]
