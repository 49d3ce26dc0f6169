"""Who trains on what: parts are disjoint, designs balanced, and the count gives nobody away."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from glasslab.data import Data
from glasslab.split import SHARES, leave_one_out, shadow_rows, split, stream, subseed, target_rows

seeds = st.integers(0, 2**31)


def distinct(n, name="distinct"):
    return Data(torch.arange(n * 2.0).reshape(n, 2), torch.arange(n) % 2, 2, name)


def parts(s):
    return {name: getattr(s, name).tolist() for name in SHARES}


@given(st.integers(20, 300), seeds)
@settings(deadline=None)
def test_parts_are_disjoint_whole_and_of_the_right_size(n, seed):
    s = split(distinct(n), seed)
    held = parts(s)
    assert sorted(sum(held.values(), [])) == list(range(n))
    assert all(abs(len(held[name]) - share * n) <= 1 for name, share in SHARES.items())
    assert (s.duplicates, s.seed, s.records) == (0, seed, None)


def test_the_split_depends_on_content_and_seed_alone():
    a, b = distinct(100), distinct(100, name="other")
    assert parts(split(a, 0)) == parts(split(b, 0))
    assert parts(split(a, 0)) != parts(split(a, 1))
    torch.manual_seed(1)
    assert parts(split(a, 0)) == parts(split(b, 0)), "the global generator had a say"


def test_a_cap_keeps_the_first_of_the_pool_and_no_other_part_moves():
    whole, capped = split(distinct(100), 0), split(distinct(100), 0, records=13)
    assert capped.pool.tolist() == whole.pool[:13].tolist()
    assert (len(whole.pool), capped.records) == (60, 13)
    assert all(parts(whole)[name] == parts(capped)[name] for name in ("aux", "val", "test"))
    assert len(split(distinct(100), 0, records=1000).pool) == 60
    with pytest.raises(ValueError, match="records must be 2 or more, got 1"):
        split(distinct(100), 0, records=1)


@given(st.lists(st.integers(0, 25), min_size=30, max_size=120), seeds)
@settings(deadline=None)
def test_equal_records_lie_in_one_part_and_are_counted(values, seed):
    x = torch.tensor(values).float()[:, None].repeat(1, 3)
    data = Data(x, torch.arange(len(values)) % 2, 2, "twins")  # twins may differ in their label
    try:
        s = split(data, seed)
    except ValueError:
        assume(False)
    held = parts(s)
    assert sorted(sum(held.values(), [])) == list(range(len(values)))
    where = [{values[i] for i in rows} for rows in held.values()]
    assert sum(map(len, where)) == len(set(values)), "a record has a twin in another part"
    assert s.duplicates == len(values) - len(set(values))


@pytest.mark.parametrize(("n", "part"), [(1, "aux"), (5, "val"), (10, "val")])
def test_too_few_records_are_refused(n, part):
    with pytest.raises(ValueError, match=f"must fill pool, aux, val and test, got {n} records: no {part}"):
        split(distinct(n), 0)


def test_all_records_equal_is_refused():
    with pytest.raises(ValueError, match="got 50 records: no aux"):
        split(Data(torch.ones(50, 2), torch.arange(50) % 2, 2, "ones"), 0)


@given(st.integers(0, 8), st.integers(1, 60), seeds)
@settings(deadline=None)
def test_shadow_rows_are_balanced_in_every_even_prefix(blocks, n, seed):
    member = shadow_rows(2 * blocks, n, seed)
    assert member.shape == (2 * blocks, n)
    for m in range(0, 2 * blocks + 1, 2):
        assert (member[:m].sum(0) == m // 2).all()
        assert torch.equal(shadow_rows(m, n, seed), member[:m])
    assert torch.equal(member[1::2], ~member[::2])
    assert (member[::2].sum(1) == n // 2).all()


def test_64_extended_to_128_is_128_at_once():
    assert torch.equal(shadow_rows(128, 500, 3)[:64], shadow_rows(64, 500, 3))
    assert torch.equal(target_rows(16, 500, 3)[:8], target_rows(8, 500, 3))


@pytest.mark.parametrize("m", [7, -2])
def test_an_odd_number_of_shadows_is_refused(m):
    with pytest.raises(ValueError, match=f"must be even, got {m}"):
        shadow_rows(m, 10, 0)


def test_targets_are_fair_coins_that_know_nothing_of_each_other():
    """Five standard errors each; counts a record are binomial, not fixed as in the balanced design."""
    t, n = 64, 4000
    member = target_rows(t, n, 0).double()
    assert abs(member.mean() - 0.5) < 5 * 0.5 / (t * n) ** 0.5
    counts = member.sum(0)
    assert abs(counts.var() / (t / 4) - 1) < 5 * (2 / n) ** 0.5
    rows = torch.cat([member, shadow_rows(t, n, 0)[::2].double()])  # and nothing of the shadows
    between = torch.corrcoef(rows) - torch.eye(len(rows))
    assert between.abs().max() < 6 / n**0.5
    assert not torch.equal(target_rows(1, n, 0), target_rows(1, n, 1))
    assert not torch.equal(target_rows(1, n, 0)[0], torch.rand(n, generator=stream(0, "shadow", 0)) < 0.5)
    assert target_rows(0, 5, 0).shape == (0, 5)


def test_a_stream_is_its_key():
    assert subseed(0, "shadow", 1) == subseed(0, "shadow", 1)
    keys = [(0, "shadow", 1), (0, "shadow", 11), (0, "target", 1), (1, "shadow", 1), (0, "shadow1")]
    assert len({subseed(*key) for key in keys}) == len(keys)
    assert all(0 <= subseed(*key) < 2**63 for key in keys)
    drawn = torch.rand(3, generator=stream(0, "a"))
    assert torch.equal(drawn, torch.rand(3, generator=stream(0, "a")))


def slow_leave_one_out(a, S, member):
    """As one reads it: for each record the first m/2 - 1 others with it, then the first m/2 - 1 without."""
    m, n = member.shape
    each, columns, sides = m // 2 - 1, [], []
    for i in range(n):
        with_it = [j for j in range(m) if j != a and member[j, i]][:each]
        without = [j for j in range(m) if j != a and not member[j, i]][:each]
        columns.append(torch.stack([S[j, i] for j in with_it + without]))
        sides.append(torch.tensor([True] * len(with_it) + [False] * len(without)))
    return torch.stack(columns, 1), torch.stack(sides, 1)


@given(st.integers(2, 6), st.integers(1, 12), st.sampled_from([(), (3,), (2, 3)]), seeds, st.data())
@settings(deadline=None, max_examples=50)
def test_leave_one_out_is_the_slow_loop(blocks, n, k, seed, data):
    m = 2 * blocks
    a = data.draw(st.integers(0, m - 1))
    member = shadow_rows(m, n, seed)
    S = torch.arange(float(m * n * max(1, torch.tensor(k).prod().int()))).reshape(m, n, *k)
    before = S.clone(), member.clone()
    left, inside = leave_one_out(a, S, member)
    slow, side = slow_leave_one_out(a, S, member)
    assert torch.equal(left, slow)
    assert torch.equal(inside, side)
    assert (inside.sum(0) == blocks - 1).all(), "the count gives membership away"
    assert not torch.isin(left, S[a]).any(), "the target is among its own shadows"
    assert torch.equal(S, before[0])
    assert torch.equal(member, before[1])


def test_leave_one_out_refuses_what_it_cannot_equalise():
    member = shadow_rows(8, 20, 0)
    S = torch.rand(8, 20)
    lopsided = member.clone()
    lopsided[:, 3] = torch.arange(8) < 5  # three are out: two, where one of them leaves
    leave_one_out(0, S, lopsided)
    with pytest.raises(ValueError, match="must leave 3 models a side without model 7, got 2"):
        leave_one_out(7, S, lopsided)
    with pytest.raises(ValueError, match="must leave 1 models a side without model 0, got 0"):
        leave_one_out(0, S[:2], member[:2])
    for a, m in [(8, 8), (-1, 8), (0, 7)]:
        with pytest.raises(ValueError, match=f"even number of models, got model {a} of {m}"):
            leave_one_out(a, S[:m], member[:m])
