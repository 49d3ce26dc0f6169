"""Tables of the open problem: what is measured on tiny zoos, and what is left of a broken run."""

import importlib
import json
from dataclasses import replace

import pytest
import torch
from zoos import RECIPE, tiny

from glasslab.split import stream
from whitebox.decode import decode
from whitebox.dual import dual

# no packages of ours, so they are not installed
cases = importlib.import_module("benchmark.open_problem_cases")
tables = importlib.import_module("benchmark.open_problem_tables")

DECAYED = replace(RECIPE, weight_decay=0.01, epochs=8)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    return tiny(tmp_path_factory.mktemp("zoo"), DECAYED)


def found(zoo, a=0):
    """What a solver is given of a target."""
    model = zoo.target(a)
    g = cases.expected(zoo, zoo.answers("target")[a, :, 0], zoo.pool.y)
    return model, cases.read(model, zoo.pool, "cpu"), g


def test_usual_is_the_attacks_themselves(zoo):
    model, parts, g = found(zoo)
    x, y, n = zoo.pool.x, zoo.pool.y, round(len(zoo.pool) / 2)
    (_, decoded), (_, solved) = cases.usual(model, parts, g)
    torch.testing.assert_close(decoded, decode(model, x, y, weight_decay=0.01, n_train=n, law=cases.LAW))
    torch.testing.assert_close(solved, dual(model, x, y))


def test_a_block_knows_of_no_other_candidate(zoo):
    model, parts, g = found(zoo)
    told = {
        (row["attack"], row["coverage"]): v
        for row, v in cases.by_coverage(model, parts, g)
        if "noise" not in row
    }
    torch.testing.assert_close(told["dual", 1.0], cases.usual(model, parts, g)[1][1])
    rows = torch.randperm(len(g), generator=stream(0, "blocks")).tensor_split(20)[3]
    alone = dual(model, zoo.pool.x[rows], zoo.pool.y[rows])
    torch.testing.assert_close(told["dual", 0.05][rows], alone)
    assert not torch.allclose(told["decode", 0.5], told["decode", 1.0])


def test_layers_are_those_that_they_are_called(zoo):
    model, parts, g = found(zoo)
    told = {(row["attack"], row["layers"]): score for row, score in cases.by_layer(model, parts, g)}
    last = dual(model, zoo.pool.x, zoo.pool.y, layers="last")
    torch.testing.assert_close(told["dual", "last"], last)
    assert not torch.allclose(told["dual", "first"], last)


def test_noise_is_a_share_of_each_layer(zoo):
    model, same = (zoo.target(0) for _ in range(2))
    cases.blur(same, 0.1, stream(0))
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear):
            before, after = (cases.weights(m, name) for m in (model, same))
            share = (after - before).square().mean().sqrt() / before.square().mean().sqrt()
            assert 0.04 < share < 0.16, name  # of 27 weights and more: 4 standard errors
    noisy = cases.Released(zoo, 0.1)
    for p, q in zip(
        noisy.model("shadow", 1).parameters(), noisy.model("shadow", 1).parameters(), strict=True
    ):
        assert torch.equal(p, q)
    assert not torch.equal(noisy.answers("target"), zoo.answers("target")[:, :, 0])


def test_without_decay_decode_is_null(tmp_path):
    rows = cases.measured(cases.Released(tiny(tmp_path)))
    by = {row["attack"]: row for row in rows}
    assert by["decode"]["auc"] is None
    assert by["dual"]["auc"] is not None
    merged = cases.mean([rows, rows], {})
    assert [row["auc"] for row in merged] == [row["auc"] for row in rows]
    assert merged[0]["non_members"] == 2 * rows[0]["non_members"]


def test_each_number_of_shadows(zoo):
    rows = tables.with_shadows(zoo, (2, 4))
    assert [row["shadows"] for row in rows] == [0] * 3 + [2] * 5 + [4] * 5
    assert {row.get("rule") for row in rows} == {None, "grand", "shrunk"}
    assert [(row["attack"], row["shadows"]) for row in rows if row["auc"] is None] == [("bavaria", 2)]


def test_alone(zoo, monkeypatch):
    monkeypatch.setattr(cases, "ALONE", (10, 2))
    rows = cases.alone(cases.Released(zoo))
    assert [row["attack"] for row in rows] == ["lira", "decode", "dual"]
    assert {row["candidates"] for row in rows} == {1 + len(zoo.aux)}


def test_a_broken_run_goes_on(tmp_path, monkeypatch):
    made = []

    def table(name, fails=False):
        def rows():
            made.append(name)
            if fails:
                raise RuntimeError(name)
            return [{"attack": "dual", "tpr_at_0.1pct": 0.5}]

        return rows

    results = tmp_path / "results"
    monkeypatch.setattr(tables.record.write, "__defaults__", (results,))
    monkeypatch.setattr(
        tables, "TABLES", {"coverage": table("coverage"), "decay": table("decay", fails=True)}
    )
    with pytest.raises(RuntimeError, match="decay"):
        tables.main(folder=tmp_path)
    monkeypatch.setattr(tables, "TABLES", {"coverage": table("coverage"), "decay": table("again")})
    tables.main(only=("coverage,decay",), folder=tmp_path)
    assert made == ["coverage", "decay", "again"]
    rows = json.loads((results / "open_problem_tables.json").read_text())["rows"]
    assert [row["table"] for row in rows] == ["coverage", "decay"]
    with pytest.raises(ValueError, match="only must name some of coverage, decay, got size"):
        tables.main(only=("size",), folder=tmp_path)
