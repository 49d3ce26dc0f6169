"""Contact sheet and convergence of a run of `glasslab invert`, drawn from what the run has kept."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

Images = Float[Tensor, "n *d"]
SHADES = ("#1f5c26", "#9c3603", "#123f7a", "#5b2d82", "0.3", "0.6")
PER_LABEL, LONG = 40, 100  # curves of an attack that are told apart; steps from which the axis is a log


def sheet(columns: Mapping[str, Images], labels: Sequence[int], said: str) -> Figure:
    """A row a label, a column for each kind of image. ValueError for records that are no images."""
    first = next(iter(columns.values()))
    if first.ndim != 4:
        raise ValueError(f"columns must hold images [n c h w], got records {list(first.shape[1:])}")
    figure = Figure(figsize=(1.15 * len(columns) + 0.5, 1.1 * len(labels) + 0.8), layout="constrained")
    grid = figure.subplots(len(labels), len(columns), squeeze=False)
    for j, (name, images) in enumerate(columns.items()):
        for i, label in enumerate(labels):
            _show(grid[i, j], images[i])
            if not i:
                grid[i, j].set_title(name.replace(" ", "\n", 1), fontsize=8)
            if not j:
                grid[i, j].set_ylabel(str(label), fontsize=8)
    figure.supxlabel(said, fontsize=6, color="0.35")
    return figure


def convergence(curves: Sequence[Mapping[str, Any]], said: str) -> Figure:
    """Confidence of each label against the step, one colour an attack."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    names = list(dict.fromkeys(curve["row"] for curve in curves))
    for name, shade in zip(names, SHADES * len(names), strict=False):
        own = [curve for curve in curves if curve["row"] == name][:PER_LABEL]
        for i, curve in enumerate(own):
            label = name if not i else None
            axes.plot(curve["steps"], curve["confidence"], color=shade, linewidth=0.7, alpha=0.6, label=label)
    scale = "log" if any(curve["steps"][-1] > LONG for curve in curves) else "linear"
    axes.set(xlabel="step", ylabel="confidence in the label", ylim=(-0.02, 1.02), xscale=scale)
    if names:
        axes.legend(fontsize=8)
    figure.supxlabel(said, fontsize=6, color="0.35")
    return figure


def _show(axes: Axes, image: Float[Tensor, "c h w"]) -> None:
    """As it is where it lies in [0, 1], else stretched to it: an unclipped inversion has no range."""
    image = image.detach().float().cpu()
    low, high = float(image.min()), float(image.max())
    if low < 0 or high > 1:
        image = (image - low) / max(high - low, torch.finfo(torch.float32).tiny)
    pixels = image.permute(1, 2, 0).numpy()
    grey = pixels.shape[2] == 1
    axes.imshow(pixels[..., 0] if grey else pixels, cmap="gray" if grey else None, vmin=0, vmax=1)
    axes.set_xticks([])
    axes.set_yticks([])
