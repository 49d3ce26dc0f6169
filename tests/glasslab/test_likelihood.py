"""The Gaussian in/out likelihood against loops over lists, and against numpy and scipy."""

import warnings

import numpy as np
import pytest
import torch
from scipy.stats import norm
from worlds import gaussian

from glasslab import moments as rooms
from glasslab.checks import Floored
from glasslab.likelihood import fit, log_prob, not_normal, ratio, tail
from glasslab.split import stream

RULES = ["record", "pooled", "grand", "grand_in"]
CENTRE = {"mean": np.mean, "median": np.median}


def world(m=9, k=2, n=13, seed=0):
    """Signals whose sides spread differently, with an uneven number of models a side."""
    g = stream(seed, "uneven")
    member = torch.rand(m, n, generator=g) < 0.5
    member[:2], member[2:4] = True, False
    S = 5 * torch.randn(n, generator=g) + torch.randn(m, k, n, generator=g, dtype=torch.float64)
    return torch.where(member[:, None], 3 * S + 1, S), member


def same(a, b, tolerance=1e-14):
    """Two fits, field by field."""
    assert a.variance == b.variance
    for name in ("mu_in", "sig_in", "mu_out", "sig_out", "n_in", "n_out"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=tolerance, atol=tolerance)


def values(S, member, i, q, inside):
    return [S[j, q, i].item() for j in range(len(S)) if member[j, i].item() == inside]


def textbook_spread(S, member, i, q, inside, rule, location):
    """The spread of one side for record i and query q: the table of rules, one line each."""
    if rule == "grand_in":
        rule, inside = "grand", True
    lists = [values(S, member, a, b, inside) for a in range(S.shape[2]) for b in range(S.shape[1])]
    if rule == "record":
        return np.std(values(S, member, i, q, inside))
    if rule == "pooled":
        squares = sum(sum((v - CENTRE[location](x)) ** 2 for v in x) for x in lists)
        return (squares / sum(len(x) - 1 for x in lists)) ** 0.5
    return np.std(sum(lists, []))


def slow(S, member, rule, location):
    """mu_in, sig_in, mu_out, sig_out by loops."""
    sides = []
    for inside in (True, False):
        mu, sig = np.zeros(S.shape[1:]), np.zeros(S.shape[1:])
        for q in range(S.shape[1]):
            for i in range(S.shape[2]):
                mu[q, i] = CENTRE[location](values(S, member, i, q, inside))
                sig[q, i] = textbook_spread(S, member, i, q, inside, rule, location)
        sides += [torch.from_numpy(mu), torch.from_numpy(sig)]
    return sides


@pytest.mark.parametrize("location", ["median", "mean"])
@pytest.mark.parametrize("rule", RULES)
def test_equals_the_textbook(rule, location):
    S, member = world()
    f = fit(S, member, variance=rule, location=location)
    for fast, by_hand in zip(
        [f.mu_in, f.sig_in, f.mu_out, f.sig_out], slow(S, member, rule, location), strict=True
    ):
        torch.testing.assert_close(fast, by_hand, rtol=1e-10, atol=1e-10)
    assert f.variance == rule
    assert f.n_in.tolist() == [len(values(S, member, i, 0, True)) for i in range(S.shape[2])]
    assert f.n_out.tolist() == [len(values(S, member, i, 0, False)) for i in range(S.shape[2])]


@pytest.mark.parametrize("rule", RULES)
def test_grand_in_alone_gives_both_sides_one_spread(rule):
    f = fit(*world(), variance=rule)
    assert torch.equal(f.sig_in, f.sig_out) == (rule == "grand_in")


@pytest.mark.parametrize("rule", RULES)
def test_the_out_side_alone_is_the_same_out_side(rule):
    S, member = world()
    both, out = (fit(S, member, variance=rule, sides=sides) for sides in ("both", "out"))
    assert torch.equal(both.mu_out, out.mu_out)
    assert torch.equal(both.sig_out, out.sig_out)
    assert (out.mu_in is None) == (rule != "grand_in")  # which cannot do without


def test_the_size_of_a_chunk_changes_nothing(monkeypatch):
    S, member = world(n=50)
    phi = torch.randn(3, 2, 50, generator=stream(1))
    whole = fit(S, member, variance="pooled")
    monkeypatch.setattr(rooms, "VALUES", 3 * S[..., :1].numel())
    parts = fit(S, member, variance="pooled")
    same(parts, whole)
    pieces = ratio(phi, whole)
    monkeypatch.undo()
    assert torch.equal(pieces, ratio(phi, whole))


def test_takes_mapped_float32_and_any_number_of_query_axes(tmp_path):
    S, member = world()
    np.save(tmp_path / "S.npy", S.float().numpy())
    mapped = torch.from_numpy(np.load(tmp_path / "S.npy", mmap_mode="c"))
    same(fit(mapped, member), fit(S.float().double(), member))
    flat, deep = fit(S[:, 0], member, variance="record"), fit(S[:, None], member, variance="record")
    torch.testing.assert_close(flat.mu_in, fit(S, member).mu_in[0])
    torch.testing.assert_close(deep.sig_out, fit(S, member, variance="record").sig_out[None])


def test_auto_trusts_a_records_own_spread_from_32_models_a_side():
    for m, rule in ((62, "pooled"), (64, "record")):
        _, S, member, _ = gaussian(1.0, m=m, n=5)
        assert fit(S, member).variance == rule
    member[0, 3] = ~member[0, 3]
    assert fit(S, member).variance == "pooled"
    assert fit(S[:, :3], member[:, :3], sides="out").variance == "record"


def test_log_prob_is_scipys():
    f, s = fit(*world()), 10 * torch.randn(2, 13, generator=stream(2))
    expected = norm.logpdf(s.numpy(), f.mu_in.numpy(), f.sig_in.numpy())
    torch.testing.assert_close(
        log_prob(s, f.mu_in, f.sig_in), torch.from_numpy(expected), rtol=1e-6, atol=1e-6
    )


def test_the_tail_is_exact_where_probabilities_end():
    f = fit(*world(k=1), variance="pooled")
    u = torch.tensor([-300.0, -30, -8, -1, 0, 1, 8, 9, 30, 38, 39, 300, 3000], dtype=torch.float64)
    score = tail(f.mu_out + u * f.sig_out, f)
    torch.testing.assert_close(score, torch.from_numpy(-norm.logsf(u.numpy())), rtol=1e-9, atol=0)
    assert (score.diff()[2:] > 0).all()  # where log Phi(u) and Phi(u) tie


def test_floors_and_counts_what_has_no_spread():
    S, member = world(k=1, n=40)
    S[:, :, 7] = torch.where(member[:, 7], 2.0, S[:, 0, 7])[:, None]
    with pytest.warns(Floored, match="1 of 40 spreads in floored") as seen:
        f = fit(S, member, variance="record")
    assert len(seen) == 1
    pooled = fit(S, member, variance="pooled")
    torch.testing.assert_close(f.sig_in[0, 7], 1e-3 * pooled.sig_in[0, 7])


@pytest.mark.parametrize("location", ["median", "mean"])
@pytest.mark.parametrize("rule", RULES)
def test_a_constant_signal_gives_equal_scores(rule, location):
    _, member = world()
    S = torch.full((9, 2, 13), 0.1, dtype=torch.float64)
    with pytest.warns(Floored, match="26 of 26"):
        f = fit(S, member, variance=rule, location=location)
    assert len(ratio(S[0], f).unique()) == len(tail(S[0], f).unique()) == 1


def test_refuses_too_few_models_naming_the_record():
    S, member = world()
    member[:, 5] = torch.arange(9) == 0
    with pytest.raises(ValueError, match="2[+] models in .*variance='record'.*got 1 for record 5"):
        fit(S, member, variance="record")
    fit(S, member, variance="pooled")
    member[:, 6] = True
    with pytest.raises(ValueError, match="1[+] models out .*got 0 for record 6"):
        fit(S, member, variance="pooled")
    with pytest.raises(ValueError, match="1[+] models out .*got 0 for record 6"):
        fit(S, member, variance="grand", sides="out")
    member[:, 6] = False
    fit(S, member, variance="pooled", sides="out")
    with pytest.raises(ValueError, match="1[+] models in .*got 0 for record 6"):
        fit(S, member, variance="grand_in", sides="out")


def test_one_model_a_side_can_be_placed_but_not_pooled():
    S, member = world()
    S, member = S[[0, 2]], member[[0, 2]]
    with pytest.raises(ValueError, match="2[+] models in of some record"):
        fit(S, member, variance="pooled")
    assert fit(S, member, variance="grand").sig_in.isfinite().all()


@pytest.mark.parametrize("held", [rooms.VALUES, 3 * 18], ids=["one chunk", "chunks of three records"])
def test_refuses_what_is_no_number(held, monkeypatch):
    monkeypatch.setattr(rooms, "VALUES", held)
    S, member = world()
    S[3, 1, 4] = torch.nan
    with pytest.raises(ValueError, match="S must be finite, got NaN or infinity for record 4"):
        fit(S, member)
    f = fit(*world())
    with pytest.raises(ValueError, match="phi must be finite, got 1 "):
        ratio(
            torch.full((2, 13), 0.0).index_put((torch.tensor(0), torch.tensor(3)), torch.tensor(torch.inf)), f
        )


def test_refuses_shapes_that_do_not_match():
    S, member = world()
    with pytest.raises(Exception, match="member"):
        fit(S, member[:1])
    with pytest.raises(ValueError, match=r"phi must end in \[2, 13\]"):
        ratio(torch.zeros(13), fit(S, member))
    with pytest.raises(ValueError, match="sides='out'"):
        ratio(torch.zeros(2, 13), fit(S, member, sides="out"))


def test_arguments_are_left_alone():
    S, member = world()
    phi = S[0].clone()
    held = [S.clone(), member.clone(), phi.clone()]
    tail(phi, fit(S, member))
    assert all(torch.equal(a, b) for a, b in zip(held, [S, member, phi], strict=True))


def test_the_diagnostic_knows_a_bell_from_a_coin():
    g, member = stream(3), torch.zeros(40, 400).bool()
    bell, coin = torch.randn(40, 400, generator=g), torch.randint(2, (40, 400), generator=g).float()
    assert abs(not_normal(bell, member) - 0.05) < 4 * (0.05 * 0.95 / 400) ** 0.5
    assert not_normal(coin, member) == 1.0
    with warnings.catch_warnings():
        assert not_normal(torch.ones(40, 400), member) == 1.0
    with pytest.raises(ValueError, match="3[+] models out"):
        not_normal(bell[:2], member[:2])
