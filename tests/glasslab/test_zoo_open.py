"""A zoo from its folder."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from zoos import RECIPE, interrupted, made, tiny

from glasslab import Zoo, growth, load
from glasslab.split import shadow_rows, split


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """20 shadows and 3 targets in chunks of 16; nobody writes to it."""
    return tiny(tmp_path_factory.mktemp("zoo"), shadows=20, targets=3)


def own_net(shape, classes):
    return nn.Sequential(nn.Linear(shape[0], 5), nn.ReLU(), nn.Linear(5, classes))


def other_net(shape, classes):
    return nn.Sequential(nn.Linear(shape[0], 5), nn.Tanh(), nn.Linear(5, classes))


def test_open_gives_the_same_zoo(zoo):
    again = Zoo.open(zoo.folder, made())
    assert (again.key, again.recipe, again.seed) == (zoo.key, zoo.recipe, zoo.seed)
    assert torch.equal(again.shadow_member, zoo.shadow_member)
    assert torch.equal(again.target_member, zoo.target_member)
    assert again.split.records is None
    for mine, theirs in ((zoo.shadow(17), again.shadow(17)), (zoo.target(2), again.target(2))):
        assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), theirs.parameters(), strict=True))


def test_open_restores_every_field_of_the_recipe(tmp_path):
    recipe = replace(
        RECIPE, hidden=(5, 4), batch=8, optimiser="adamw", lr=0.01, weight_decay=1e-4, schedule="step",
        patience=2, label_smoothing=0.1, dropout=0.2, scale="standard",
    )  # fmt: skip
    zoo = tiny(tmp_path, recipe, shadows=2, targets=1, records=40, seed=3)
    again = Zoo.open(zoo.folder, made())
    assert again.recipe == zoo.recipe == replace(recipe, engine="stacked", precision="float32")
    assert (again.key, len(again.pool), again.seed) == (zoo.key, 40, 3)


def test_open_loads_data_by_its_name(tmp_path):
    zoo = tiny(tmp_path, replace(RECIPE, epochs=1), data=load("digits"), shadows=0, targets=1)
    assert Zoo.open(zoo.folder).data.digest == zoo.data.digest


def test_open_refuses_other_data(zoo):
    with pytest.raises(ValueError, match=r"data must be made of digest \w{16}, got made of \w{16}"):
        Zoo.open(zoo.folder, made(1))
    with pytest.raises(ValueError, match="name must be one of"):  # load's own line: it knows no such data
        Zoo.open(zoo.folder)


def test_open_refuses_what_is_no_finished_zoo(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"must hold a manifest\.json"):
        Zoo.open(tmp_path)
    monkeypatch.setattr(growth, "train", interrupted(chunk=1))
    with pytest.raises(KeyboardInterrupt):
        tiny(tmp_path)
    (folder,) = tmp_path.iterdir()
    with pytest.raises(ValueError, match="none that was ever finished.*train again"):
        Zoo.open(folder, made())
    monkeypatch.undo()
    zoo = tiny(tmp_path)
    zoo.store.chunk("target-0000").unlink()
    with pytest.raises(ValueError, match="got no target-0000.*train again"):
        Zoo.open(folder, made())


def test_open_shows_what_was_finished_while_more_is_on_its_way(tmp_path, monkeypatch):
    zoo = tiny(tmp_path, shadows=2, targets=1)
    monkeypatch.setattr(growth, "train", interrupted(chunk=0))
    with pytest.raises(KeyboardInterrupt):
        zoo.extend(40, progress=False)
    assert len(Zoo.open(zoo.folder, made()).shadow_member) == 2


def test_rows_that_this_torch_would_not_draw_are_refused(tmp_path, monkeypatch):
    tiny(tmp_path)
    monkeypatch.setattr("glasslab.design.shadow_rows", lambda m, n, seed: shadow_rows(m, n, seed + 1))
    with pytest.raises(ValueError, match="shadow-0000 must have the rows that this torch draws"):
        tiny(tmp_path)


def test_a_split_that_comes_out_otherwise_is_refused(zoo, monkeypatch):
    def turned(data, seed, *, records=None):
        parts = split(data, seed, records=records)
        return replace(parts, aux=parts.aux.flip(0))

    monkeypatch.setattr("glasslab.design.split", turned)
    with pytest.raises(ValueError, match="split must come out as it was written, got another aux"):
        Zoo.open(zoo.folder, made())


def test_a_renamed_folder_is_extended_where_it_is(tmp_path):
    zoo = tiny(tmp_path, shadows=2, targets=1)
    zoo.folder.rename(tmp_path / "mine")
    large = Zoo.open(tmp_path / "mine", made()).extend(targets=17, progress=False)
    assert large.folder == tmp_path / "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_own_factory(tmp_path):
    zoo = tiny(tmp_path, replace(RECIPE, net=own_net, hidden=()))
    assert isinstance(zoo.shadow(0)[1], nn.ReLU)
    again = Zoo.open(zoo.folder, made(), own_net)
    assert again.key == zoo.key
    assert torch.equal(again.answers("target"), zoo.answers("target"))
    with pytest.raises(ValueError, match="net must be given.*own_net, got None"):
        Zoo.open(zoo.folder, made())
    with pytest.raises(ValueError, match="net must be .*own_net with the same layers, got .*other_net"):
        Zoo.open(zoo.folder, made(), other_net)
