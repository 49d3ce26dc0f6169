"""Experiments on inversion: twins of their rows, what rounding hides, one judge for all smoothings."""

from dataclasses import replace
from io import StringIO

import pandas as pd
import pytest
import torch
from rich.console import Console
from zoos import RECIPE, made, tiny

from glasslab.oracle import Oracle, forward
from inversion.gradient import autograd, difference
from workbench.experiments import rebuilt
from workbench.experiments import rounding as rounding_
from workbench.experiments.catalogue import EXPERIMENTS
from workbench.experiments.command import save, table
from workbench.experiments.rebuilt import averaged, invert, labels, ordered, start, victims
from workbench.experiments.rounding import adapt, rounding
from workbench.experiments.smoothing import SMOOTHINGS, smoothing
from workbench.inverting import attacks, measured
from workbench.inverting.measured import Measured
from workbench.inverting.victim import judged
from workbench.options import InvertOptions, ZooOptions
from workbench.steps import masks_of

LEARNS = replace(RECIPE, hidden=(32,), epochs=60)
WIDTHS = (0.5, 0.001)
DATA = made(n=240, shape=(16,), seed=1)


@pytest.fixture(scope="module", autouse=True)
def hasty():
    """Judges of 40 steps: their figures do not matter here, only that they are the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("workbench.inverting.victim.judge", short_judge)
        yield


def short_judge(*arguments, seed, mirror):
    from inversion.judge import judge

    return judge(*arguments, seed=seed, mirror=mirror, steps=40)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return tiny(tmp_path_factory.mktemp("plain"), LEARNS, data=DATA, shadows=2, targets=2)


@pytest.fixture(scope="module")
def smooth(tmp_path_factory):
    recipe = replace(LEARNS, label_smoothing=0.3)
    return tiny(tmp_path_factory.mktemp("smooth"), recipe, data=DATA, shadows=0, targets=2)


@pytest.fixture(scope="module")
def rounded(plain):
    return rounding(plain, rounds=(0.05, 0.0), widths=WIDTHS, steps=20)


@pytest.fixture(scope="module")
def both(plain, smooth):
    return smoothing({"smooth": smooth, "plain": plain}, steps=30)


def row_of(frame, **wanted):
    for name, value in wanted.items():
        frame = frame[frame[name] == value]
    (row,) = frame.to_dict("records")
    return row


def test_rows_of_rounding(rounded):
    answers = rounded[rounded["access"] == "answers"]
    kinds = answers[["attack", "round", "width_by"]].values.tolist()
    order = [
        [kind, r, by]
        for kind in ("difference", "nes")
        for r in (0.0, 0.05)
        for by in ("shadows", "narrowest")
    ]
    assert kinds == order
    assert rounded["attack"].tolist()[len(answers) :] == ["miface", *rebuilt.REFERENCES]
    assert rounded.query("reference")["attack"].tolist() == ["class mean", "random private image"]
    assert row_of(rounded, attack="miface")["access"] == "weights"
    assert row_of(rounded, attack="miface")["queries"] == 0


def test_rounding_that_hides_every_difference_is_said(plain, rounded):
    """r = .05 and h = .001: no image moves, so each is the public mean, and nobody takes it for a find."""
    row = row_of(rounded, attack="difference", round=0.05, width_by="narrowest")
    assert (row["width"], row["moved"]) == (0.001, 0.0)
    assert "3 of 3 gradients are 0: answers are equal on either side" in row["notes"]
    assert row["queries"] == 2 * 2 * 16  # at the start and after a step that led nowhere
    mean = row_of(rounded, attack="public mean")
    assert [row[name] for name in rebuilt.FULL] == pytest.approx([mean[name] for name in rebuilt.FULL])
    shown = EXPERIMENTS["rounding"].short(rounded)
    assert shown["attack"].tolist().count("difference: no find") == 1
    victim = victims(plain, 0)[0]
    blind = difference(Oracle(victim.model, mask=masks_of(["round_by:0.05"])), 0.001)
    assert not blind(start(victim).expand(3, 16), labels(victim))[1].any()


def test_the_adapted_attack_goes_on(rounded):
    """Wrong version: a defence reported against the attack that does not know of it."""
    row = row_of(rounded, attack="difference", round=0.05, width_by="shadows")
    blind = row_of(rounded, attack="difference", round=0.05, width_by="narrowest")
    assert row["width"] == 0.5
    assert row["moved"] > blind["moved"]
    assert row["confidence"] > blind["confidence"] + 0.2
    assert row["judge_acc1"] >= blind["judge_acc1"]
    assert row_of(rounded, attack="difference", round=0, width_by="shadows")["width"] == 0.001


def test_a_width_is_chosen_by_cosines_on_shadows(plain, rounded):
    """Twin: one image, width and shadow after the other. Wrong version: the target chooses."""
    victim, y = victims(plain, 0)[0], torch.arange(3)
    options = InvertOptions(gradient="difference", mask=("round_by:0.05",))

    def twin(models):
        held = []
        for model in models:
            own, each = replace(victim, model=model), []
            images = [start(victim).expand(3, 16)]
            images += [attacks.by_miface(own, InvertOptions(), y, steps=k).x for k in (1, 4, 16)]
            for h in WIDTHS:
                cosines = []
                for x in (image[None] for batch in images for image in batch):
                    label = y[[len(cosines) % 3]]
                    asked = difference(Oracle(model, mask=options_mask()), h)(x, label)[1].flatten().double()
                    true = autograd(model)(x, label)[1].flatten().double()
                    cosines.append(float(asked @ true / (asked.norm() * true.norm()).clamp(min=1e-300)))
                each.append(sum(cosines) / len(cosines))
            held.append(each)
        return torch.tensor(held, dtype=torch.float64).mean(0)

    def options_mask():
        return masks_of(options.mask)

    shadows = [plain.shadow(0), plain.shadow(1)]
    found = adapt([replace(victim, model=model) for model in shadows], options, WIDTHS)
    assert found.tolist() == pytest.approx(twin(shadows).tolist(), abs=1e-5)
    row = row_of(rounded, attack="difference", round=0.05, width_by="shadows")
    assert row["cosine"] == pytest.approx(float(found.max()), abs=1e-12)
    assert abs(row["cosine"] - float(twin([plain.target(0)])[0])) > 1e-3


def test_a_row_of_rounding_is_the_mean_over_targets(plain, rounded):
    """Twin: each victim alone behind the mask; values averaged label by label, medians over all images."""
    row = row_of(rounded, attack="nes", round=0.05, width_by="shadows")
    options = InvertOptions(gradient="nes", width=row["width"], mask=("round_by:0.05",))
    held, values, sure, queries = victims(plain, 0), [], [], []
    for victim in held:
        found = attacks.by_miface(victim, options, torch.arange(3), steps=20)
        values.append(measured.measured(victim, "", measured.Row(found.x, found.y, False)).values)
        p = forward(victim.model, found.x).double().softmax(-1)
        sure += [float(p[i, i]) for i in range(3)]
        queries += found.queries.tolist()
    for name in rebuilt.MEASURES:
        mean = [sum(float(v[name][i]) for v in values) / len(values) for i in range(3)]
        assert row[name] == pytest.approx(sum(mean) / 3)
    assert row["confidence"] == pytest.approx(float(torch.tensor(sure).double().quantile(0.5)))
    assert row["queries"] == round(sum(queries) / len(queries))
    assert row["targets"] == 2


def test_intervals_go_over_labels():
    """Wrong version: images of several targets counted as if they were labels of their own."""
    value = torch.tensor([1.0, 1.0, 0.0, 1.0]).double()
    one = Measured(
        "a", measured.Row(torch.zeros(4, 1), torch.arange(4), False), {"nearest_id": value}, None, None
    )
    alone, twice = ({"nearest_id": averaged(rows).values["nearest_id"]} for rows in ([one], [one, one]))
    assert torch.equal(alone["nearest_id"], twice["nearest_id"])
    other = replace(one, values={"nearest_id": 1 - value})
    assert averaged([one, other]).values["nearest_id"].tolist() == [0.5] * 4
    assert averaged([one, replace(one, values={"nearest_id": None})]).values["nearest_id"] is None


def test_paired_with_one_step_and_with_plain_answers(rounded):
    row = row_of(rounded, attack="nes", round=0.05, width_by="narrowest")
    assert {"against_one_step", "against_unrounded", "p_distance_unrounded"} <= row.keys()
    assert row["against_unrounded"].startswith("not told apart")  # by three labels
    unrounded = row_of(rounded, attack="nes", round=0, width_by="narrowest")
    assert pd.isna(unrounded["against_unrounded"])
    assert pd.isna(row_of(rounded, attack="class mean")["against_one_step"])


def test_one_judge_looks_at_all_smoothings(plain, smooth, both):
    """The second zoo alone, with a judge of its own training, gives the same rows."""
    alone = smoothing({"smooth": smooth}, steps=30).to_dict("records")
    for row in alone:
        same = row_of(both, zoo="smooth", row=row["row"])
        assert all(row[name] == same[name] for name in rebuilt.FULL)
    ours, theirs = (victims(zoo, 0)[1].judge.net.state_dict() for zoo in (plain, smooth))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_rows_of_smoothing(plain, smooth, both):
    assert both["row"].tolist() == ["miface", "miface, no stop", "one step", "class mean"] * 2
    assert both["label_smoothing"].tolist() == [0.0] * 4 + [0.3] * 4  # sorted, whatever the zoos' order
    means = both[both["row"] == "class mean"]
    assert means["feature_distance"].nunique() == 1
    for name, zoo in (("plain", plain), ("smooth", smooth)):
        row = row_of(both, zoo=name, row="miface")
        assert row["train_accuracy"] == pytest.approx(zoo.accuracy()["train"])
        victim = [_of(zoo, a) for a in range(2)]
        held = [v.data[v.comparison] for v in victim]
        right = [
            float((v.model(part.x).argmax(1) == part.y).double().mean())
            for v, part in zip(victim, held, strict=True)
        ]
        assert row["accuracy"] == pytest.approx(sum(right) / 2)
    assert pd.isna(row_of(both, zoo="plain", row="miface")["against_unsmoothed"])
    assert row_of(both, zoo="smooth", row="miface")["against_unsmoothed"] is not None


def _of(zoo, a):
    rows = zoo.target_member[a].nonzero()[:, 0]
    return judged("mlp", zoo.target(a), zoo.pool, rows, zoo.aux.x, None, {}, 0)


def test_each_row_of_smoothing_is_its_own_models(smooth, both):
    """Wrong version: the first zoo's models under every name."""
    row = row_of(both, zoo="smooth", row="miface")
    white = invert(victims(smooth, 0), "miface", InvertOptions(), steps=30)
    assert row["confidence"] == white.line(0)["confidence"]
    assert row["confidence"] != row_of(both, zoo="plain", row="miface")["confidence"]
    assert row["reached"] == float((torch.cat(white.sure) >= 0.99).double().mean())


def test_smoothing_is_shown_apart_from_the_stop(both):
    """Wrong version: the attack on one target stops at its fifth step, on the other at its fiftieth."""
    for name in ("plain", "smooth"):
        stops, goes_on = (row_of(both, zoo=name, row=row) for row in ("miface", "miface, no stop"))
        assert goes_on["steps"] == 30 >= stops["steps"]
        assert goes_on["confidence"] >= stops["confidence"]
    assert row_of(both, zoo="plain", row="miface")["steps"] < 30


def test_what_cannot_be_is_refused(plain, smooth, tmp_path):
    for zoo, got in ((smooth, "0 and 2"), (tiny(tmp_path, shadows=2, targets=0), "2 and 0")):
        with pytest.raises(ValueError, match=rf"zoo must hold 2\+ shadows and a target, got {got}"):
            rounding(zoo)
    with pytest.raises(ValueError, match=r"rounds must be one or more of 0 to 1, got \[1.5\]"):
        rounding(plain, rounds=[1.5])
    for widths in ([0.0], []):
        with pytest.raises(ValueError, match="widths must be one or more above 0"):
            rounding(plain, widths=widths)
    with pytest.raises(ValueError, match="zoo must hold a target, got none"):
        smoothing({"none": tiny(tmp_path, shadows=2, targets=0)})
    other = tiny(tmp_path, LEARNS, data=DATA, shadows=0, targets=2, seed=1)
    with pytest.raises(ValueError, match="same data, split and targets' rows, got others in 'other'"):
        smoothing({"plain": plain, "other": other})
    with pytest.raises(ValueError, match="net must be another than dae"):
        ordered(ZooOptions(net="dae"), shadows=0, targets=1)


def test_orders_differ_in_smoothing_alone():
    orders = EXPERIMENTS["smoothing"].orders(ZooOptions(), ())
    assert [order.recipe.label_smoothing for order in orders.values()] == list(SMOOTHINGS)
    assert len({replace(order.recipe, label_smoothing=0.0) for order in orders.values()}) == 1
    (order,) = EXPERIMENTS["rounding"].orders(ZooOptions(), ()).values()
    assert order.settings["shadows"] == rounding_.SHADOWS
    assert order.settings["targets"] >= 1


@pytest.mark.parametrize("name", ["rounding", "smoothing"])
def test_pictures_and_tables(name, rounded, both, tmp_path):
    frame = {"rounding": rounded, "smoothing": both}[name]
    manifest = {"seed": 0, "commit": "0123", "command": f"glasslab experiment {name}"}
    save(tmp_path, name, frame, manifest | {"zoos": frame.attrs["zoos"]})
    assert (tmp_path / f"{name}.png").stat().st_size > 1000
    page = Console(file=StringIO(), width=100)
    page.print(table(EXPERIMENTS[name].short(frame), name))
    said = page.file.getvalue()
    shown = {"rounding": ("narrowest", "public mean", "weights", "distance", "queries")}
    assert all(word in said for word in shown.get(name, ("miface", "one step", "class mean", "accuracy")))
