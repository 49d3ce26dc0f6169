"""How a script of this folder starts and ends."""

import json
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmark.measure import measured

Arrays = dict[str, np.ndarray]


def given() -> tuple[Arrays, dict[str, Any]]:
    """The arrays of the folder by name, and the settings."""
    torch.set_num_threads(1)
    arrays = {path.stem: np.load(path) for path in Path(sys.argv[1]).glob("*.npy")}
    return arrays, dict(json.loads(sys.argv[2]))


def tell(
    package: str, work: Callable[[], np.ndarray], warm: Callable[[], object] | None = None
) -> dict[str, Any]:
    """Runs and times `work`, writes its scores to against.npy, and returns what it took and who took it.

    What is too slow to be run five times is run once, after `warm`, for what is loaded late.
    """
    if warm is not None:
        warm()
    scores, cost = measured(work, 1 if warm is not None else 5)
    np.save(Path(sys.argv[1]) / "against.npy", scores)
    return {"against": f"{package} {version(package)}", **cost}


def show(found: Mapping[str, Any]) -> None:
    """One line of JSON, the last that is printed."""
    print(json.dumps(found), flush=True)


class Counted(nn.Module):
    """A net of two layers that counts the rows it was asked."""

    def __init__(self, arrays: Arrays) -> None:
        super().__init__()
        self.hidden, self.out = (_layer(arrays[f"w{i}"], arrays[f"b{i}"]) for i in (1, 2))
        self.asked = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.asked += len(x)
        return self.out(self.hidden(x.float()).relu())  # some packages ask in double


def _layer(w: np.ndarray, b: np.ndarray) -> nn.Linear:
    layer = nn.Linear(*w.shape[::-1])
    layer.weight.data, layer.bias.data = torch.from_numpy(w).float(), torch.from_numpy(b).float()
    return layer.eval()
