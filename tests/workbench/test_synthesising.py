"""`glasslab synthesize`: what it makes and keeps, what it costs, and that nothing finished is lost."""

import json
from dataclasses import replace
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from zoos import made

from glasslab.oracle import Oracle
from glasslab.split import subseed
from glasslab.zoo import Zoo
from synthesis.features import features_of
from synthesis.hillclimb import NOTES, PRESETS, hillclimb
from synthesis.quality import quality
from synthesis.report import Covered, Nearest, Quality
from synthesis.synthetic import Synthetic
from workbench import steps
from workbench.cli import main
from workbench.options import SynthesizeOptions
from workbench.synthesising import blocks, command, making
from workbench.synthesising.blocks import Block
from workbench.synthesising.plan import Plan, planned

N, D, CLASSES = 30, 24, 3
PROBE, BLOCK = 10, 8


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a table of zeros and ones, and a zoo's root."""
    folder = tmp_path_factory.mktemp("place")
    data, g = made(n=400, shape=(D,)), torch.Generator().manual_seed(0)
    centre = torch.rand(CLASSES, D, generator=g) < 0.3
    x = (centre[data.y] ^ (torch.rand(400, D, generator=g) < 0.2)).float()
    np.savez(folder / "bits.npz", x=x.numpy(), y=data.y.numpy())
    return folder


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """Blocks of few records, and no report but where a test wants it."""
    monkeypatch.setattr(making, "PROBE", PROBE)
    monkeypatch.setattr(making, "BLOCK", BLOCK)
    monkeypatch.setattr(command, "quality", lambda *_, seed: FOUND)
    monkeypatch.chdir(tmp_path)


NOT = dict.fromkeys(("density", "marginal", "pairs", "two_sample", "transfer", "confidence"))
FOUND = Quality(
    **NOT,
    **{"name": "x", "synthetic": 2, "real_train": 3, "real_held": 3},
    nearest=Nearest(1.0, 2.0, 0.5, 3, 0),  # a doubt
    coverage=(Covered(1, None, "few", 3, 2, 9),),  # a class that is hard
    refused=dict.fromkeys(NOT, "not asked"),
)


def words(place, folder, *more):
    data = ["--data", f"npz:{place / 'bits.npz'}", "--recipe", "epochs=20", "--root", str(place / "zoo")]
    return ["synthesize", *data, "--records", str(N), "--conf-min", "0.4", "--out", str(folder), *more]


def said(place, **more):
    """The same as options."""
    held = {"data": f"npz:{place / 'bits.npz'}", "recipe": "epochs=20", "root": place / "zoo"}
    return SynthesizeOptions(**{**held, "records": N, "conf_min": 0.4, **more})


def run(place, folder, *more):
    """(the document, the records)."""
    assert main(words(place, folder, *more)) == 0
    return json.loads((folder / "synthesize.json").read_text()), load_file(folder / "synthetic.safetensors")


def plain(place, folder, method, *more):
    """Of another method, which has no conf_min."""
    held = words(place, folder, "--method", method, *more)
    at = held.index("--conf-min")
    assert main(held[:at] + held[at + 2 :]) == 0
    return json.loads((folder / "synthesize.json").read_text()), load_file(folder / "synthetic.safetensors")


@pytest.fixture(scope="module")
def zoo(place):
    return steps.trained(planned(said(place)).order)


@pytest.fixture
def whole(place, tmp_path):
    return run(place, tmp_path / "whole")


def files(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*-*.safetensors")}


def interrupt(monkeypatch, number, after):
    """Ctrl-C in block `number`, after so many queries."""
    block = Plan.block

    def stops(plan, oracle, ids, at, tick):
        def counts(finished, queries):
            tick(finished, queries)
            if at == number and queries >= after:
                raise KeyboardInterrupt

        return block(plan, oracle, ids, at, counts)

    monkeypatch.setattr(Plan, "block", stops)


def test_what_is_in_the_folder(whole, place, tmp_path, zoo):
    document, records = whole
    folder = tmp_path / "whole"
    kept = [path.name for path in sorted(folder.iterdir())]
    assert kept[-2:] == ["synthesize.json", "synthetic.safetensors"]
    assert len(kept) == 2 + 4  # 10, 8, 8, 4
    assert [p.name for p in tmp_path.iterdir()] == ["whole"]  # nothing elsewhere
    manifest = document["manifest"]
    assert {"seed", "commit", "versions", "device", "machine", "command", "zoo", "recipe"} <= manifest.keys()
    assert manifest["made"] == len(records["x"]) == len(records["confidence"]) == N
    assert manifest["queries"] == sum(row["queries"] for row in document["rows"])
    assert manifest["queries_per_record"] == manifest["queries"] / N
    assert [row["wanted"] for row in document["rows"]] == [10, 10, 10]
    assert records["y"].tolist() == [i % CLASSES for i in range(N)]
    assert document["reasons"] == {"sampled": N}
    asked = Oracle(zoo.target(0))(records["x"]).gather(1, records["y"][:, None])[:, 0]
    assert torch.equal(asked, records["confidence"])
    assert (records["confidence"] > 0.4).all()


def test_it_is_hill_climbing_block_by_block(whole, place, tmp_path, zoo):
    """Twin: the blocks one by one. Wrong version: every block with the same draws."""
    features, oracle = features_of(zoo.aux), Oracle(zoo.target(0))
    parts = []
    for number, ids in enumerate(torch.arange(N).split([10, 8, 8, 4])):
        seed = subseed(0, "synthesize", number)
        parts.append(hillclimb(oracle, ids % 3, features, shape=(D,), conf_min=0.4, seed=seed))
    assert torch.equal(torch.cat([part.x for part in parts]), whole[1]["x"])
    assert oracle.queries == whole[0]["manifest"]["queries"]
    again = hillclimb(
        oracle, torch.arange(10, 18) % 3, features, shape=(D,), conf_min=0.4, seed=subseed(0, "synthesize", 0)
    )
    assert not torch.equal(again.x, whole[1]["x"][10:18])


def test_the_same_command_makes_nothing_again(whole, place, tmp_path, monkeypatch):
    before = files(tmp_path / "whole")

    def refuse(*arguments):
        raise AssertionError("made again")

    monkeypatch.setattr(Plan, "block", refuse)
    document, records = run(place, tmp_path / "whole")
    assert files(tmp_path / "whole") == before
    assert torch.equal(records["x"], whole[1]["x"])
    assert document["rows"] == whole[0]["rows"]
    with pytest.raises(AssertionError, match="made again"):  # other settings are another run
        run(place, tmp_path / "whole", "--seed", "1", "--root", str(place / "zoo"))


def test_more_records_go_on(whole, place, tmp_path):
    before = files(tmp_path / "whole")
    _, records = run(place, tmp_path / "whole", "--records", "40")
    assert torch.equal(records["x"][:N], whole[1]["x"])
    assert len(records["x"]) == 40
    assert before.items() <= files(tmp_path / "whole").items()
    document, records = run(place, tmp_path / "whole", "--records", "7")
    assert torch.equal(records["x"], whole[1]["x"][:7])
    assert document["manifest"]["queries"] < whole[0]["manifest"]["queries"]


def test_ctrl_c_loses_no_finished_record(whole, place, tmp_path, monkeypatch, capsys):
    """In the third block, midway. Wrong version: a block is kept only where it is complete."""
    folder = tmp_path / "stopped"
    capsys.readouterr()
    with monkeypatch.context() as patch:
        interrupt(patch, 2, 12)
        assert main(words(place, folder)) == 130
    line = capsys.readouterr().err.splitlines()[-1]
    kept = files(folder)
    held = blocks.held(folder, f"hillclimb:{next(iter(kept)).split('-')[1]}")
    finished = [i for block in held for i in block.ids[block.final].tolist()]
    assert 18 < len(finished) < 26
    assert f"stopped: {len(finished)} of 30 records are finished and kept in {folder}" in line
    assert not (folder / "synthesize.json").exists()
    spent = sum(block.queries for block in held)

    document, records = run(place, folder)
    assert kept.items() <= files(folder).items()
    assert document["manifest"]["queries"] > spent
    assert document["reasons"] == {"sampled": N}
    mine = torch.cat([block.made.x for block in held])
    assert torch.equal(records["x"][torch.tensor(finished)], mine)
    assert torch.equal(records["x"][:18], whole[1]["x"][:18])
    total = sum(block.queries for block in blocks.held(folder, document["manifest"]["method"]))
    assert document["manifest"]["queries"] == total
    assert f"{total:,} in all" in capsys.readouterr().out


def test_a_crash_between_blocks_changes_nothing(whole, place, tmp_path, monkeypatch):
    folder, block = tmp_path / "crashed", Plan.block

    def crashes(plan, oracle, ids, at, tick):
        if at == 2:
            raise RuntimeError("power")
        return block(plan, oracle, ids, at, tick)

    with monkeypatch.context() as patch:
        patch.setattr(Plan, "block", crashes)
        with pytest.raises(RuntimeError, match="power"):
            main(words(place, folder))
    document, records = run(place, folder)
    assert torch.equal(records["x"], whole[1]["x"])
    assert document["manifest"]["queries"] == whole[0]["manifest"]["queries"]


def test_ctrl_c_while_a_block_is_written(place, tmp_path, monkeypatch):
    keep, calls = blocks.keep, []

    def once(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return keep(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(blocks, "keep", once)
        assert main(words(place, tmp_path / "run")) == 130
    assert len(files(tmp_path / "run")) == 2


@pytest.mark.parametrize("budget", [1, 9, 40, 90])
def test_the_budget_holds_for_all_runs_together(whole, place, tmp_path, budget):
    """The probe counts, and so does an earlier run; what is made is a part of what is made without."""
    assert whole[0]["manifest"]["queries"] > 90
    document, records = run(place, tmp_path / "run", "--budget", str(budget))
    assert document["manifest"]["queries"] == budget
    assert document["reasons"]["budget"] + len(records["x"]) == N
    rows = {tuple(x) for x in whole[1]["x"].tolist()}
    assert {tuple(x) for x in records["x"].tolist()} <= rows
    again, same = run(place, tmp_path / "run", "--budget", str(budget))
    assert again["manifest"]["queries"] == budget
    assert torch.equal(same["x"], records["x"])
    more, records = run(place, tmp_path / "run", "--budget", str(budget + 30))
    assert budget < more["manifest"]["queries"] <= budget + 30
    assert {tuple(x) for x in same["x"].tolist()} <= {tuple(x) for x in records["x"].tolist()}


def test_a_class_that_is_never_sure_is_a_line(place, tmp_path, capsys):
    document, records = run(place, tmp_path / "run", "--conf-min", "1", "--iter-max", "3")
    assert document["reasons"] == {"exhausted": N}
    assert len(records["x"]) == 0
    assert document["manifest"]["queries_per_record_made"] is None
    assert len(document["hard"]) == CLASSES
    out = capsys.readouterr().out
    assert all(f"! class {c}: 0 of 10 records made" in out for c in range(CLASSES))
    assert "! class 1: 2 of 9" not in out  # the report's own lines of this kind
    assert "! nearer to training" in out
    assert "mean queries 3.0 per wanted record; 90 in all" in out


def test_marginals_ask_once_a_record(place, tmp_path, zoo):
    document, records = plain(place, tmp_path / "run", "marginals", "--budget", "30")
    assert document["manifest"]["queries"] == N
    assert torch.equal(Oracle(zoo.target(0), reveals="labels")(records["x"]), records["y"])
    share = zoo.aux.x.mean(0)
    assert not torch.equal(records["x"][:10], records["x"][10:20])  # a draw of its own for each block
    assert ((records["x"].mean(0) - share).abs() < 5 * (share * (1 - share) / N).sqrt() + 1e-9).all()
    document, records = plain(place, tmp_path / "two", "marginals", "--by-class")
    assert document["manifest"]["queries"] == 0
    assert records["confidence"].isnan().all()
    assert records["y"].bincount().tolist() == [10, 10, 10]
    assert document["rows"][0]["confidence"] is None


def test_noisy_records_are_auxs(place, tmp_path, zoo):
    _, records = plain(place, tmp_path / "run", "noisy", "--rate", "0.125")
    away = (records["x"][:, None] != zoo.aux.x[None]).sum(-1)
    assert ((away == 3) & (records["y"][:, None] == zoo.aux.y)).any(1).all()
    _, longer = plain(place, tmp_path / "run", "noisy", "--rate", "0.125", "--records", "40")
    assert torch.equal(longer["x"][:N], records["x"])
    nearest = (longer["x"][:, None] != zoo.aux.x[None]).sum(-1).argmin(1)
    assert len(nearest.unique()) > 35  # no record twice, though one or two may be nearer to another


@pytest.mark.parametrize("more", [("--mask", "round_to:1"), ("--reveals", "labels"), ("--mask", "top_k:1")])
def test_masks_run_to_the_end_and_say_reasons(place, tmp_path, more):
    document, _ = run(place, tmp_path / "run", *more, "--iter-max", "30")
    assert sum(document["reasons"].values()) == N
    assert document["reasons"].keys() <= {"sampled", "exhausted"}


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_a_start_from_a_file(place, tmp_path, kind, zoo):
    """Records that the target is sure of come back as they are; training records among them are told."""
    sure = Oracle(zoo.target(0))(zoo.pool.x)[:, 0].argsort(descending=True)[:5]
    x = zoo.pool.x[sure]
    path = tmp_path / f"public.{kind}"
    np.savez(path, x=x.numpy()) if kind == "npz" else save_file({"x": x}, path)
    document, records = run(
        place, tmp_path / "run", "--start", str(path), "--conf-min", "0", "--records", "60"
    )
    near = (records["x"][records["y"] == 0][:, None] == x).all(-1).any(1)
    assert near.double().mean() > 0.3
    inside = int(zoo.target_member[0][sure].sum())
    assert inside
    held = document["manifest"]["checks"]
    assert held == [f"{inside} of 5 records that the synthesis learned from are training records"]


def test_another_file_of_the_same_name_is_another_run(place, tmp_path):
    names = []
    for bit in (0.0, 1.0):
        np.savez(tmp_path / "x.npz", x=np.full((2, D), bit))
        names.append(planned(said(place, start=str(tmp_path / "x.npz"))).named("zoo"))
    usual = planned(said(place))
    names += [usual.named("zoo"), usual.named("other"), planned(said(place, conf_min=0.5)).named("zoo")]
    assert len(set(names)) == 5
    longer = planned(said(place, records=99, budget=7, out=tmp_path))
    assert longer.named("zoo") == usual.named("zoo")


def test_starts_from_marginals_keep_the_density(place, tmp_path, zoo, monkeypatch):
    monkeypatch.setattr(making, "BLOCK", 200)
    dense = float(zoo.aux.x.mean())
    _, records = run(
        place, tmp_path / "run", "--start", "marginals", "--change", "resample", "--records", "150"
    )
    assert abs(float(records["x"].mean()) - dense) < 0.06


def test_flags_come_before_the_preset(place):
    held = replace(said(place), data="digits", preset="shokri2017_purchase", conf_min=None)
    with pytest.raises(
        ValueError, match="preset shokri2017_purchase needs 128\\+ features, got 64 in digits"
    ):
        planned(held)
    from workbench.synthesising.plan import _climbing

    assert _climbing(held) == PRESETS["shokri2017_purchase"]
    assert _climbing(replace(held, conf_min=0.9)) == PRESETS["shokri2017_purchase"] | {"conf_min": 0.9}
    assert _climbing(SynthesizeOptions()) == {"conf_min": 0.2, "iter_max": 1000}


def test_the_help_names_the_presets_with_their_marks(capsys):
    kind = get_type_hints(SynthesizeOptions)["preset"]
    assert {name for part in get_args(kind) for name in get_args(part)} == PRESETS.keys()
    with pytest.raises(SystemExit):
        main(["synthesize", "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert all(" ".join(note.split()) in text for note in NOTES.values())


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ("--method climb", "'climb'"),
        ("--records 0", "records must be 1 or more, got 0"),
        ("--budget -1", "budget must be 1 or more, got -1"),
        ("--conf-min 1.5", "conf_min must lie in [0, 1], got 1.5"),
        ("--iter-max 0", "iter_max must be 1 or more, got 0"),
        ("--method noisy --rate 2", "rate must lie in [0, 1], got 2"),
        ("--method noisy --records 99999", "records must be at most aux's 360 for noisy, got 99999"),
        ("--method noisy --budget 5", "budget must be left out for noisy, got 5"),
        ("--method noisy --conf-min .3", "conf_min must be left out for noisy, got 0.3"),
        ("--method marginals --start marginals", "start must be left out for marginals"),
        ("--method marginals --budget 299", "budget must be 300+, a query a record, for marginals, got 299"),
        ("--method marginals --by-class --budget 9", "budget must be left out for by_class"),
        ("--by-class", "by_class must be left out for hillclimb, got True"),
        ("--rate .2", "rate must be left out for hillclimb, got 0.2"),
        ("--preset shokri2017_purchase", "preset shokri2017_purchase needs 128+ features, got 64 in digits"),
        ("--preset shokri", "'shokri'"),
        ("--start nowhere.npz", "start must be random, marginals or a file .safetensors or .npz"),
        ("--start pickled.npz", "start must hold records x, got pickled.npz"),
        ("--start other.npz", "start must hold records of shape [1, 8, 8], got [3, 5] in other.npz"),
        ("--start bright.npz", "start must hold legal values of its features, got 2 of 2 records"),
        ("--start torn.safetensors", "start must hold records x, got torn.safetensors"),
        ("--start named.npz", "start must hold records x, got named.npz"),
        ("--mask blur:3", "mask must be one of"),
        ("--data digitz", "got 'digitz'"),
        ("--net cmn", "got 'cmn'"),
        ("--recipe epoch=3", "got 'epoch=3'"),
    ],
)
def test_a_mistake_is_one_line_before_any_training(tmp_path, capsys, monkeypatch, more, line):
    def refuse(*arguments, **settings):
        raise AssertionError("trained")

    monkeypatch.setattr(Zoo, "train", refuse)
    np.savez("pickled.npz", x=np.array([{"a": 1}], dtype=object))
    np.savez("other.npz", x=np.zeros((3, 5)))
    np.savez("bright.npz", x=np.full((2, 1, 8, 8), 255.0))
    np.savez("named.npz", images=np.zeros((3, 1, 8, 8)))
    (tmp_path / "torn.safetensors").write_bytes(b"\0" * 20)
    before = {path.name for path in tmp_path.iterdir()}
    try:
        code = main(["synthesize", *more.split()])
    except SystemExit as end:
        code = end.code
    assert code == 2
    held = capsys.readouterr()
    assert held.out == ""
    assert held.err.count("\n") == 1
    assert line in held.err
    assert {path.name for path in tmp_path.iterdir()} == before


def _made(wanted, reason, queries, x):
    good = torch.tensor([r == "sampled" for r in reason])
    y = torch.tensor(wanted)
    held = torch.tensor(x).float()[:, None]
    return Synthetic(
        held, y[good], held[:, 0].double(), y, good, torch.tensor(queries), tuple(reason), "hillclimb:0"
    )


def test_blocks_are_merged_by_record():
    """By hand: record 1 is begun twice, record 3 thrice, record 5 never."""
    first = Block(
        torch.tensor([0, 1, 3]),
        _made([0, 1, 0], ["sampled", "interrupted", "interrupted"], [2, 3, 4], [7.0]),
        1.0,
    )
    second = Block(
        torch.tensor([1, 2, 3]), _made([1, 2, 0], ["sampled", "exhausted", "budget"], [5, 9, 1], [8.0]), 1.0
    )
    third = Block(torch.tensor([3, 4]), _made([0, 1], ["sampled", "budget"], [6, 2], [9.0]), 1.0)
    held = [first, second, third]
    assert blocks.missing(held, 6).tolist() == [4, 5]
    assert blocks.missing(held, 3).tolist() == []
    whole = blocks.merged(held, torch.arange(6) % 3, (1,), "hillclimb:1")
    assert whole.x[:, 0].tolist() == [7.0, 8.0, 9.0]
    assert whole.y.tolist() == [0, 1, 0]
    assert whole.queries.tolist() == [2, 8, 9, 11, 2, 0]
    assert whole.reason == ("sampled", "sampled", "exhausted", "sampled", "budget", "budget")
    short = blocks.merged(held, torch.arange(2), (1,), "hillclimb:1")
    assert short.x[:, 0].tolist() == [7.0, 8.0]
    assert short.queries.tolist() == [2, 8]


def test_a_block_comes_back_as_it_was(tmp_path):
    block = Block(torch.tensor([4, 5]), _made([0, 1], ["sampled", "invalid"], [2, 3], [7.0]), 1.25)
    blocks.keep(tmp_path, "hillclimb:ab", 3, block)
    (read,) = blocks.held(tmp_path, "hillclimb:ab")
    assert blocks.held(tmp_path, "hillclimb:cd") == []
    assert (read.seconds, read.made.reason, read.ids.tolist()) == (1.25, block.made.reason, [4, 5])
    assert torch.equal(read.made.x, block.made.x)


def test_what_is_ahead_follows_from_the_probe():
    block = Block(torch.arange(4), _made([0, 1, 2, 0], ["sampled"] * 4, [10, 10, 10, 10], [1.0] * 4), 2.0)
    assert making.ahead([block], 100, None) == (
        "4 records took 40 queries and 2.0 s; 100 more: about 1,000 queries and 50 s"
    )
    assert "about 600 queries and 30 s" in making.ahead([block], 100, 600)


def test_the_report_reads_the_targets_records(place, tmp_path, monkeypatch, zoo, capsys):
    """For the evaluator only. Wrong version: training and held-out records swapped."""
    seen = []

    def watched(synthetic, train, held, **settings):
        seen.append((train, held))
        return quality(synthetic, train, held, records=60, **settings)

    monkeypatch.setattr(command, "quality", watched)
    document, _ = run(place, tmp_path / "run")
    assert "100 records" not in capsys.readouterr().err
    ((train, held),) = seen
    assert torch.equal(train.x, zoo.pool.x[zoo.target_member[0]])
    assert torch.equal(held.x, zoo.pool.x[~zoo.target_member[0]])
    assert document["quality"]["evaluator_only"] is True
    assert document["quality"]["real_train"] == int(zoo.target_member[0].sum())
    assert document["quality"]["confidence"]["n"] == N


def test_the_probe_is_said(place, tmp_path, capsys):
    run(place, tmp_path / "run")
    err = capsys.readouterr().err
    assert "10 records took " in err
    assert "20 more: about" in err
    assert len(err.splitlines()) == 3
