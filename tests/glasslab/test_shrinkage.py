"""The shrunk spread: against loops, against BaVarIA's normal form, and between the rules it lies between."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from worlds import gaussian

from blackbox.bavaria import bavaria
from glasslab import likelihood
from glasslab.checks import Floored
from glasslab.likelihood import fit, log_prob, ratio, shrunk, tail
from glasslab.split import shadow_rows, stream

CENTRE = {"mean": np.mean, "median": np.median}


def world(m=9, k=2, n=13, seed=0):
    """(phi, S, member): sides that spread differently, uneven counts, records of very different spread."""
    g = stream(seed, "shrinkage")
    member = torch.rand(m, n, generator=g) < 0.4
    member[:2], member[2:4] = True, False
    wide = 0.1 + 3 * torch.rand(n, generator=g, dtype=torch.float64)
    S = 5 * torch.randn(n, generator=g) + wide * torch.randn(m, k, n, generator=g, dtype=torch.float64)
    return S[0].flip(-1), torch.where(member[:, None], 3 * S + 1, S), member


def by_hand(S, where, nu0, location):
    """(mu, sigma) of one side, each [k][n], by loops over lists."""
    m, k, n = S.shape
    cells = [[[S[j, q, i].item() for j in range(m) if where[j, i]] for i in range(n)] for q in range(k)]
    mu = [[CENTRE[location](v) for v in row] for row in cells]
    lists = [
        (v, c) for row, centres in zip(cells, mu, strict=True) for v, c in zip(row, centres, strict=True)
    ]
    pooled = sum(sum((x - c) ** 2 for x in v) for v, c in lists) / sum(len(v) - 1 for v, _ in lists)
    sigma = [[math.sqrt((nu0 * pooled + len(v) * np.var(v)) / (nu0 + len(v))) for v in row] for row in cells]
    return torch.tensor(mu).double(), torch.tensor(sigma).double()


@pytest.mark.parametrize("location", ["mean", "median"])
@pytest.mark.parametrize("nu0", [None, 0.3, 4.0, 50.0])
def test_equals_the_textbook(nu0, location):
    _, S, member = world()
    settings = {} if nu0 is None else {"nu0": nu0}
    f = fit(S, member, variance="shrunk", location=location, **settings)
    for got, where in (((f.mu_in, f.sig_in), member), ((f.mu_out, f.sig_out), ~member)):
        for fast, slow in zip(got, by_hand(S, where, nu0 or 4.0, location), strict=True):
            torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-6)
    assert f.variance == "shrunk"


@pytest.mark.parametrize("nu0", [0.5, 4.0, 30.0, math.inf])
def test_is_the_normal_form_of_bavaria(nu0):
    phi, S, member = world()
    ours = ratio(phi, fit(S, member, variance="shrunk", location="mean", nu0=nu0))
    torch.testing.assert_close(ours, bavaria(phi, S, member, form="n", nu0=nu0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("location", ["mean", "median"])
def test_lies_between_the_pooled_and_the_own_spread(location):
    _, S, member = world(m=12)
    ends = [fit(S, member, variance=rule, location=location) for rule in ("record", "pooled")]
    for nu0, end in ((0.0, ends[0]), (math.inf, ends[1])):
        f = fit(S, member, variance="shrunk", location=location, nu0=nu0)
        torch.testing.assert_close(f.sig_in, end.sig_in, rtol=1e-12, atol=0)
        torch.testing.assert_close(f.sig_out, end.sig_out, rtol=1e-12, atol=0)
    f = fit(S, member, variance="shrunk", location=location)
    low, high = torch.stack([end.sig_out for end in ends]).aminmax(dim=0)
    assert ((low < f.sig_out) & (f.sig_out < high)).all()


def test_the_variances_are_averaged_and_not_the_spreads():
    n = torch.tensor([4, 0])
    v = shrunk(torch.tensor([[36.0, 0.0]]).double(), n, 1.0, 4.0)
    assert v.tolist() == [[5.0, 1.0]]  # (4 * 1 + 4 * 9) / 8; of no value the pooled variance is left


@pytest.mark.parametrize("side", ["both", "out"])
def test_one_model_a_side_is_enough_where_another_record_has_two(side):
    _, S, _ = world(m=3)
    member = torch.zeros(3, 13, dtype=torch.bool)
    member[0, ::2], member[:2, 1::2] = True, True
    f = fit(S, member, variance="shrunk", sides=side)
    assert f.sig_out.isfinite().all()
    pooled = fit(S, member, variance="pooled", sides=side).sig_out
    torch.testing.assert_close(f.sig_out[:, 1], (4 / 5) ** 0.5 * pooled[:, 1])
    one = member[:2] & torch.tensor([[True], [False]])
    one[0, ::3] = False
    one[1, ::3] = True
    with pytest.raises(ValueError, match="2[+] models (in|out) of some record to pool, got 1 of each"):
        fit(S[:2], one, variance="shrunk", sides=side)
    member[:, 5] = True
    with pytest.raises(ValueError, match="1[+] models out .*variance='shrunk', got 0 for record 5"):
        fit(S, member, variance="shrunk", sides=side)


@pytest.mark.parametrize("nu0", [-1.0, math.nan])
def test_refuses_a_prior_that_is_none(nu0):
    _, S, member = world()
    with pytest.raises(ValueError, match="nu0 must be 0 or more, got"):
        fit(S, member, variance="shrunk", nu0=nu0)


def test_a_record_of_equal_shadows_needs_no_floor_but_a_world_of_them_does():
    _, S, member = world(k=1, n=40)
    S[:, :, 7] = torch.where(member[:, 7], 2.0, S[0, 0, 7])[:, None]
    f, pooled = (fit(S, member, variance=rule) for rule in ("shrunk", "pooled"))
    n = member[:, 7].sum()
    torch.testing.assert_close(f.sig_in[0, 7], pooled.sig_in[0, 7] * (4 / (4 + n)).sqrt())
    with pytest.warns(Floored, match="40 of 40"):
        f = fit(torch.full_like(S, 0.1), member, variance="shrunk")
    assert len(ratio(torch.full((1, 40), 0.1), f).unique()) == 1


def test_the_tail_reads_it_too():
    phi, S, member = world(k=1)
    f = fit(S, member, variance="shrunk", sides="out")
    expected = -norm.logsf(phi.numpy(), f.mu_out.numpy(), f.sig_out.numpy())[0]
    torch.testing.assert_close(tail(phi, f), torch.from_numpy(expected), rtol=1e-9, atol=1e-12)


def test_foretells_better_than_either_end_where_records_differ_and_shadows_are_few():
    """Log density of values that no fit has seen, in nats; each margin is above five standard errors."""
    g, n, m = stream(3), 20_000, 8
    wide = torch.exp(0.6 * torch.randn(n, generator=g)).double()
    member = shadow_rows(m, n, 3)
    S, s = (member[:k] * 0.5 + wide * torch.randn(k, n, generator=g) for k in (m, 1))
    found = {}
    for rule in ("record", "shrunk", "pooled"):
        f = fit(S, member, variance=rule, location="mean")
        found[rule] = torch.where(member[0], log_prob(s, f.mu_in, f.sig_in), log_prob(s, f.mu_out, f.sig_out))
    for other in ("record", "pooled"):
        gain = (found["shrunk"] - found[other]).flatten()
        assert gain.mean() > 5 * gain.std() / n**0.5


def test_auto_does_not_choose_it():
    for m in (8, 64):
        _, S, member, _ = gaussian(1.0, m=m, n=5)
        assert fit(S, member).variance != "shrunk"
    assert likelihood.NU0 == 4.0
