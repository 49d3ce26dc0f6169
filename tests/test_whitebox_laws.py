"""What every white-box attack must obey beside the laws for all: symmetry of units, records on their own."""

import copy
from dataclasses import replace
from functools import cache

import pytest
import torch
from scipy.stats import spearmanr
from worlds import ridge

from glasslab.metrics import auc
from glasslab.split import stream
from workbench.attacks import ATTACKS
from workbench.play import granted

pytestmark = pytest.mark.filterwarnings("ignore::glasslab.checks.Floored")  # small worlds, few records

WHITE = {name: row for name, row in ATTACKS.items() if row.family == "whitebox"}
OF_THE_MODEL = [  # glir looks at recorded steps alone, dual-shadow and decode-shadow at answers
    name for name, row in WHITE.items() if name != "glir" and row.access == "weights"
]
TRAINS = (
    "bayes-wb",
    "bayes-wb-ig",
    "matt",
    "general-wb",
    "meta",
    "meta-shadows",
    "realigned",
    "realigned-set",
)
TIES = ("density",)  # units that hardly ever fire share no record, and each is as like any other of them
# need the order of units, and say so
FIXED_UNITS = ("nasr", "nasr-known", "realigned-off", "glir", "density-off")
POOLED = (
    *("realigned", "realigned-set", "realigned-off", "meta-shadows", "nasr", "nasr-known"),
    *("score-test", "stacked", "stacked-boosting", "stacked-sum"),  # spreads of all candidates
    *("frozen-trunk", "frozen-trunk-trunks"),  # heads learn halves of them
)
JOINT = (
    *("iha", "iha-skip-loss"),  # told of the other records
    *("dual", "dual-shadows", "dual-shadow", "decode", "decode-shadow"),  # one sum of all their gradients
)
every = pytest.mark.parametrize("name", WHITE)


@cache
def deep(seed=0, leaks=True):
    """Two layers: 120 random units, and a last one that is fitted."""
    return ridge(leaks=leaks, seed=seed, n=200, d=20, hidden=120)


def run(name, game, seed=0):
    attack = WHITE[name]
    return attack.run(granted(game, attack), stream(seed), **attack.quick)


def reordered(model):
    """The same function with its hidden units in another order."""
    model = copy.deepcopy(model)
    first, last = model[0], model[2]
    p = torch.randperm(len(first.weight), generator=stream(7))
    first.weight.data, first.bias.data = first.weight[p].detach(), first.bias[p].detach()
    last.weight.data = last.weight[:, p].detach()
    return model


@pytest.mark.parametrize("name", [name for name in WHITE if name not in FIXED_UNITS])
def test_the_order_of_the_targets_units_does_not_matter(name):
    game, truth = deep()
    moved = replace(game, model=reordered(game.model))
    before, after = run(name, game), run(name, moved)
    if name in TRAINS + TIES:  # heads begin at random weights: the same up to what training makes of that
        assert spearmanr(before, after).statistic > 0.7
        assert abs(auc(before, truth) - auc(after, truth)) < 0.1
    else:
        torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", OF_THE_MODEL)
def test_a_model_in_training_mode_is_refused(name):
    game, _ = deep()
    model = copy.deepcopy(game.model).train()
    with pytest.raises(ValueError, match="must be in eval mode"):
        run(name, replace(game, model=model))
    assert model.training


@pytest.mark.parametrize("name", [name for name in WHITE if name not in POOLED + JOINT])
def test_a_record_is_scored_on_its_own(name):
    game, _ = deep()
    held = game.shadows
    shadows = replace(held, inside=held.inside[:, :70], z=held.z[:, :70])
    fewer = replace(game, x=game.x[:70], y=game.y[:70], known=game.known[:70], shadows=shadows)
    torch.testing.assert_close(run(name, fewer), run(name, game)[:70], rtol=1e-4, atol=1e-4)


@every
def test_the_model_is_as_it_was(name):
    game, _ = deep()
    model = game.model
    for w in model.parameters():
        w.requires_grad_(True)
    before = copy.deepcopy(model.state_dict())
    run(name, game)
    assert all(torch.equal(before[key], t) for key, t in model.state_dict().items())
    assert all(w.requires_grad and w.grad is None for w in model.parameters())
    assert not any(m.training or m._forward_hooks or m._backward_hooks for m in model.modules())


@every
def test_the_same_seed_gives_the_same_score(name):
    game, _ = deep()
    assert torch.equal(run(name, game, seed=3), run(name, game, seed=3))
