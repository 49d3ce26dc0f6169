from dataclasses import replace

import pytest
import torch
from zoos import RECIPE, tiny

from glasslab.data import Data
from glasslab.results import read
from glasslab.split import stream
from workbench import compare

PLAYED = ["random", "correctness", "loss", "confidence", "modified-entropy", "loss-per-class"]
PLAYED += ["modified-entropy-per-class", "lira", "lira-pooled", "lira-offline"]
MEMORISES = replace(RECIPE, hidden=(64,), epochs=40)


def noise(seed=0, n=600, d=20, classes=3):
    """Nothing to learn but by heart: labels are coin flips."""
    g = stream(seed, "noise")
    return Data(torch.rand(n, d, generator=g), torch.randint(classes, (n,), generator=g), classes, "noise")


@pytest.fixture(scope="session")
def zoo(tmp_path_factory):
    """16 shadows and 5 targets that know their members by heart; 300 candidates."""
    root = tmp_path_factory.mktemp("zoo")
    return tiny(root, MEMORISES, data=noise(), shadows=16, targets=5, records=300)


@pytest.fixture(scope="session")
def foreign(tmp_path_factory):
    """16 shadows of other records, which an attacker may hold against `zoo`."""
    root = tmp_path_factory.mktemp("foreign")
    return tiny(root, MEMORISES, data=noise(seed=1), shadows=16, targets=0)


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """4 shadows and 1 target: too few for most."""
    return tiny(tmp_path_factory.mktemp("small"), shadows=4, targets=1)


@pytest.fixture(scope="session")
def kept(zoo, tmp_path_factory):
    """A run on `zoo`: its frame, what lies on disk, the folder."""
    folder = tmp_path_factory.mktemp("run")
    frame = compare(zoo, PLAYED, out=folder, command="glasslab compare", progress=False)
    return frame, read(folder), folder


@pytest.fixture(scope="session")
def held(kept):
    return kept[1]
