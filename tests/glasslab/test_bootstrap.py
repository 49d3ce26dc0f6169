import math

import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import norm

from glasslab import bootstrap as room
from glasslab.bootstrap import bootstrap, paired
from glasslab.metrics import above, auc, balanced, balanced_accuracy, best, tpr_at_fpr

RATES = {"20pct": 0.2, "10pct": 0.1}


def stream(seed):
    return torch.Generator().manual_seed(seed)


def world(t, n, leak, g, *, hard=0.0, varied=0.0, target=0.0, leak_b=None, shared=0.0):
    """Normal scores of one or two attacks: records `hard`, leaks `varied` by record, targets shifted.

    The noise of attack B is `shared` with A in that share of its variance.
    """
    member = torch.rand(t, n, generator=g) < 0.5
    common = hard * torch.randn(n, generator=g) + target * torch.randn(t, 1, generator=g)
    extra = varied * torch.randn(n, generator=g) * member
    noise = torch.randn(2, t, n, generator=g)
    noise[1] = math.sqrt(shared) * noise[0] + math.sqrt(1 - shared) * noise[1]
    a, b = (
        common + extra + leak_ * member + e for leak_, e in zip((leak, leak_b or 0.0), noise, strict=True)
    )
    return (a, member) if leak_b is None else (a, b, member)


def truth(leak, hard=0.0, varied=0.0, target=0.0):
    """What `world` gives in the limit of many records and targets."""
    out = math.sqrt(1 + hard**2 + target**2)
    inside = math.sqrt(out**2 + varied**2)

    def distance(cut):
        return norm.sf(cut, leak, inside) - norm.sf(cut, 0, out)

    top = -minimize_scalar(lambda cut: -distance(cut), bounds=(0, 5), method="bounded").fun
    tpr = {f"tpr_at_{name}": norm.sf(norm.isf(fpr, 0, out), leak, inside) for name, fpr in RATES.items()}
    return {"auc": norm.cdf(leak / math.hypot(out, inside)), "balanced_accuracy": 0.5 + top / 2, **tpr}


def values(score, member):
    tpr = {f"tpr_at_{name}": tpr_at_fpr(score, member, fpr).tpr for name, fpr in RATES.items()}
    return {"auc": auc(score, member), "balanced_accuracy": balanced_accuracy(score, member), **tpr}


@pytest.mark.parametrize("levels", [2, 5, None], ids=["two values", "many ties", "no ties"])
@pytest.mark.parametrize("t", [1, 3, 6])
def test_draws_equal_the_metrics_of_repeated_records(t, levels):
    g = stream(0)
    score, member = world(t, 25, 1.0, g)
    score = score.double() if levels is None else (score * levels / 4).round().double()
    drawn = room._bootstrap([score], member, stream(1), RATES, None, 40)[0]
    weight = torch.cat(list(room._weights(member, stream(1), None, 40)))
    held = best(score, member).threshold
    curve = [above(score, member, cut) for cut in (score.flatten() - 1e-9).tolist()]
    for b in range(40):
        again = [side.flatten().repeat_interleave(weight[b].long()) for side in (score, member)]
        expected = values(*again) | {"balanced_accuracy": balanced(above(*again, held))}
        for name, value in expected.items():
            assert drawn[name][b].item() == pytest.approx(value, abs=1e-12)
        moved = [above(*again, cut) for cut in (score.flatten() - 1e-9).tolist()]
        rise = max((m.tpr - m.fpr) - (c.tpr - c.fpr) for m, c in zip(moved, curve, strict=True))
        assert drawn[room.RISE][b].item() == pytest.approx(rise, abs=1e-12)


def test_one_target_keeps_its_numbers_of_members():
    member = torch.arange(30)[None] < 7
    weight = torch.cat(list(room._weights(member, stream(0), None, 4000)))
    assert (weight[:, :7].sum(1) == 7).all()
    assert (weight[:, 7:].sum(1) == 23).all()
    assert weight.var(0)[7:].mean().item() == pytest.approx(1 - 1 / 23, rel=0.03)  # a multinomial count


@pytest.mark.parametrize("over", ["records", "targets and records"])
def test_several_targets_draw_rows_and_columns(over):
    weight = torch.cat(list(room._weights(torch.zeros(6, 9).bool(), stream(0), over, 4000)))
    cells = weight.reshape(-1, 6, 9)
    rows, columns = cells.sum(2) / 9, cells.sum(1) / 6
    assert torch.equal(cells, rows[:, :, None] * columns[:, None])
    assert (cells.sum((1, 2)) == 54).all()
    assert columns.var(0).mean().item() == pytest.approx(1 - 1 / 9, rel=0.05)
    assert rows.var(0).mean().item() == pytest.approx(0 if over == "records" else 1 - 1 / 6, rel=0.05)


def test_same_seed_same_interval_whatever_else():
    score, member = world(6, 40, 1.0, stream(0))
    first = bootstrap(score, member, stream(1), draws=200)
    assert first == bootstrap(score, member, stream(1), draws=200)
    assert first != bootstrap(score, member, stream(2), draws=200)
    assert first == bootstrap(score.double().exp(), member, stream(1), draws=200)


@pytest.mark.parametrize(("t", "over"), [(4, "records"), (5, "targets and records")])
def test_targets_are_drawn_where_there_are_enough(t, over):
    score, member = world(t, 20, 1.0, stream(0))
    plain = bootstrap(score, member, stream(1), draws=50)
    assert plain == bootstrap(score, member, stream(1), over=over, draws=50)


WORLDS = {
    "null": (1, 300, {"leak": 0.0}),
    "leak": (1, 300, {"leak": 1.0}),
    "strong leak": (1, 300, {"leak": 2.5}),
    "three targets": (3, 120, {"leak": 1.0, "hard": 1.0, "varied": 0.5}),
    "two-way null": (6, 60, {"leak": 0.0, "hard": 1.0}),
    "two-way": (6, 60, {"leak": 1.0, "hard": 1.0, "varied": 0.5}),
    "two-way, targets differ": (8, 60, {"leak": 1.0, "hard": 0.5, "target": 0.3}),
}


@pytest.mark.parametrize("name", WORLDS)
def test_covers(name):
    t, n, law = WORLDS[name]
    g = stream(3)
    data = [world(t, n, g=g, **law) for _ in range(200)]
    drawn = [bootstrap(*d, g, rates=RATES, draws=200) for d in data]
    found = [values(*d) for d in data]
    for metric, true in truth(**law).items():
        ends = torch.tensor([d[metric] for d in drawn])
        covered = ((ends[:, 0] <= true) & (true <= ends[:, 1])).double().mean()
        assert covered >= 0.90, metric
        spread = torch.tensor([f[metric] for f in found]).std()
        assert (ends[:, 1] - ends[:, 0]).mean() < 2.2 * 3.92 * spread, metric


PAIRS = {
    "same law": (1, 300, {"leak": 0.7, "leak_b": 0.7, "shared": 0.5}),
    "both null": (1, 300, {"leak": 0.0, "leak_b": 0.0}),
    "better": (1, 300, {"leak": 1.5, "leak_b": 1.0, "shared": 0.8}),
    "three targets": (3, 120, {"leak": 1.0, "leak_b": 0.5, "hard": 1.0, "shared": 0.5}),
    "two-way": (6, 60, {"leak": 1.0, "leak_b": 0.5, "hard": 1.0, "varied": 0.5, "target": 0.2}),
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_difference_is_covered(name):
    t, n, law = PAIRS[name]
    g = stream(4)
    of_b = {k: v for k, v in law.items() if k not in ("leak_b", "shared")}
    true_a, true_b = truth(**of_b), truth(**(of_b | {"leak": law["leak_b"]}))
    found = [paired(*world(t, n, g=g, **law), g, rates=RATES, draws=200) for _ in range(200)]
    for metric in true_a:
        gain = true_a[metric] - true_b[metric]
        each = [f[metric] for f in found]
        assert sum(d.low <= gain <= d.high for d in each) >= 180, metric
        spread = torch.tensor([d.value for d in each]).std()
        assert torch.tensor([d.high - d.low for d in each]).mean() < 2.2 * 3.92 * spread, metric
        if gain == 0:
            # at most 5 %, and four standard errors of 200 worlds
            assert sum(d.p <= 0.05 for d in each) <= 200 * 0.05 + 4 * math.sqrt(200 * 0.05 * 0.95), metric
        elif name == "better":
            assert sum(d.p <= 0.05 for d in each) > 60, metric


@pytest.mark.parametrize(("t", "n"), [(1, 200), (1, 3200), (6, 100), (6, 1600)])
def test_narrows_with_the_root_of_n(t, n):
    # the same world at n and at 4 n; targets do not differ, so more records are all it needs
    g, width = stream(5), []
    for size in (n, 4 * n):
        drawn = [bootstrap(*world(t, size, 1.0, g), g, rates=RATES, draws=200) for _ in range(8)]
        width.append({metric: sum(d[metric].high - d[metric].low for d in drawn) for metric in drawn[0]})
    for metric in width[0]:
        assert width[0][metric] / width[1][metric] == pytest.approx(2, rel=0.25), metric


def test_an_attack_against_itself_is_zero():
    score, member = world(6, 50, 1.0, stream(6))
    for d in paired(score, score.double() * 2, member, stream(7), draws=100).values():
        assert d[:4] == (0.0, 0.0, 0.0, 1.0)


def test_a_permuted_copy_is_seldom_better():
    g, alarms = stream(8), {}
    for _ in range(200):
        score, member = world(1, 200, 1.0, g)
        copy = score.clone()
        for side in (member, ~member):
            copy[side] = score[side][torch.randperm(int(side.sum()), generator=g)]
        noisy = copy + 1e-3 * torch.randn(copy.shape, generator=g)
        for metric, d in paired(score, noisy, member, g, rates=RATES, draws=200).items():
            alarms[metric] = alarms.get(metric, 0) + (d.p <= 0.05)
    assert max(alarms.values()) <= 22


def test_p_is_two_sided_and_has_a_floor():
    score, member = torch.arange(60.0), torch.arange(60) % 20 >= 10
    far = paired(member.double() + score / 1e3, score, member, stream(9), draws=100)["auc"]
    assert far.p == 0.01
    assert far.low > 0
    assert far.value == pytest.approx(1.0 - auc(score, member))
    back = paired(score, member.double() + score / 1e3, member, stream(9), draws=100)["auc"]
    assert back[:4] == pytest.approx((-far.value, -far.high, -far.low, 0.01))


def test_few_false_positives_are_flagged():
    score, member = torch.arange(2400.0) % 7, torch.arange(2400) < 1200
    got = paired(score, score, member, stream(10), draws=5)
    flags = {"1pct": None, "0.1pct": "few_false_positives", "0.001pct": "below_resolution"}
    assert {name: got[f"tpr_at_{name}"].flag for name in flags} == flags
    assert got["auc"].flag is None


def test_equal_scores_and_lost_sides_are_defined():
    member = torch.arange(12).reshape(2, 6) == 0  # most draws lose the only member
    flat = bootstrap(torch.zeros(2, 6), member, stream(11), draws=50)
    assert flat["auc"] == (0.5, 0.5)
    assert flat["balanced_accuracy"] == (0.5, 0.5)
    assert flat["tpr_at_1pct"] == (0.0, 0.0)
    lost = next(s for s in range(99) if not (next(room._weights(member, stream(s), None, 1))[0, 0]))
    for side in (member, ~member):
        never = paired(torch.zeros(2, 6), torch.ones(2, 6), side, stream(lost), draws=1)
        assert {d[:4] for d in never.values()} == {(0.0, None, None, None)}
        assert set(bootstrap(torch.zeros(2, 6), side, stream(lost), draws=1).values()) == {None}
