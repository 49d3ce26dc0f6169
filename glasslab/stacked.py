"""The stacked engine: m models as one set of parameters with a leading axis, each on batches of its own row.

Rows go in slices of 8, whatever the machine; on a processor each slice keeps to one core, and slices run side
by side. So the bits depend on the rows of a slice, not on the number of cores.
"""

from collections.abc import Callable, Sequence
from threading import Event

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from glasslab.augment import augment
from glasslab.cores import side_by_side
from glasslab.dense import DenseStack, dense_layers
from glasslab.schedule import Job, Patience, order, rate
from glasslab.serial import draws, make_optimiser

SLICE = 8
GATHERED = 1 << 20  # numbers of the batches that are gathered at a time


class FunctionalStack:
    """m models of any net without BatchNorm, by torch.func; DenseStack does it by hand for dense ones."""

    def __init__(self, models: Sequence[nn.Module], job: Job) -> None:
        self.net, self.loss = models[0], vmap(job.mean_loss)
        self.weights, self.buffers = stack_module_state(list(models))
        self.optimiser = make_optimiser(job.recipe, list(self.weights.values()), job.device)

    def inputs(self, x: Tensor) -> Tensor:
        """All n records in the form in which `step` takes a batch of them."""
        return x

    def targets(self, y: Tensor) -> Tensor:
        """Their targets likewise."""
        return y

    def step(self, x: Tensor, y: Tensor, lr: float) -> None:
        """One step of each model on its own batch: inputs [m b *d], targets [m b *o]."""
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        z = vmap(self._call, randomness="different")(self.weights, self.buffers, x)
        self.optimiser.zero_grad()
        self.loss(z, y).sum().backward()
        self.optimiser.step()

    def state(self) -> dict[str, Tensor]:
        """Copies of weights and buffers on the CPU, each with the leading axis m."""
        return {name: t.detach().cpu().clone() for name, t in (self.weights | self.buffers).items()}

    @torch.no_grad()
    def losses(self, x: Tensor, y: Tensor) -> Tensor:
        """Each model's mean loss on the same records, in eval mode: [m]."""
        self.net.eval()
        z = vmap(self._call, in_dims=(0, 0, None))(self.weights, self.buffers, x)
        self.net.train()
        return self.loss(z, y.expand(len(z), *y.shape))

    def _call(self, weights: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(self.net, (weights, buffers), (x,))


def can_stack(module: nn.Module) -> bool:
    """Not with BatchNorm, whose running statistics are written in place, model by model."""
    return not any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules())


def train(job: Job) -> dict[str, Tensor]:
    """As glasslab.train.train. Raises ValueError for a net with BatchNorm, and for bfloat16."""
    if job.recipe.precision != "float32":
        raise ValueError(f"precision must be float32 with engine stacked, got {job.recipe.precision}")
    models, stop = [job.fresh(seed) for seed in job.seeds], Event()
    if not can_stack(models[0]):
        raise ValueError("engine must be serial for a net with BatchNorm, got stacked")
    chancy = draws(models[0])
    width = SLICE if job.device.type == "cpu" else len(models)
    slices = [slice(i, i + width) for i in range(0, len(models), width)]

    def run(rows: slice) -> dict[str, Tensor]:
        stack = (
            DenseStack(models[rows], job.recipe)
            if _by_hand(job, models[0])
            else FunctionalStack(models[rows], job)
        )
        return _learn(job, stack, rows, stop)

    try:
        parts = [_seeded(run, s, job) for s in slices] if chancy else side_by_side(run, slices, stop)
    finally:
        stop.set()  # after Ctrl-C the slices end with their epoch
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _learn(job: Job, stack: "DenseStack | FunctionalStack", rows: slice, stop: Event) -> dict[str, Tensor]:
    """One slice, from its first weights to its last (or, model by model, its best on val)."""
    recipe, member = job.recipe, job.member[rows]
    x, y = stack.inputs(job.x.to(job.device)), stack.targets(job.y.to(job.device))
    generators = [torch.Generator().manual_seed(seed) for seed in job.seeds[rows]]
    patience, best, step = Patience(len(member), recipe.patience), stack.state(), 0
    at_once = max(1, GATHERED // (len(member) * recipe.batch * x[0].numel()))
    for _ in range(recipe.epochs):
        if stop.is_set():
            raise InterruptedError("training was interrupted")
        orders = [order(row, job.steps, recipe.batch, g) for row, g in zip(member, generators, strict=True)]
        for ids in torch.stack(orders, 1).to(job.device).split(at_once):
            for xb, yb in zip(x[ids], y[ids], strict=True):
                batch = _augmented(xb, job, generators) if recipe.augment else xb
                stack.step(batch, yb, rate(recipe, step, job.steps * recipe.epochs))
                step += 1
        job.tick(len(member))
        if job.val is not None:
            val = job.val.to(job.device)
            better, now = patience.better(stack.losses(val.x, val.y).cpu()), stack.state()
            best = {name: torch.where(_over(better, now[name]), now[name], best[name]) for name in best}
            if patience.over:
                break
    return best if job.val is not None else stack.state()


def _by_hand(job: Job, model: nn.Module) -> bool:
    return job.loss is None and not job.recipe.augment and dense_layers(model) is not None


def _seeded(run: Callable[[slice], dict[str, Tensor]], rows: slice, job: Job) -> dict[str, Tensor]:
    """A slice that draws from torch's global generator (dropout), so that nothing may run beside it."""
    with torch.random.fork_rng(devices=[job.device] if job.device.type == "cuda" else []):
        torch.manual_seed(job.seeds[rows][0])
        return run(rows)


def _augmented(x: Tensor, job: Job, generators: Sequence[torch.Generator]) -> Tensor:
    pairs = zip(x, generators, strict=True)
    return torch.stack([augment(batch, job.recipe.augment, generator) for batch, generator in pairs])


def _over(mask: Tensor, t: Tensor) -> Tensor:
    return mask.view(-1, *[1] * (t.ndim - 1))
