"""The serial engine: a training loop a model, channels-last, bfloat16 autocast, data kept on the device.

On a graphics card one model after another; on a processor a few side by side, each on its share of the cores.
"""

from threading import Event

import torch
from torch import Tensor, nn

from glasslab.augment import augment
from glasslab.cores import side_by_side
from glasslab.recipe import Recipe
from glasslab.schedule import Job, Patience, order, rate

CHUNK = 4  # models of a chunk, trained side by side


def train(job: Job) -> dict[str, Tensor]:
    """As glasslab.train.train. On a processor each model has its share of the cores."""
    x, y = job.x.to(job.device, memory_format=_layout(job.x)), job.y.to(job.device)
    models, stop = [job.fresh(seed).to(memory_format=_layout(x)) for seed in job.seeds], Event()

    def run(i: int) -> dict[str, Tensor]:
        return _one(job, models[i], x, y, job.member[i], torch.Generator().manual_seed(job.seeds[i]), stop)

    def alone(i: int) -> dict[str, Tensor]:
        with torch.random.fork_rng(devices=[job.device] if job.device.type == "cuda" else []):
            torch.manual_seed(job.seeds[i])
            return run(i)

    rows = range(len(models))
    try:
        if draws(models[0]) or job.device.type != "cpu":
            states = [alone(i) for i in rows]
        else:
            states = side_by_side(run, rows, stop, threads=max(1, torch.get_num_threads() // CHUNK))
    finally:
        stop.set()  # after Ctrl-C the other models end with their step
    return {name: torch.stack([state[name] for state in states]) for name in states[0]}


def draws(model: nn.Module) -> bool:
    """Whether training draws from torch's global generator (dropout), so that nothing may run beside it."""
    return any(isinstance(part, nn.modules.dropout._DropoutNd) for part in model.modules())


def _one(
    job: Job, model: nn.Module, x: Tensor, y: Tensor, row: Tensor, generator: torch.Generator, stop: Event
) -> dict[str, Tensor]:
    """One model, from its first weights to its last (or its best on val)."""
    recipe, patience = job.recipe, Patience(1, job.recipe.patience)
    optimiser = make_optimiser(recipe, list(model.parameters()), x.device)
    best, step = None, 0
    for _ in range(recipe.epochs):
        for rows in order(row, job.steps, recipe.batch, generator).to(x.device):
            if stop.is_set():
                raise InterruptedError("training was interrupted")
            for group in optimiser.param_groups:
                group["lr"] = rate(recipe, step, job.steps * recipe.epochs)
            batch = augment(x[rows], recipe.augment, generator) if recipe.augment else x[rows]
            batch = batch.to(memory_format=_layout(x))
            with torch.autocast(x.device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
                z = model(batch)
            optimiser.zero_grad()
            job.mean_loss(z.float(), y[rows]).backward()
            optimiser.step()
            step += 1
        job.tick(1)
        if job.val is not None and patience.better(_loss(job, model)[None]).item():
            best = _state(model)
        if job.val is not None and patience.over:
            break
    return best or _state(model)


def make_optimiser(recipe: Recipe, parameters: list[Tensor], device: torch.device) -> torch.optim.Optimizer:
    """The recipe's optimiser, fused where torch has that."""
    lr, decay, fused = recipe.lr, recipe.weight_decay, device.type in ("cpu", "cuda")
    if recipe.optimiser == "sgd":
        return torch.optim.SGD(parameters, lr=lr, momentum=recipe.momentum, weight_decay=decay, fused=fused)
    adam = torch.optim.AdamW if recipe.optimiser == "adamw" else torch.optim.Adam
    return adam(parameters, lr=lr, weight_decay=decay, fused=fused)


@torch.no_grad()
def _loss(job: Job, model: nn.Module) -> Tensor:
    """Mean loss on val, in eval mode and float32; the model goes on in train mode."""
    assert job.val is not None
    val = job.val.to(job.device)
    model.eval()
    batches = zip(val.x.split(256), val.y.split(256), strict=True)
    total = sum((job.mean_loss(model(x), y) * len(y) for x, y in batches), torch.zeros((), device=job.device))
    model.train()
    return total.cpu() / len(val)


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: t.detach().cpu().contiguous().clone() for name, t in model.state_dict().items()}


def _layout(x: Tensor) -> torch.memory_format:
    return torch.channels_last if x.ndim == 4 else torch.contiguous_format
