"""The open problem's further regimes: the positive control's law, what a second buys, tables on the page."""

import importlib
import math
from dataclasses import replace

import pytest
import torch
from zoos import RECIPE, made, tiny

from glasslab import nets
from glasslab.likelihood import fit, ratio
from glasslab.metrics import auc
from glasslab.schedule import rate
from glasslab.signals import phi
from glasslab.split import stream
from whitebox.displacement import reference_on
from workbench.open_problem import positive as control

# no packages of ours, so they are not installed
budget = importlib.import_module("benchmark.open_problem_budget")
readme_open = importlib.import_module("benchmark.readme_open")
tuned = importlib.import_module("benchmark.open_problem_tuned")


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(control, "TARGETS", 400)


@pytest.mark.usefixtures("few")
def test_where_rho_is_1_the_best_direction_is_liras():
    scores, truth, rho = control.world(0, 1.0)
    torch.testing.assert_close(rho, torch.ones(8).double())
    torch.testing.assert_close(scores["best"], scores["lira"])
    assert auc(scores["lira"], truth) > 0.7


@pytest.mark.usefixtures("few")
def test_where_rho_is_more_than_1_weights_say_more():
    """Means over 4 worlds; the gain of AUC spreads by 0.007 from world to world."""
    gains = []
    for seed in range(4):
        scores, truth, rho = control.world(seed, 1.8)
        assert 1.2 < rho.mean() < 1.5
        gains.append(auc(scores["best"], truth) - auc(scores["lira"], truth))
    assert sum(gains) / 4 > 0.01


def test_a_shadow_costs_what_the_log_says(tmp_path):
    zoo = tiny(tmp_path)
    assert budget.seconds_a_shadow(zoo) > 0
    log = zoo.folder / "log.jsonl"
    line = '{"chunk": "shadow-0000", "event": "end", "seconds": 8.0}\n'
    log.write_text('{"chunk": "target-0000", "event": "end", "seconds": 99.0}\n' + line)
    assert budget.seconds_a_shadow(zoo) == 8.0 / 16  # a chunk trains 16, of which 4 were asked for


def test_lira_gets_the_shadows_that_it_bought(tmp_path):
    class Fixed:
        shadows = 4

        def zoo(self, seed, shadows=4):
            return tiny(tmp_path, seed=seed, shadows=shadows, targets=2)

    found = budget.more(Fixed(), 8)
    zoo = tiny(tmp_path, shadows=8, targets=2)
    S, s = (phi(zoo.answers(kind)[:, :, 0], zoo.pool.y) for kind in ("shadow", "target"))
    torch.testing.assert_close(
        found["lira-8"], ratio(s, fit(S, zoo.shadow_member, variance="shrunk")), rtol=1e-9, atol=1e-9
    )
    assert not torch.allclose(found["lira-4"], found["lira-8"])


def test_what_decay_leaves_of_the_start():
    """SGD with momentum on decay alone, step by step."""
    recipe = replace(RECIPE, epochs=100, batch=8, lr=0.05, weight_decay=0.02)
    steps, theta, velocity = 100 * 4, 1.0, 0.0
    for step in range(steps):
        velocity = recipe.momentum * velocity + recipe.weight_decay * theta
        theta -= rate(recipe, step, steps) * velocity
    assert 0.05 < theta < 0.5
    assert math.log(tuned.kept_share(recipe, 64)) == pytest.approx(math.log(theta), rel=0.05)


def test_what_the_weights_moved_by_is_the_sum_over_members(tmp_path):
    """theta - c theta_0 = sum of g_i J_i over members, up to what J and sigma change on the way."""
    data, recipe = made(), replace(RECIPE, hidden=(32,), epochs=200, batch=32, lr=0.02, weight_decay=0.02)
    first = reference_on(data[torch.arange(100)], recipe, stream(0)).state_dict()

    def started(shape, classes):
        net = nets.build(recipe, shape, classes)
        net.load_state_dict(first)
        return net

    zoo = tiny(tmp_path, replace(recipe, net=started, hidden=()), data=data)
    model, member, x, y = zoo.target(0), zoo.target_member[0], zoo.pool.x, zoo.pool.y
    c = tuned.kept_share(zoo.recipe, len(y))
    signal = tuned.Moved(started((6,), 3).eval(), zoo.aux, c, 0.02, round(len(y) / 2))
    g = signal.weight(x, y, zoo.answers("target")[0, :, 0])

    def unexplained(w):
        found = signal.grams(model, x, y)
        return [float(of.square - 2 * w @ of.b + w @ of.G @ w) / of.square for of in found]

    for right, wrong in zip(unexplained(g * member), unexplained(g * ~member), strict=True):
        assert right < 0.2
        assert right < wrong


ROWS = [
    {"table": "width", "hidden": h, "attack": attack, "test": 0.5 + h / 100, "tpr_at_0.1pct": tpr}
    for h, each in ((16, (0.3, None, 0.1)), (64, (0.4, 0.2, 0.25)))
    for attack, tpr in zip(("decode", "dual", "lira"), each, strict=True)
]


def test_a_sweep_is_a_line_a_case():
    table = readme_open.sweep(["width"], "hidden")({"rows": [*ROWS, {"table": "size", "records": 9}]})
    assert table.splitlines() == [
        "| hidden | test accuracy % | decode | dual | LiRA |",
        "|---|---|---|---|---|",
        "| 16 | 66.0 | 30.0 | - | 10.0 |",
        "| 64 | 114.0 | 40.0 | 20.0 | 25.0 |",
    ]


def test_a_zoo_is_told_by_its_rows_of_all_seeds():
    ends = {"low": 1.5, "high": 2.5, "low_bb": None, "high_bb": None}
    row = {"zoo": "some_cnn", "seed": "all", "ratio_to_lira": 2.0, "ratio_to_blackbox_stack": 1.5} | ends
    rows = [row | {"attack": name, "tpr_at_0.1pct": 0.1} for name in ("W", "decode", "B", "lira")]
    rows += [one | {"seed": 0, "tpr_at_0.1pct": 0.9} for one in rows]
    assert readme_open.ratios({"rows": rows}).splitlines()[2] == (
        "| some, cnn | 10.00 | 10.00 | 10.00 | 10.00 | 2.00 (1.50 to 2.50) | - | 2.00 (1.50 to 2.50) |"
    )
