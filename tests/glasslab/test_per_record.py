import math

import pytest
import torch
from scipy.stats import norm

from glasslab.checks import Floored
from glasslab.intervals import clopper_pearson
from glasslab.metrics import tpr_at_fpr
from glasslab.null_law import null_breaches
from glasslab.per_record import at_pooled_threshold, calibrated, calibrated_by_targets, empirical, gaussian


def stream(seed):
    return torch.Generator().manual_seed(seed)


def coins(t, n, g):
    return torch.rand(t, n, generator=g) < 0.5


def halves(t, n):
    return (torch.arange(t)[:, None] + torch.arange(n)) % 2 == 0


@pytest.mark.parametrize("fpr", [0.0, 0.1, 0.29, 0.9, 1.0])
@pytest.mark.parametrize("levels", [3, 1000])
def test_empirical_equals_the_metric_of_each_record(fpr, levels):
    g = stream(0)
    score, member = torch.randint(levels, (12, 30), generator=g).float(), coins(12, 30, g)
    got = empirical(score, member, fpr)
    for i in range(30):
        assert got.tpr[i].item() == tpr_at_fpr(score[:, i], member[:, i], fpr).tpr
        assert got.below_resolution[i] == (math.floor(int((~member[:, i]).sum()) * fpr + 1e-9) == 0)


def test_29_percent_of_100_targets_is_29():
    score = torch.cat([torch.arange(100.0), torch.tensor([70.5])])[:, None]
    assert empirical(score, score == 70.5, 0.29).tpr.tolist() == [1.0]
    assert empirical(score, score == 70.5, 0.28).tpr.tolist() == [0.0]


def test_a_record_without_one_side_has_no_tpr():
    member = torch.tensor([[True, False, True], [True, False, False]])
    score = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    got = empirical(score, member, 0.5)
    assert got.tpr.isnan().tolist() == [True, True, False]
    assert got.tpr[2] == 1.0
    pooled = at_pooled_threshold(score, member, 0.5)
    assert pooled.tpr.isnan().tolist() == [False, True, False]
    assert pooled.fpr.isnan().tolist() == [True, False, False]


def test_gaussian_is_the_power_of_a_threshold():
    one = torch.tensor([1.0])
    assert gaussian(0 * one, one, 0 * one, one, 0.01).item() == pytest.approx(0.01)
    got = gaussian(2 * one, 3 * one, 0.5 * one, 2 * one, 0.05).item()
    assert got == pytest.approx(norm.sf(norm.isf(0.05, 0.5, 2), 2, 3))
    assert gaussian(8 * one, one, 0 * one, one, 1e-9).item() == pytest.approx(norm.sf(norm.isf(1e-9), 8))


def test_gaussian_without_a_spread_is_a_point():
    zero, mu_in = torch.zeros(3), torch.tensor([1.0, 0.0, -1.0])
    assert gaussian(mu_in, zero, zero, zero, 0.01).tolist() == [1.0, 0.0, 0.0]


def test_empirical_and_gaussian_agree_on_gaussian_records():
    g, t, n = stream(1), 400, 60
    member = coins(t, n, g)
    mu_out, leak = 3 * torch.randn(n, generator=g), 3 * torch.rand(n, generator=g)
    sig_in, sig_out = 0.5 + torch.rand(n, generator=g), 0.5 + torch.rand(n, generator=g)
    noise = torch.randn(t, n, generator=g)
    score = mu_out + torch.where(member, leak + sig_in * noise, sig_out * noise)
    risk, seen = gaussian(mu_out + leak, sig_in, mu_out, sig_out, 0.1), empirical(score, member, 0.1)
    inside = 0
    for i in range(n):
        n_in = int(member[:, i].sum())
        low, high = clopper_pearson(round(seen.tpr[i].item() * n_in), n_in, level=0.999)
        inside += low - 0.07 <= risk[i] <= high + 0.07  # the threshold has an error of its own
    assert inside == n
    assert abs(seen.tpr.mean() - risk.mean()) < 0.02


def test_pooled_estimator_averages_to_the_pooled_rates():
    g = stream(2)
    member = torch.rand(10, 40, generator=g).argsort(0) < 5  # each record in and out equally often
    score = torch.randn(10, 40, generator=g) + member + torch.randn(40, generator=g)
    for fpr in (0.01, 0.1):
        got, point = at_pooled_threshold(score, member, fpr), tpr_at_fpr(score, member, fpr)
        assert got.tpr.mean().item() == pytest.approx(point.tpr)
        assert got.fpr.mean().item() == pytest.approx(point.fpr)


def test_pooled_estimator_shows_who_makes_the_false_positives():
    g = stream(3)
    member, easy = coins(20, 50, g), torch.arange(50) < 5
    got = at_pooled_threshold(torch.randn(20, 50, generator=g) + 5 * easy, member, 0.05)
    assert got.fpr[easy].min() > got.fpr[~easy].max()


def test_planted_canaries_rank_first():
    g, canary = stream(4), torch.arange(300) % 15 == 0
    member = coins(64, 300, g)
    score = torch.randn(64, 300, generator=g) + 5 * canary * member
    sides = [(score.masked_fill(~s, math.nan).nanmean(0), torch.ones(300)) for s in (member, ~member)]
    pooled = at_pooled_threshold(score, member, 0.01)
    for tpr in (empirical(score, member, 0.05).tpr, gaussian(*sides[0], *sides[1], 0.01), pooled.tpr):
        assert set(tpr.argsort(descending=True)[:20].tolist()) == set(canary.nonzero()[:, 0].tolist())


def test_calibration_equals_the_textbook():
    g = stream(5)
    score, member = torch.randn(20, 6, generator=g) * 3 + 100, halves(20, 6)
    mock, mock_member = torch.randn(30, 6, generator=g) + 99, coins(30, 6, g)
    by_mock, by_targets = calibrated(score, mock, mock_member), calibrated_by_targets(score, member)
    for a in range(20):
        for i in range(6):
            for got, own in (
                (by_mock, mock[~mock_member[:, i], i]),
                (by_targets, torch.stack([score[b, i] for b in range(20) if b != a and not member[b, i]])),
            ):
                own = own.double()
                assert got[a, i].item() == pytest.approx(((score[a, i] - own.mean()) / own.std()).item())


def test_calibration_removes_hardness():
    g = stream(6)
    member, hard = coins(40, 500, g), 5 * torch.randn(500, generator=g)
    score = hard + (1 + hard.abs()) * (torch.randn(40, 500, generator=g) + 2.5 * member)
    plain, own = (
        tpr_at_fpr(score, member, 0.01).tpr,
        tpr_at_fpr(calibrated_by_targets(score, member), member, 0.01).tpr,
    )
    assert own > plain + 0.2
    mock_member = coins(40, 500, g)
    mock = hard + (1 + hard.abs()) * (torch.randn(40, 500, generator=g) + 2.5 * mock_member)
    assert tpr_at_fpr(calibrated(score, mock, mock_member), member, 0.01).tpr > plain + 0.2


def test_calibration_makes_no_leak():
    # a score that took part in its own standardising would show here: non-members lose their tail
    g = stream(7)
    score, member = (
        torch.randn(40, 2000, generator=g) * (1 + torch.rand(2000, generator=g)),
        coins(40, 2000, g),
    )
    rates = {"1pct": 0.01, "0.1pct": 0.001}
    assert null_breaches(calibrated_by_targets(score, member), member, checks=6, rates=rates) == []
    mock, mock_member = torch.randn(30, 2000, generator=g), torch.rand(30, 2000, generator=g).argsort(0) < 15
    assert null_breaches(calibrated(score, mock, mock_member), member, checks=6, rates=rates) == []


def test_calibration_floors_what_has_no_spread():
    g = stream(8)
    score, member = torch.randn(30, 4, generator=g), halves(30, 4)
    score[:, 0] = 0.1 + member[:, 0].float()
    with pytest.warns(Floored, match="25.0% of calibrating spreads are 0"):
        got = calibrated_by_targets(score, member)
    assert got.isfinite().all()
    assert got[~member[:, 0], 0].abs().max() < 1e-6
    assert (got[member[:, 0], 0] > 0.5).all()
    with pytest.warns(Floored, match="100.0%"):
        assert calibrated_by_targets(torch.full((30, 4), 0.1), member).abs().max() < 1e-6


def test_refuses():
    score, member = torch.zeros(6, 3), halves(6, 3)
    with pytest.raises(ValueError, match="must leave 8 non-member scores of each record, got 2 for one"):
        calibrated_by_targets(score, member)
    with pytest.raises(ValueError, match="must leave 8 non-member scores of each record, got 3 for one"):
        calibrated(score, score, member)
    with pytest.raises(ValueError, match="fpr must lie in"):
        empirical(score, member, 1.5)
    with pytest.raises(ValueError, match="fpr must lie between 0 and 1, got 0"):
        gaussian(*[torch.ones(1)] * 4, 0.0)
    with pytest.raises(ValueError, match="score must be finite"):
        empirical(score / 0, member, 0.5)
