"""What a zoo holds: models, rows, parts, files."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from zoos import RECIPE, RESOLVED, files, made, starts, tiny

from glasslab import Zoo, growth
from glasslab.nets import build
from glasslab.plan import Plan, plan
from glasslab.split import shadow_rows, split, subseed, target_rows
from glasslab.train import train

SERIAL = replace(RECIPE, engine="serial")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """20 shadows and 3 targets in chunks of 16; nobody writes to it."""
    return tiny(tmp_path_factory.mktemp("zoo"), shadows=20, targets=3)


def test_a_model_is_what_the_engine_makes_of_its_row_and_seed(zoo):
    parts = split(made(), 0)
    pool = made()[parts.pool]
    for kind, rows in (("shadow", shadow_rows), ("target", target_rows)):
        member = rows(32, len(pool), 0)[16:32] if kind == "shadow" else rows(16, len(pool), 0)
        seeds = [subseed(0, kind, "weights", r) for r in (range(16, 32) if kind == "shadow" else range(16))]
        alone = train(lambda: build(RECIPE, (6,), 3), RESOLVED, pool.x, pool.y, member, seeds)
        model = zoo.shadow(19) if kind == "shadow" else zoo.target(2)
        row = 3 if kind == "shadow" else 2
        assert all(torch.equal(t, alone[name][row]) for name, t in model.state_dict().items())


def test_rows_are_those_of_the_split(zoo):
    n = len(split(made(), 0).pool)
    assert torch.equal(zoo.shadow_member, shadow_rows(20, n, 0))
    assert torch.equal(zoo.target_member, target_rows(3, n, 0))
    assert torch.equal(zoo.member("shadow"), zoo.shadow_member)
    assert torch.equal(zoo.member("target"), zoo.target_member)


def test_parts_are_those_of_the_split(zoo):
    data, parts = made(), split(made(), 0)
    for part, ids in ((zoo.pool, parts.pool), (zoo.aux, parts.aux), (zoo.test, parts.test)):
        assert part.digest == data[ids].digest
    assert (zoo.seed, zoo.recipe, zoo.data.digest) == (0, RESOLVED, data.digest)


def test_models_are_in_eval_mode_and_made_anew(zoo):
    state = torch.get_rng_state()
    again = Zoo.open(zoo.folder, made())
    one, two = again.shadow(0), again.shadow(0)
    assert not any(layer.training for layer in one.modules())
    one[1].weight.data.zero_()
    assert two[1].weight.any()
    assert all(p.requires_grad for p in two.parameters())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("of", "i"), [("shadow", 20), ("shadow", -1), ("target", 3)])
def test_a_model_that_is_not_there_is_refused(zoo, of, i):
    with pytest.raises(ValueError, match=rf"{of} must lie in 0 .. \d+, got {i}"):
        getattr(zoo, of)(i)


def test_statistics_of_aux_go_before_the_net(tmp_path):
    data = made()
    zoo = tiny(tmp_path, replace(RECIPE, scale="standard"), data=replace(data, x=5 * data.x - 7))
    model, x = zoo.target(0), zoo.aux.x
    torch.testing.assert_close(model[0].mean, x.mean(0))
    torch.testing.assert_close(model[0].std, x.std(0, correction=0))
    torch.testing.assert_close(model[0](x).mean(0), torch.zeros(6), atol=1e-5, rtol=0)


def test_statistics_of_images_are_one_a_channel(tmp_path):
    zoo = tiny(tmp_path, replace(RECIPE, scale="standard"), data=made(shape=(3, 4, 4)), shadows=2, targets=0)
    torch.testing.assert_close(zoo.shadow(0)[0].mean.flatten(), zoo.aux.x.mean((0, 2, 3)))
    torch.testing.assert_close(zoo.shadow(0)[0].std.flatten(), zoo.aux.x.std((0, 2, 3), correction=0))


@pytest.mark.parametrize("patience", [0, 2])
def test_val_is_for_early_stopping_only(tmp_path, monkeypatch, patience):
    seen = []
    monkeypatch.setattr(growth, "train", lambda *a, val, **k: seen.append(val) or train(*a, val=val, **k))
    zoo = tiny(tmp_path, replace(RECIPE, patience=patience), shadows=0, targets=1)
    assert [val and val.digest for val in seen] == [patience and made()[zoo.split.val].digest or None]


def test_a_second_call_trains_nothing(zoo, monkeypatch):
    monkeypatch.setattr(growth, "train", None)
    before = files(zoo.folder)
    again = tiny(zoo.folder.parent, shadows=20, targets=3)
    assert files(zoo.folder) == before
    assert torch.equal(again.shadow_member, zoo.shadow_member)


def test_a_smaller_call_shows_what_was_asked(zoo):
    few = tiny(zoo.folder.parent, shadows=2, targets=1)
    assert (len(few.shadow_member), len(few.target_member)) == (2, 1)
    with pytest.raises(ValueError, match="shadow must lie"):
        few.shadow(2)
    assert len(Zoo.open(zoo.folder, made()).shadow_member) == 20


def test_the_manifest_is_strict_sorted_and_says_what_was_trained(zoo):
    def refuse(word):
        raise AssertionError(word)

    raw = (zoo.folder / "manifest.json").read_text()
    manifest = json.loads(raw, parse_constant=refuse)
    assert raw == json.dumps(manifest, sort_keys=True, indent=1) + "\n"
    assert manifest["key"] == zoo.key
    assert manifest["recipe"] == json.loads(json.dumps(RESOLVED.key()))
    assert manifest["data"]["name"] == "made"
    assert manifest["asked"] == {"shadow": 20, "target": 3}
    assert list(manifest["chunks"]) == ["shadow-0000", "shadow-0001", "target-0000"]
    for chunk in manifest["chunks"].values():
        assert chunk["threads"] == torch.get_num_threads()
        assert chunk["torch"] == torch.__version__
        assert chunk["models"] == 16
    assert not re.search(r"time|date|host|20\d\d-", raw.replace("candidate", ""))


def test_times_and_commit_go_to_the_log(zoo):
    lines = [json.loads(line) for line in (zoo.folder / "log.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines[:2]] == ["start", "end"]
    for line in lines:
        assert {"time", "host", "process", "commit", "chunk"} <= line.keys()


def test_equal_settings_give_equal_bytes(zoo, tmp_path):
    assert files(tiny(tmp_path, shadows=20, targets=3).folder) == files(zoo.folder)


@pytest.mark.parametrize(("recipe", "size"), [(RECIPE, 16), (SERIAL, 4)], ids=["stacked", "serial"])
def test_extending_equals_as_many_at_once(tmp_path, recipe, size):
    small = tiny(tmp_path / "a", recipe, shadows=2, targets=1)
    old, first = small.shadow_member.clone(), starts(small.folder)
    assert len(first) == 2
    large = small.extend(20, 2, progress=False)
    once = tiny(tmp_path / "b", recipe, shadows=20, targets=2)
    assert files(large.folder) == files(once.folder)
    assert len(starts(large.folder)) == len(set(starts(large.folder))) == -(-20 // size) + 1
    assert torch.equal(large.shadow_member[:2], old)
    assert large.shadow_member.sum(0).eq(10).all()


def test_extend_without_numbers_changes_nothing_and_with_smaller_ones_is_refused(zoo):
    before = files(zoo.folder)
    same = zoo.extend(progress=False)
    assert (len(same.shadow_member), len(same.target_member)) == (20, 3)
    assert files(zoo.folder) == before
    for wrong in ({"shadows": 18}, {"targets": 2}):
        with pytest.raises(ValueError, match=r"(20|3) or more to extend, got (18|2)"):
            zoo.extend(**wrong, progress=False)


@pytest.mark.parametrize("asked", [{"shadows": 3}, {"shadows": -2}, {"targets": -1}])
def test_odd_or_negative_numbers_are_refused_before_anything_is_written(tmp_path, asked):
    with pytest.raises(ValueError, match=r"(shadows must be even|targets must be 0 or more)"):
        tiny(tmp_path, **asked)
    assert not list(tmp_path.iterdir())


def test_no_shadows_and_no_targets_are_legal(tmp_path):
    assert len(tiny(tmp_path, shadows=0, targets=1).answers("shadow")) == 0
    assert len(tiny(tmp_path, shadows=2, targets=0).answers("target")) == 0


def test_a_bar_is_shown_on_stderr_only(tmp_path, capfd):
    Zoo.train(made(), RECIPE, shadows=2, targets=1, root=tmp_path)
    out, err = capfd.readouterr()
    assert not out
    assert "32.0 of 32 models" in err


def test_the_plan_counts_what_is_missing_and_writes_nothing(tmp_path):
    settings = {"shadows": 20, "targets": 3, "root": tmp_path}
    ahead = plan(made(), RECIPE, **settings)
    weights = 6 * 8 + 8 + 8 * 3 + 3
    assert (ahead.models_to_train, ahead.bytes) == (48, 48 * 4 * weights)
    assert ahead.seconds > 0
    assert not list(tmp_path.iterdir())
    tiny(tmp_path, shadows=20, targets=0)
    assert plan(made(), RECIPE, **settings).models_to_train == 16
    tiny(tmp_path, shadows=20, targets=3)
    assert plan(made(), RECIPE, **settings) == Plan(0, 0.0, 0)


def test_the_plan_of_a_serial_recipe_counts_its_smaller_chunks(tmp_path):
    assert plan(made(), SERIAL, shadows=4, targets=3, root=tmp_path).models_to_train == 8


def test_importing_glasslab_is_light():
    code = "import sys, glasslab; print({'sklearn', 'pandas', 'rich', 'torchvision'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
