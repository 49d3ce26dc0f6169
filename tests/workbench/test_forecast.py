import time
from dataclasses import replace

from zoos import RECIPE, made

from glasslab.design import design
from workbench import forecast as module
from workbench.attack import Attack, Needs, asked
from workbench.attacks import ATTACKS
from workbench.forecast import forecast

HELD = Needs(8, 8, 40, 1, True, True)


def ahead(names, search=100, targets=2, held=HELD):
    rows = {name: ATTACKS[name] for name in names}
    return forecast(
        rows, design(made(), RECIPE, seed=0, records=None, device="cpu"), held, targets, search, "cpu"
    )


def test_plain_answers_are_free_and_searches_are_not():
    assert ahead(["loss", "lira", "rmia"]).queries == 0
    n = 120  # three fifths of 200
    assert ahead(["loss", "merlin", "boundary"]).queries == 2 * n * 2 * 100
    assert ahead(["augmentation"]).queries == 2 * n * 5
    assert ahead(["lira", "loss"], held=replace(HELD, queries=18)).queries == 2 * n * 18


def test_seconds_grow_with_what_is_asked(monkeypatch):
    monkeypatch.setattr(module, "_a_query", lambda design, device: 1e-3)
    few, many = (ahead(["boundary"], search=s).seconds for s in (100, 1000))
    assert few < many
    assert 0.9 * 2 * 120 * 900 * 1e-3 < many - few < 1.1 * 2 * 120 * 900 * 1e-3
    assert ahead(["ye-d"]).seconds > ahead(["ye-p"]).seconds


def test_a_query_is_timed(monkeypatch):
    plain = module.forward

    def slow(model, x, *more):
        time.sleep(0.05)
        return plain(model, x, *more)

    monkeypatch.setattr(module, "forward", slow)
    assert ahead(["merlin"]).seconds > 0.05 / 120 * 2 * 120 * 100 * 0.9


def test_what_a_row_asks_at_most():
    row = Attack(lambda game, generator: None, "blackbox", "labels", "")
    assert asked(row, Needs(queries=18), 100) == 1
    assert asked(replace(row, repeats=True), Needs(queries=18), 100) == 18
    assert asked(replace(row, asks=None), Needs(), 100) == 100
    assert asked(replace(row, asks=0), Needs(), 100) == 0
