"""Trains the models of a zoo: one function in front of two engines.

Stacked: all rows as one set of parameters with a leading axis, for small dense nets. Serial: a loop a model,
in bfloat16 where the processor has it, for convolutions and wide dense nets. Either way a model is a
function of (recipe, records, membership row, seed, chunk), of nothing else.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from time import perf_counter

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from glasslab import nets, serial, stacked
from glasslab.data import Data
from glasslab.recipe import Recipe
from glasslab.schedule import Job

STACKS_BELOW = 200_000  # weights; on two CPU cores a wider dense net gains nothing from its neighbours
Loss = Callable[[Tensor, Tensor], Tensor]


def train(
    net: Callable[[], nn.Module],
    recipe: Recipe,
    x: Float[Tensor, "n *d"],
    y: Int[Tensor, "n"] | Float[Tensor, "n *o"],
    member: Bool[Tensor, "b n"],
    seeds: Sequence[int],
    *,
    val: Data | None = None,
    loss: Loss | None = None,
    device: torch.device | str = "cpu",
    tick: Callable[[int], None] | None = None,
) -> dict[str, Tensor]:
    """Weights and buffers of the b models that the rows of `member` describe, stacked, on the CPU.

    `net` makes a fresh net from torch's global generator, seeded with the row's seed and then put back.
    y are labels, or soft targets, and `loss` takes (outputs, targets) to a mean (cross-entropy by default).
    `tick` hears after each epoch how many models it advanced. `recipe` is a resolved one. With
    `recipe.patience` each model keeps its weights of lowest loss on `val`.

    Raises ValueError on a row without a member, rows and seeds that differ in number, patience without val.
    """
    if len(seeds) != len(member):
        raise ValueError(f"seeds must be one a row of member, got {len(seeds)} for {len(member)} rows")
    if not member.any(1).all():
        raise ValueError(
            f"member must give every row a record, got none in row {int((~member.any(1)).int().argmax())}"
        )
    if recipe.patience and val is None:
        raise ValueError(
            f"val must be given where patience is above 0, got None with patience {recipe.patience}"
        )
    if recipe.engine == "auto" or recipe.precision == "auto":
        raise ValueError("recipe must be resolved, got engine or precision auto")
    engine = stacked.train if recipe.engine == "stacked" else serial.train
    watched = val if recipe.patience else None
    quiet = tick or (lambda models: None)
    return engine(Job(net, recipe, x, y, member, seeds, watched, loss, torch.device(device), quiet))


def resolve(recipe: Recipe, data: Data, device: torch.device | str) -> Recipe:
    """The recipe without "auto": scale by the data, engine and precision by net and device.

    Raises ValueError for a net that does not give one logit a class.
    """
    scale, engine, precision = recipe.scale, recipe.engine, recipe.precision
    if scale == "auto":
        table = data.x.ndim == 2 and bool((data.x.min() < 0) | (data.x.max() > 1))
        scale = "standard" if table else "none"
    with torch.random.fork_rng(devices=[]):
        module = nets.build(recipe, data.shape, data.classes)
        logits = module.eval()(data.x[:1])
    if logits.shape != (1, data.classes):
        raise ValueError(f"net must give {data.classes} logits a record, got shape {tuple(logits.shape[1:])}")
    large = _is_conv(module) or sum(p.numel() for p in module.parameters()) >= STACKS_BELOW
    if engine == "auto":
        engine = "serial" if large or not stacked.can_stack(module) else "stacked"
    if precision == "auto":
        fast = engine == "serial" and large and has_bfloat16(torch.device(device))
        precision = "bfloat16" if fast else "float32"
    return replace(recipe, scale=scale, engine=engine, precision=precision)


def rows_at_once(recipe: Recipe) -> int:
    """Rows of a chunk: few where each takes long, since a kill costs a chunk."""
    return 16 if recipe.engine == "stacked" else serial.CHUNK


def estimate(
    net: Callable[[], nn.Module],
    recipe: Recipe,
    x: Float[Tensor, "n *d"],
    y: Int[Tensor, "n"] | Float[Tensor, "n *o"],
    rows: int,
    device: torch.device | str = "cpu",
) -> float:
    """Seconds that one chunk of `rows` models is likely to take: a few steps, timed and multiplied."""

    def seconds(steps: int) -> float:
        few = torch.arange(2 * recipe.batch * steps) % len(x)
        start, brief = perf_counter(), replace(recipe, epochs=1, patience=0)
        train(net, brief, x[few], y[few], torch.ones(rows, len(few)).bool(), range(rows), device=device)
        return perf_counter() - start

    seconds(1)  # warms up
    fixed, more = seconds(1), seconds(5)
    a_step = max(more - fixed, 1e-6) / 4
    return fixed + a_step * (recipe.epochs * math.ceil(len(x) / 2 / recipe.batch) - 1)


def pick_device(device: str = "auto") -> str:
    """ "auto" is cuda, else mps, else cpu; ValueError for a device that this machine lacks."""
    has = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return next(name for name in has if has[name])
    if not has.get(device.split(":")[0], False):
        raise ValueError(
            f"device must be auto or one of {[name for name in has if has[name]]}, got {device!r}"
        )
    return device


def has_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 matrix products run in hardware there."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


def _is_conv(module: nn.Module) -> bool:
    return any(isinstance(part, nn.modules.conv._ConvNd) for part in module.modules())
