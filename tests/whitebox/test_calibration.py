import math

import pytest
import torch
from scipy.stats import beta

from glasslab.split import stream
from whitebox.calibration import conformal, decide, precision_target

# One record at a time


def textbook_tau(scores, alpha):
    """The least of them with enough at or below it, the new one counted; None if there is none."""
    need = (1 - alpha) * (len(scores) + 1)
    for s in sorted(scores):
        if sum(other <= s for other in scores) >= need - 1e-9:
            return s
    return None


def textbook_precision(score, member, target, prior):
    n_pos = sum(member)
    n_neg = len(member) - n_pos
    for tau in sorted(score):
        hits = sum(s > tau for s, m in zip(score, member, strict=True) if m)
        alarms = sum(s > tau for s, m in zip(score, member, strict=True) if not m)
        low = beta.ppf(0.025, hits, n_pos - hits + 1) if hits else 0.0
        high = beta.ppf(0.975, alarms + 1, n_neg - alarms) if alarms < n_neg else 1.0
        if prior * low / (prior * low + (1 - prior) * high) >= target:
            return tau
    return math.inf


@pytest.mark.parametrize("alpha", [0.5, 0.1, 0.05])
def test_tau_is_that_of_the_textbook(alpha):
    g = stream(0)
    score = torch.randn(400, generator=g).mul(4).round() / 4  # with ties
    y = torch.randint(7, (400,), generator=g) // 2  # 3 is half as frequent
    tau, flags = conformal(score, y, alpha=alpha, classes=4)
    assert tau.tolist() == [textbook_tau(score[y == c].tolist(), alpha) for c in range(4)]
    assert flags == (None,) * 4


def wrong_quantile(score, alpha):
    """The plain quantile, without the rank's + 1."""
    return float(score.sort().values[math.ceil((1 - alpha) * len(score)) - 1])


@pytest.mark.parametrize(("alpha", "n"), [(0.1, 25), (0.01, 110)])
def test_the_false_positive_rate_is_that_of_the_rank(alpha, n):
    """Mean over 200 draws of two classes within 3 standard errors (false alarm 0.3 %): 0.0769 and 0.0090."""
    g, fresh = stream(0), 4000
    rates, wrong = [], []
    for _ in range(200):
        y = torch.arange(2 * n) % 2
        offset = torch.tensor([0.0, 50.0])
        score = torch.randn(2 * n, generator=g) + offset[y]
        new_y = torch.arange(fresh) % 2
        new = torch.randn(fresh, generator=g) + offset[new_y]
        claimed = decide(new, new_y, conformal(score, y, alpha=alpha, classes=2).tau)
        rates += [float(claimed[new_y == c].double().mean()) for c in range(2)]
        wrong.append(float((new[new_y == 0] > wrong_quantile(score[y == 0], alpha)).double().mean()))
    rank = math.ceil((1 - alpha) * (n + 1))
    want = (n + 1 - rank) / (n + 1)
    assert want <= alpha
    mean, error = torch.tensor(rates).double().mean(), torch.tensor(rates).double().std() / 400**0.5
    assert abs(mean - want) < 3 * error
    off = torch.tensor(wrong).double()
    assert off.mean() - want > 3 * off.std() / 200**0.5  # the plain quantile is told apart
    assert off.mean() > alpha


def test_an_offset_of_a_class_is_removed():
    g = stream(1)
    y, new_y = torch.arange(2000) % 2, torch.arange(2000) % 2
    score, new = (torch.randn(2000, generator=g) + 5 * y for _ in range(2))
    claimed = decide(new, new_y, conformal(score, y, alpha=0.1, classes=2).tau)
    one = decide(new, new_y, torch.tensor(textbook_tau(score.tolist(), 0.1)))
    rates = [[float(c[new_y == k].double().mean()) for k in (0, 1)] for c in (claimed, one)]
    assert rates[0] == pytest.approx([0.1, 0.1], abs=0.04)  # 4 standard errors of either side
    assert rates[1] == pytest.approx([0.0, 0.2], abs=0.06)


def test_a_small_class_falls_back_on_all_and_is_flagged():
    g = stream(2)
    y = torch.cat([torch.zeros(50), torch.ones(150)]).long()
    score = torch.randn(200, generator=g)
    tau, flags = conformal(score, y, alpha=0.01, classes=3)
    assert flags == ("too_few_calibration", None, "too_few_calibration")  # 50, 150 and none
    together = textbook_tau(score.tolist(), 0.01)
    assert tau.tolist() == [together, textbook_tau(score[50:].tolist(), 0.01), together]


def test_the_limit_is_one_over_alpha_less_one():
    for n, flagged in ((98, "too_few_calibration"), (99, None)):
        tau, flags = conformal(torch.arange(n).float(), torch.zeros(n).long(), alpha=0.01, classes=2)
        assert flags[0] == flagged
        assert tau[0].item() == (math.inf if flagged else 98)
    tau, flags = conformal(torch.arange(9.0), torch.zeros(9).long(), alpha=0.1, classes=2)
    assert (tau[0].item(), flags[0]) == (8, None)  # (1 - 0.1) * 10 is 9, whatever floating point makes of it


def test_too_few_in_all_claim_nothing():
    g = stream(3)
    score, y = torch.randn(50, generator=g), torch.arange(50) % 5
    tau, flags = conformal(score, y, alpha=0.01, classes=5)
    assert set(flags) == {"too_few_calibration"}
    assert tau.tolist() == [math.inf] * 5
    assert not decide(torch.full((5,), 1e30), torch.arange(5), tau).any()
    empty = conformal(score[:0], y[:0], alpha=0.5, classes=2)
    assert empty.tau.tolist() == [math.inf] * 2


def test_what_equals_tau_is_not_claimed():
    score = torch.zeros(100)
    tau, _ = conformal(score, torch.zeros(100).long(), alpha=0.1, classes=2)
    assert decide(torch.tensor([0.0, 1e-9]), torch.tensor([0, 0]), tau).tolist() == [False, True]


@pytest.mark.parametrize("prior", [0.5, 0.1])
def test_the_precision_is_conservative(prior):
    g = stream(4)
    member = torch.rand(4, 150, generator=g) < 0.5
    score = (torch.randn(4, 150, generator=g) + 3 * member).mul(4).round() / 4
    tau = precision_target(score, member, target=0.7, prior=prior)
    want = textbook_precision(score.flatten().tolist(), member.flatten().tolist(), 0.7, prior)
    assert tau.item() == want
    assert math.isfinite(want)


def test_a_precision_out_of_reach_claims_nothing():
    """5 of 5 members above 5 non-members: at worst 0.478 of the ones and 0.522 of the others are above."""
    score, member = torch.arange(10.0), torch.arange(10) > 4
    tau = precision_target(score, member, target=0.9, prior=0.01)
    assert tau.item() == math.inf
    assert not decide(score, torch.zeros(10).long(), tau).any()
    assert precision_target(score, member, target=0.45, prior=0.5).item() == 4


def test_refuses_what_it_cannot_do():
    score, y = torch.arange(5.0), torch.arange(5)
    with pytest.raises(ValueError, match="alpha must lie between 0 and 1, got 1"):
        conformal(score, y, alpha=1.0, classes=5)
    with pytest.raises(ValueError, match="score_calibration must not be NaN, got 1 of 5"):
        conformal(score.index_fill(0, y[:1], torch.nan), y, alpha=0.1, classes=5)
    with pytest.raises(ValueError, match=r"y_calibration must lie in 0 .. 3, got 1 labels outside"):
        conformal(score, y, alpha=0.1, classes=4)
    with pytest.raises(ValueError, match=r"y must lie in 0 .. 1, got labels 0 to 4"):
        decide(score, y, torch.zeros(2))
    with pytest.raises(ValueError, match="prior must lie between 0 and 1, got 0"):
        precision_target(score, y > 2, target=0.5, prior=0.0)
    with pytest.raises(ValueError, match="score must hold both sides, no NaN; got 0 in, 5 out, 0 NaN"):
        precision_target(score, y > 9, target=0.5, prior=0.5)
