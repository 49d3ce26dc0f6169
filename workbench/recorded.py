"""What an attacker sees who watches training: first updates of another run on the target's own members."""

from dataclasses import replace
from functools import cache, partial

import torch

from glasslab.design import Kind
from glasslab.game import Game
from glasslab.split import stream, subseed
from glasslab.zoo import Zoo
from whitebox.glir import Step, record_steps

STEPS, BATCH = 5, 500  # records a step, as published for CIFAR-10; fewer where there are fewer members


def recorded(zoo: Zoo, of: Kind, a: int) -> list[Step]:
    """STEPS updates by the zoo's recipe, from fresh weights, in batches of what the model knows."""
    members = zoo.pool[zoo.member(of)[a]]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(subseed(zoo.seed, "steps", of, a))
        model = zoo.design.net().to(zoo.device).eval()
    batch, generator = min(BATCH, len(members)), stream(zoo.seed, "steps", of, a)
    return record_steps(
        model, members.to(zoo.device), lr=zoo.recipe.lr, batch=batch, steps=STEPS, generator=generator
    )


def watched(game: Game, zoo: Zoo, of: Kind, a: int) -> Game:
    """The game, with these updates for whoever is granted them; recorded when they are first asked for."""
    return replace(game, steps=cache(partial(recorded, zoo, of, a)))
