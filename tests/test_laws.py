"""What every membership attack must obey. A new row of ATTACKS is tested here without a new line."""

from dataclasses import replace
from functools import cache

import pytest
import torch
import worlds

from glasslab.masks import noise, round_to, temperature, top_k
from glasslab.metrics import auc, tpr_at_fpr, tpr_null
from glasslab.null_law import auc_se
from glasslab.oracle import BudgetExceeded, answer, log_answer
from glasslab.split import stream
from workbench.attack import HOLDS, KNOWN
from workbench.attacks import ATTACKS
from workbench.play import granted

pytestmark = pytest.mark.filterwarnings("ignore::glasslab.checks.Floored")  # small worlds, few records
every = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
but_costly_ones_seldom = pytest.mark.parametrize(  # the null law holds them to the same, each time
    "attack",
    [
        pytest.param(row, id=name, marks=[pytest.mark.slow] if row.costly else [])
        for name, row in ATTACKS.items()
    ],
)


MINIMA = [ATTACKS[name] for name in ("merlin", "morgan")]  # which they look for; linear models have none


@cache
def ridge(kind, **settings):
    return worlds.ridge(images=kind == "images", peaked=kind == "peaked", **settings)


def kind(attack):
    """Of records and models that the attack is for."""
    return "images" if attack.needs.images else "peaked" if attack in MINIMA else "linear"


def run(attack, game, seed=0):
    return attack.run(granted(game, attack, attack.quick.get("budget", 0)), stream(seed), **attack.quick)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


@every
def test_finds_a_planted_leak(attack):
    """So many features that every signal leaks, also those that do not look at the label."""
    game, truth = ridge(kind(attack), leaks=True, seed=0, d=300)
    area = auc(run(attack, game), truth)
    if attack.control:
        assert abs(area - 0.5) < 4 * auc_se(int(truth.sum()), int((~truth).sum()))
    else:
        assert area > 0.7


@but_costly_ones_seldom
def test_finds_nothing_where_nothing_is(attack):
    excess, areas = [], []
    for game, truth in (ridge(kind(attack), leaks=False, seed=seed) for seed in range(20)):
        score = run(attack, game)
        tied = len(score.unique()) < len(score)
        luck = tpr_null(int((~truth).sum()), 0.05)
        excess.append(0.0 if tied else tpr_at_fpr(score, truth, 0.05).tpr - luck)
        areas.append(auc(score, truth) - 0.5)
    for found in map(torch.tensor, (excess, areas)):
        assert found.mean().abs() <= 4 * found.std() / len(found) ** 0.5  # a false alarm in 16,000


@every
def test_the_order_of_records_does_not_matter(attack):
    """Random rows draw by place: for them the order does not matter to what they find."""
    game, truth = ridge(kind(attack), leaks=True, seed=1, d=300)
    p = torch.randperm(len(game.y), generator=stream(0))
    held = game.shadows
    member = held.member[:, p]
    shadows = replace(held, records=held.records[p], member=member, inside=member, z=held.z[:, p])
    moved = replace(game, x=shadows.records.x, y=shadows.records.y, shadows=shadows, known=game.known[p])
    before, after = run(attack, game), run(attack, moved)
    if attack.random:
        assert abs(auc(before, truth) - auc(after, truth[p])) < 0.1
    else:
        close(before[p], after)


@every
def test_the_order_of_shadows_does_not_matter(attack):
    game, truth = ridge(kind(attack), leaks=True, seed=2, d=300)
    held, p = game.shadows, torch.randperm(len(game.shadows.z), generator=stream(0))
    member = held.member[p]
    models = [held.models[i] for i in p.tolist()]
    shadows = replace(held, models=models, member=member, inside=member, z=held.z[p], z_aux=held.z_aux[p])
    before, after = run(attack, game), run(attack, replace(game, shadows=shadows))
    if attack.random:
        assert abs(auc(before, truth) - auc(after, truth)) < 0.1
    else:
        close(before, after)


@every
def test_arguments_are_left_alone(attack):
    game, _ = ridge(kind(attack), leaks=True, seed=3)
    held = game.shadows
    tensors = [game.x, game.y, game.aux.x, game.aux.y, held.member, held.inside, held.z, held.z_aux]
    tensors += [w for model in (game.model, *held.models) for w in model.parameters()]
    before = [t.clone() for t in tensors]
    asked = game.oracle.queries
    run(attack, game)
    assert all(torch.equal(a, b) for a, b in zip(before, tensors, strict=True))
    assert game.oracle.queries == asked  # it played with an oracle of its own


@every
def test_uses_only_what_its_access_grants(attack):
    game, _ = ridge(kind(attack), leaks=True, seed=4)
    own = granted(game, attack, attack.quick.get("budget", 0))
    attack.run(own, stream(0), **attack.quick)
    silent = attack.access in ("nothing", "weights")
    assert (own.model is None) == (attack.access != "weights")
    about_aux = len(game.aux) * attack.asks_aux
    if attack.asks is None:  # a search may end early
        assert 0 < own.oracle.queries <= len(game.y) * attack.quick["budget"] + about_aux
    else:
        most = attack.quick.get("records", 0) * attack.asks_made  # a climb may end early
        plain = len(game.y) * attack.asks + about_aux
        assert plain + bool(most) <= own.oracle.queries <= plain + most
    if silent:
        return
    shut = replace(own, oracle=replace(own.oracle, budget=0))
    with pytest.raises(BudgetExceeded, match="0 left of a budget of 0"):
        attack.run(shut, stream(0), **attack.quick)
    label_only = replace(own, oracle=replace(own.oracle, reveals="labels"))
    if attack.access == "labels":
        attack.run(label_only, stream(0), **attack.quick)
    else:
        with pytest.raises(ValueError, match="must reveal probabilities to this attack, got labels"):
            attack.run(label_only, stream(0), **attack.quick)


@every
def test_two_targets_in_one_process(attack):
    (a, _), (b, _) = (
        ridge(kind(attack), leaks=True, seed=5),
        ridge(kind(attack), leaks=True, seed=6),
    )
    beside = replace(
        a, oracle=b.oracle, model=b.model, known=b.known, steps=b.steps
    )  # another target, the same shadows
    together = [run(attack, game) for game in (a, beside, b, a)]
    alone = [run(attack, replace(game, shadows=replace(game.shadows))) for game in (a, beside, b, a)]
    for one, other in zip(together, alone, strict=True):
        assert torch.equal(one, other)


@every
@pytest.mark.parametrize("mask", [temperature(5), round_to(1), top_k(1), noise(0.2)], ids=repr)
def test_a_masked_interface_gives_finite_scores(attack, mask):
    game, _ = ridge(kind(attack), leaks=True, seed=7, n=200)
    z = log_answer(answer(game.shadows.z, [mask]), getattr(mask, "floor", None))
    shadows = replace(game.shadows, z=z)
    masked = replace(game, oracle=replace(game.oracle, mask=(mask,)), shadows=shadows)
    assert run(attack, masked).isfinite().all()


@pytest.mark.parametrize("name", [name for name, row in ATTACKS.items() if row.holds in KNOWN])
def test_what_is_known_of_a_record_does_not_touch_its_score(name):
    attack = ATTACKS[name]
    game, _ = ridge(kind(attack), leaks=True, seed=8)
    before = run(attack, game)
    for i in (0, 7, 399):
        known = game.known.clone()
        known[i] = ~known[i]
        after = run(attack, replace(game, known=known))
        torch.testing.assert_close(after[i], before[i], rtol=1e-9, atol=1e-9)
        assert not torch.equal(after, before)


@every
def test_says_where_it_belongs(attack):
    assert attack.paper.startswith(("arXiv:", "doi:")) or attack.control
    assert attack.holds in HOLDS
    assert not (attack.control and attack.default)
