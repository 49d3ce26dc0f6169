"""What decides where a zoo lies."""

from dataclasses import dataclass, field, fields, replace
from functools import partial

import pytest
import torch
from torch import nn
from zoos import RECIPE, RESOLVED, made, tiny

from glasslab.design import design
from glasslab.recipe import Recipe


def own_net(shape, classes):
    return nn.Sequential(nn.Linear(shape[0], 5), nn.ReLU(), nn.Linear(5, classes))


def other_net(shape, classes):
    return nn.Sequential(nn.Linear(shape[0], 5), nn.Tanh(), nn.Linear(5, classes))


def key(recipe=RESOLVED, data=None, *, seed=0, records=None, device="cpu"):
    data = made() if data is None else data
    return design(data, recipe, seed=seed, records=records, device=device).key


CHANGED = {
    "net": "softmax", "hidden": (7,), "width": 3, "norm": "group", "dropout": 0.1, "scale": "standard",
    "epochs": 5, "batch": 17, "optimiser": "adam", "lr": 0.2, "momentum": 0.8, "weight_decay": 0.1,
    "schedule": "step", "augment": ("mirror",), "patience": 1, "label_smoothing": 0.1,
    "engine": "serial", "precision": "bfloat16",
}  # fmt: skip


@pytest.mark.parametrize("name", [f.name for f in fields(Recipe)])
def test_every_field_of_the_recipe_is_in_the_key(name):
    assert getattr(RESOLVED, name) != CHANGED[name]
    plain = replace(RESOLVED, hidden=()) if name == "net" else RESOLVED
    recipes = (plain, replace(plain, **{name: CHANGED[name]}))
    keys = {replace(_design(), recipe=recipe).key for recipe in recipes}
    assert len(keys) == 2


def _design():
    return design(made(), RESOLVED, seed=0, records=None, device="cpu")


def test_a_new_field_at_its_off_value_orphans_nothing():
    @dataclass(frozen=True)
    class Later(Recipe):
        defence: float = field(default=0.0, metadata={"off": 0.0})

    settings = {f.name: getattr(RESOLVED, f.name) for f in fields(Recipe)}
    assert key(Later(**settings)) == key()
    assert key(Later(**settings, defence=1.0)) != key()


def test_content_seed_and_split_are_in_the_key():
    data = made()
    touched = replace(data, x=data.x + torch.eye(200, 6) * 1e-6)
    relabelled = replace(data, y=data.y.flip(0))
    more = replace(data, y=data.y.index_fill(0, torch.tensor([0]), 3), classes=4)
    keys = [
        key(),
        key(seed=1),
        key(records=50),
        key(records=60),
        *(key(data=d) for d in (touched, relabelled, more)),
    ]
    assert len(set(keys)) == len(keys)


def test_the_name_a_cap_out_of_reach_and_the_device_are_not_in_the_key():
    assert key(data=replace(made(), name="other")) == key()
    assert key(records=len(_design().pool) + 1) == key()
    assert key(device="cuda") == key()


def test_how_many_are_asked_for_is_not_in_the_key(tmp_path):
    folders = {tiny(tmp_path, shadows=m, targets=t).folder for m, t in ((4, 2), (2, 2), (4, 0), (0, 3))}
    assert folders == {tmp_path / key()[:16]}


def test_another_recipe_is_another_folder(tmp_path):
    zoos = [tiny(tmp_path, replace(RECIPE, epochs=epochs)) for epochs in (1, 2)]
    assert zoos[0].folder != zoos[1].folder
    assert zoos[0].answers().ne(zoos[1].answers()).any()


def test_the_root_may_come_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("GLASSLAB_ZOO", str(tmp_path / "elsewhere"))
    assert tiny(None, shadows=2, targets=0).folder.parent == tmp_path / "elsewhere"


def test_own_factories_are_told_apart_by_name_and_by_layers():
    def make(hidden, act):
        def net(shape, classes):
            return nn.Sequential(nn.Linear(shape[0], hidden), act, nn.Linear(hidden, classes))

        return net

    nets = [
        own_net,
        other_net,
        make(5, nn.ReLU()),
        make(5, nn.Tanh()),
        make(6, nn.ReLU()),
        make(5, nn.ELU(0.5)),
    ]
    keys = [key(replace(RESOLVED, net=net, hidden=())) for net in nets]
    assert len(set(keys)) == len(keys)
    assert key(replace(RESOLVED, net=make(5, nn.ReLU()), hidden=())) == keys[2]


def test_a_factory_without_a_name_is_refused():
    with pytest.raises(ValueError, match="net must be a name, a function or a class, got a partial"):
        key(replace(RESOLVED, net=partial(own_net)))
