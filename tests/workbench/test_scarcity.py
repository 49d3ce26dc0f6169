"""The curve over the number of real records: what each way is made of, who is asked, and a twin of a row."""

from dataclasses import replace
from io import StringIO

import pandas as pd
import pytest
import torch
from rich.console import Console
from zoos import RECIPE, made, tiny

from glasslab.game import game
from glasslab.metrics import auc
from glasslab.oracle import forward
from glasslab.split import stream
from synthesis.marginals import marginals
from workbench.blackbox_reference import REFERENCE
from workbench.experiments import scarcity as module
from workbench.experiments.catalogue import EXPERIMENTS
from workbench.experiments.command import save, table
from workbench.experiments.scarcity import few, scarcity
from workbench.options import ZooOptions
from workbench.synthetic_shadows import trained

LEARNS = replace(RECIPE, hidden=(32,), epochs=20)
QUICK, LIRA = "loss-per-class", "lira-offline"


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    data = made(n=500, shape=(8,))
    return tiny(tmp_path_factory.mktemp("zoo"), LEARNS, data=data, shadows=0, targets=2, records=120)


@pytest.fixture(scope="module")
def seen():
    """Every set of records that shadows learned, in order."""
    return []


@pytest.fixture(scope="module")
def frame(zoo, seen):
    def watched(data, *arguments):
        seen.append(data)
        return trained(data, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "trained", watched)
        patch.setattr(module, "ATTACKS", (QUICK, LIRA))
        return scarcity(zoo, held=(40,), shadows=4)


def row_of(frame, **wanted):
    for name, value in wanted.items():
        frame = frame[frame[name] == value]
    (row,) = frame.to_dict("records")
    return row


def test_rows(frame, zoo):
    ways = [
        *((way, n) for n in (40, len(zoo.aux)) for way in ("real", "noisy", "marginals")),
        ("hillclimb", 0),
    ]
    assert list(zip(frame["way"], frame["held"], strict=True)) == [way for way in ways for _ in range(2)]
    assert frame["attack"].tolist() == [QUICK, LIRA] * 7
    assert (frame["models"] == 4).all()
    assert (frame["targets"] == 2).all()
    for _, held in frame.groupby(["way", "held"]):
        assert held["shadow_test"].nunique() == 1  # the same shadows for both attacks
    assert (frame["target_test"] == zoo.accuracy("target")["test"]).all()


def test_who_is_asked(frame, zoo):
    """Wrong version: the queries of all targets under one row, or those of the attack among them."""
    asked = frame.groupby("way")["queries"].first()
    assert asked["real"] == asked["noisy"] == 0
    assert asked["marginals"] == len(zoo.pool)
    assert asked["hillclimb"] > len(zoo.pool)
    records = frame.groupby(["way", "held"])["records"].first()
    assert records["real", 40] == 40
    assert records["noisy", 40] == records["marginals", 40] == len(zoo.pool)


def test_no_way_sees_more_than_it_holds(seen, zoo):
    """Wrong version: noise or marginals of all of aux on every point of the curve."""
    real, some = few(zoo.aux, 40, 0), seen[:4]  # real, noisy, marginals of either target
    rows = set(map(bytes, real.x.numpy()))
    assert torch.equal(some[0].x, real.x)
    values = [set(real.x[:, j].tolist()) for j in range(8)]
    for data in some[1:]:
        assert all(set(data.x[:, j].tolist()) <= values[j] for j in range(8))
    changed = (some[1].x[:, None] != real.x[None]).sum(-1).min(1).values
    assert int(changed.max()) == 1  # of 8 features
    assert not rows & set(map(bytes, zoo.pool.x.numpy()))


def test_copies_have_noise_of_their_own(seen, zoo):
    copies, real = seen[1], few(zoo.aux, 40, 0)
    away = (copies.x[:, None] != real.x[None]).sum(-1)
    of = away.argmin(1)
    assert of.bincount(minlength=40).tolist() == [3] * 40  # 120 candidates
    assert torch.equal(copies.y, real.y[of])
    places = [tuple((copies.x[i] != real.x[of[i]]).nonzero()[:, 0].tolist()) for i in range(120)]
    alike = [len({places[i] for i in (of == r).nonzero()[:, 0].tolist()}) == 1 for r in range(40)]
    assert sum(alike) < 10


def test_more_records_begin_with_fewer(zoo):
    assert torch.equal(few(zoo.aux, 90, 0).x[:40], few(zoo.aux, 40, 0).x)
    assert not torch.equal(few(zoo.aux, 40, 1).x, few(zoo.aux, 40, 0).x)


def test_each_target_has_shadows_of_its_own_answers(seen, zoo):
    """Twin of the records; wrong version: the first target's labels for all."""
    real, n = few(zoo.aux, 40, 0), len(zoo.pool)
    for a in range(2):
        draw = stream(0, "scarcity", "marginals")
        twin = marginals(real, n, oracle=game(zoo, a).oracle, generator=draw)
        assert torch.equal(seen[2 + a].x, twin.x)
        assert torch.equal(seen[2 + a].y, twin.y)
    assert not torch.equal(seen[2].y, seen[3].y)


def test_a_row_of_lira_is_the_attack_on_these_shadows(frame, zoo):
    """Twin: shadows, scores and AUC of one row, and its accuracy, model by model."""
    real = few(zoo.aux, 40, 0)
    shadows = trained(real, zoo.pool.x, zoo.aux, zoo.recipe, 4, 0)
    scores = [REFERENCE[LIRA].run(replace(game(zoo, a), shadows=shadows), stream(0, LIRA)) for a in range(2)]
    row = row_of(frame, way="real", held=40, attack=LIRA)
    assert row["auc"] == pytest.approx(auc(torch.stack(scores), zoo.target_member))
    test = zoo.test
    right = [float((forward(m, test.x).argmax(1) == test.y).double().mean()) for m in shadows.models]
    assert row["shadow_test"] == pytest.approx(sum(right) / 4)


def test_differences_are_with_the_same_records(frame):
    """Wrong version: every point against all of aux."""
    for attack in (QUICK, LIRA):
        for n in frame.loc[frame["held"] > 0, "held"].unique():
            real = row_of(frame, way="real", held=n, attack=attack)
            assert pd.isna(real["auc_minus_real"])
            for way in ("noisy", "marginals"):
                row = row_of(frame, way=way, held=n, attack=attack)
                assert row["auc_minus_real"] == pytest.approx(row["auc"] - real["auc"])
                assert row["auc_minus_real_low"] <= row["auc_minus_real"] <= row["auc_minus_real_high"]
        assert pd.isna(row_of(frame, way="hillclimb", attack=attack)["auc_minus_real"])


def test_what_cannot_be_is_refused(zoo, tmp_path):
    with pytest.raises(ValueError, match="zoo must hold a target, got none"):
        scarcity(tiny(tmp_path, shadows=2, targets=0))
    with pytest.raises(ValueError, match=r"held must be 2\+ real records each, got \[1, 50\]"):
        scarcity(zoo, held=(1, 50))
    with pytest.raises(ValueError, match="shadows must be 2 or more, got 1"):
        scarcity(zoo, shadows=1)
    with pytest.raises(ValueError, match=r"rate must lie in \[0, 1\], got 2"):
        scarcity(zoo, rate=2.0)
    with pytest.raises(
        ValueError, match="shadows must be left out for scarcity, which trains its own, got 8"
    ):
        module.orders(ZooOptions(shadows=8), ())


def test_the_attacks():
    assert module.ATTACKS == ("shadow", LIRA)  # above a quicker one stands in for the first


def test_the_zoo_holds_targets_alone():
    (order,) = EXPERIMENTS["scarcity"].orders(ZooOptions(), ()).values()
    assert (order.settings["shadows"], order.settings["targets"]) == (0, 4)
    (order,) = EXPERIMENTS["scarcity"].orders(ZooOptions(size="standard", targets=3), ()).values()
    assert (order.settings["shadows"], order.settings["targets"]) == (0, 3)


def test_picture_and_table(frame, tmp_path):
    manifest = {"seed": 0, "commit": "0123", "command": "glasslab experiment scarcity"}
    save(tmp_path, "scarcity", frame, manifest | {"zoos": frame.attrs["zoos"]})
    assert (tmp_path / "scarcity.png").stat().st_size > 1000
    page = Console(file=StringIO(), width=100)
    page.print(table(EXPERIMENTS["scarcity"].short(frame), "scarcity"))
    said = page.file.getvalue()
    assert all(word in said for word in ("real", "noisy", "marginals", "hillclimb", "shadow test", "queries"))
    assert max(map(len, said.splitlines())) <= 100
    figure = EXPERIMENTS["scarcity"].draw(frame, manifest | {"zoos": frame.attrs["zoos"]})
    level = row_of(frame, way="hillclimb", attack=QUICK)["auc"]
    assert [level, level] in [list(line.get_ydata()) for line in figure.axes[0].get_lines()]
