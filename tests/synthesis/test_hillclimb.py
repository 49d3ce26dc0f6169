import math
import random
import time

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from torch import nn

from glasslab.masks import round_to, top_k
from glasslab.oracle import Oracle
from glasslab.split import stream
from synthesis.climb import Climb, Draws, Moves, Rule, window
from synthesis.features import binary, flips, integer, one_of, pixel, real, resolved, units
from synthesis.hillclimb import NOTES, PRESETS, hillclimb

BITS = [binary()]
MIXED = [one_of([0, 5, 9]), integer(-2, 3, [1, 2]), real(0, [1, 4], [3, 4]), binary()]


def linear(d=24, classes=4, scale=1.5, seed=0, never=()):
    model = nn.Linear(d, classes).eval()
    with torch.no_grad():
        model.weight.copy_(scale * torch.randn(classes, d, generator=stream(seed, "target")))
        model.bias.copy_(-model.weight.sum(1) / 2)  # fair bits answer about evenly
        for c in never:
            model.weight[c], model.bias[c] = 0, -1000
    return model


def made(model=None, labels=range(8), features=BITS, d=24, mask=(), reveals="probabilities", **settings):
    oracle = Oracle(model or linear(d), mask=mask, reveals=reveals)
    y = torch.tensor([c % 4 for c in labels], dtype=torch.long)
    return hillclimb(oracle, y, features, shape=(d,), **settings)


class Scripted(Oracle):
    """Answers what `script` makes of the number of the call, the records and the true answer."""

    def __init__(self, model, script, **settings):
        super().__init__(model, **settings)
        self.script, self.calls = script, 0

    def __call__(self, x):
        p = super().__call__(x)
        self.calls += 1
        return self.script(self.calls, x, p)


# One chain and many, step by step, against Algorithm 1 as one reads it


class Own(Draws):
    """Each chain draws from a stream of its own; the orders of the features are kept, a round each."""

    def __init__(self, features, units):
        super().__init__(features, features, units, stream("orders"))
        self.ranks, self.first, self.streams = [], {}, {}

    def each(self, chains, method):
        out = []
        for i in chains.tolist():
            self.generator, shared = self.streams.setdefault(i, stream("chain", i)), self.generator
            out.append(method(torch.tensor([i])))
            self.generator = shared
        return torch.cat(out) if out else method(chains)

    def start(self, chains):
        self.first.update(dict.fromkeys(chains.tolist(), len(self.ranks)))
        return self.each(chains, super().start)

    def rank(self):
        self.ranks.append(super().rank())
        return self.ranks[-1]

    def offset(self, chains):
        return self.each(chains, super().offset)

    def values(self, chains):
        return self.each(chains, super().values)

    def uniform(self, chains):
        return self.each(chains, super().uniform)


class Watched(Climb):
    """Keeps of each chain that goes on (x*, y*, j, k) after every round."""

    def _round(self, chains):
        after = super()._round(chains)
        for row in range(len(after)):
            state = after.best[row].float().tolist(), *(t[row].item() for t in (after.y, after.j, after.k))
            self.__dict__.setdefault("trace", {}).setdefault(after.id[row].item(), []).append(state)
        return after


def textbook(classify, c, draws, ranks, chain, unit, flip, rule, wrong=""):
    """(trace of x*, y*, j, k; queries; record; its confidence; reason); `wrong` names a mistake."""
    ids, d, count = torch.tensor([chain]), len(unit), max(unit) + 1
    x = draws.start(ids)[0].tolist()
    best, y_best, j, k, trace = None, 0.0, 0, rule.k_max, []
    for query in range(1, rule.iter_max + 1):
        y = classify(x)
        u = draws.uniform(ids).item() if wrong == "draws always" else None
        accept, failed = y[c] > y_best or (y[c] == y_best and (wrong != "no ties" or best is None)), False
        if accept and y[c] > rule.conf_min and y.index(max(y)) == c:
            u = draws.uniform(ids).item() if u is None else u
            if u < y[c]:
                return trace, query, x, y[c], "sampled"
            failed = True
        if accept and not (failed and wrong == "draw rejects" and best is not None):
            best, y_best, j = x, y[c], 0
        else:
            j += 1
            if j > rule.rej_max or (wrong == "early" and j == rule.rej_max):
                half = k // 2 if wrong == "rounds down" else math.ceil(k / 2)
                k, j = max(rule.k_min, half), 0
                if wrong == "no floor":
                    k = max(1, half)
        if query == rule.iter_max:
            break
        trace.append((best, y_best, j, k))
        place = next(ranks).tolist()
        at = draws.offset(ids).item()
        fresh = None if all(flip) else draws.values(ids)[0].tolist()
        x = list(x if wrong == "walks" else best)
        for i in range(d):
            if (place[unit[i]] - at) % count < k:
                x[i] = 1 - x[i] if flip[i] else fresh[i]
    return trace, rule.iter_max, None, None, "exhausted"


CASES = {
    "flip": (BITS, "flip", (), Rule(6, 1, 2, 0.5, 60)),
    "resample": (BITS, "resample", (), Rule(7, 2, 3, 0.5, 60)),
    "mixed": (MIXED, "flip", (), Rule(9, 2, 1, 0.5, 60)),
    "ties": (BITS, "flip", (round_to(1),), Rule(5, 1, 2, 0.7, 60)),
    "floor": (BITS, "flip", (), Rule(11, 3, 0, 0.9, 60)),
    "iter_max": (BITS, "flip", (), Rule(24, 1, 4, 1.0, 25)),
    "two values": (BITS, "flip", (round_to(0),), Rule(5, 1, 2, 0.7, 40)),
}


def climbs(case, w=8, batch=100):
    features, change, mask, rule = CASES[case]
    full = resolved(features, 24)
    turned = flips(full) & (change == "flip")
    unit = units(full)
    draws = Own(full, int(unit.max()) + 1)
    moves = Moves(unit, turned, bool(flips(full).all()))
    oracle = Oracle(linear(scale=0.4), mask=mask)
    climb = Watched(oracle, torch.arange(w) % 4, (24,), rule, moves, draws, batch)
    climb.run()
    return climb


def twins(case, climb, wrong=""):
    oracle, moves, draws = Oracle(linear(scale=0.4), mask=climb.oracle.mask), climb.moves, climb.draws

    def classify(x):
        return oracle(torch.tensor([x]))[0].tolist()

    for i, c in enumerate(climb.labels.tolist()):
        ranks = (r for r in draws.ranks[draws.first[i] :])
        own = Own(draws.fresh, draws.units)
        unit, flip = moves.unit.tolist(), moves.flip.tolist()
        try:
            yield textbook(classify, c, own, ranks, i, unit, flip, climb.rule, wrong)
        except StopIteration:  # a mistaken one may go on longer than all chains did
            yield None


def found(climb):
    records = {}
    for ids, xs, ys in climb.made:
        records |= dict(zip(ids.tolist(), zip(xs.float().tolist(), ys.tolist(), strict=True), strict=True))
    names = {0: "sampled", 1: "exhausted"}
    for i in range(len(climb.labels)):
        x, y = records.get(i, (None, None))
        yield climb.trace.get(i, []), climb.queries[i].item(), x, y, names[climb.reason[i].item()]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("batch", [100, 3])
def test_every_chain_climbs_as_the_textbook_does(case, batch):
    climb = climbs(case, batch=batch)
    for ours, twin in zip(found(climb), twins(case, climb), strict=True):
        assert ours == twin


def test_the_cases_hold_what_they_are_named_for():
    k = {case: [s[3] for t in climbs(case).trace.values() for s in t] for case in ("floor", "iter_max")}
    assert min(k["floor"]) == 3
    assert (climbs("iter_max").reason == 1).all()
    assert (climbs("iter_max").queries == 25).all()
    for case in ("ties", "two values"):
        states = climbs(case).trace.values()
        assert sum(a[0] != b[0] and a[1] == b[1] for t in states for a, b in zip(t, t[1:], strict=False)) > 10


MISTAKES = {
    "no ties": "ties",
    "draws always": "flip",
    "draw rejects": "flip",
    "early": "iter_max",
    "rounds down": "floor",
    "no floor": "floor",
    "walks": "flip",
}


@pytest.mark.parametrize("wrong", MISTAKES)
def test_the_textbook_tells_mistakes_apart(wrong):
    case = MISTAKES[wrong]
    climb = climbs(case)
    assert any(a != b for a, b in zip(found(climb), twins(case, climb, wrong), strict=True))


def test_a_rejected_proposal_leaves_the_record_bit_equal():
    for case in ("flip", "resample", "mixed"):
        for states in climbs(case).trace.values():
            rejected = [(a, b) for a, b in zip(states, states[1:], strict=False) if b[2] or b[3] < a[3]]
            assert all(a[:2] == b[:2] for a, b in rejected)


# The same law as one chain at a time


def scalar(weight, bias, c, k_max, k_min, rej_max, conf_min, chance, change, wrong=""):
    """(queries, confidence, share of ones) by numpy and random, which knows nothing of batches."""
    d, best, y_best, j, k, queries = weight.shape[1], None, 0.0, 0, k_max, 0
    x = np.array([chance.random() < 0.5 for _ in range(d)], dtype=float)
    while True:
        queries += 1
        z = weight @ x + bias
        e = np.exp(z - z.max())
        y = e / e.sum()
        if y[c] >= y_best or wrong == "walk":
            if y[c] > conf_min and y.argmax() == c and chance.random() < y[c]:
                return queries, y[c], x.mean()
            best, y_best, j = x, y[c], 0
        else:
            j += 1
            if j > rej_max:
                k, j = max(k_min, (k + 1) // 2), 0
        x = best.copy()
        for i in chance.sample(range(d), k):
            x[i] = 1 - x[i] if change == "flip" else chance.random() < 0.5


def rejected(p, level):
    """Holm: how many of the p-values are rejected."""
    order = sorted(p)
    return next((i for i, v in enumerate(order) if v > level / (len(p) - i)), len(p))


def laws(change, wrong="", w=2000):
    """p-values of label x quantity: batched chains against scalar ones."""
    model = linear(scale=0.5)
    settings = {"k_max": 8, "k_min": 1, "rej_max": 2, "conf_min": 0.6}
    got = made(model, range(w), change=change, batch=500, iter_max=10_000, **settings)
    assert got.success.all()
    weight, bias = model.weight.detach().double().numpy(), model.bias.detach().double().numpy()
    chance = random.Random(1)
    p = []
    for c in range(4):
        runs = [scalar(weight, bias, c, *settings.values(), chance, change, wrong) for _ in range(w // 4)]
        ours = got.queries[got.wanted == c], got.confidence[got.y == c], got.x[got.y == c].double().mean(1)
        pairs = zip(ours, np.array(runs).T, strict=True)
        p += [ks_2samp(a.numpy(), b, method="asymp").pvalue for a, b in pairs]
    return p


@pytest.mark.parametrize("change", ["flip", "resample"])
def test_the_law_is_that_of_one_chain_at_a_time(change):
    assert rejected(laws(change), 0.001) == 0  # false alarm: 0.001


def test_the_laws_tell_a_random_walk_and_the_other_change_apart():
    assert rejected(laws("flip", "walk", w=800), 0.001) > 0
    assert rejected([1e-9, 0.5, 0.0004], 0.001) == 2  # 0.0004 <= 0.001 / 2
    assert rejected([0.0006, 0.0006], 0.001) == 0


# Which features a chain changes


@pytest.mark.parametrize("units", [1, 2, 7, 32767, 32768, 40000])
def test_a_window_holds_the_k_places_from_its_offset_on(units):
    g = stream(units, "window")
    rank = torch.randperm(units, generator=g)
    if units < 10:
        offset, k = torch.cartesian_prod(torch.arange(units), torch.arange(1, units + 1)).T
    else:
        ends = torch.tensor([[0, units], [units - 1, units], [units - 1, 1], [0, 1], [1, units - 1]]).T
        offset, k = torch.cat([ends, torch.randint(1, units, (2, 20), generator=g)], 1)
    mask = window(rank, offset, k, units)
    assert torch.equal(mask, (rank - offset[:, None]) % units < k[:, None])
    assert torch.equal(mask.sum(1), k)


def frequencies(mask):
    n, d, k = len(mask), mask.shape[1], int(mask[0].sum())
    one, two = k / d, k * (k - 1) / (d * (d - 1))
    both = mask.double().T @ mask.double() / n
    pairs = both[~torch.eye(d).bool()]
    return (both.diagonal() - one).abs().max() / math.sqrt(one * (1 - one) / n), (
        (pairs - two).abs().max() / math.sqrt(two * (1 - two) / n)
    )


def test_every_set_of_k_features_is_equally_likely():
    d, k, rounds = 11, 4, 20_000
    draws = Draws(BITS, BITS, d, stream("masks"))
    rank = torch.stack([draws.rank() for _ in range(rounds)])
    offset = draws.offset(torch.arange(rounds))
    mask = (rank - offset[:, None]) % d < k
    for i in range(100):
        assert torch.equal(window(rank[i], offset[i : i + 1], torch.tensor([k]), d)[0], mask[i])
    assert (mask.sum(1) == k).all()
    assert max(frequencies(mask)) < 4  # false alarm of 66 checks: 0.004
    fixed = window(rank[0], offset, torch.full((rounds,), k), d)  # one order for all rounds
    assert frequencies(fixed)[0] < 4
    assert frequencies(fixed)[1] > 4
    again = torch.zeros(rounds, d).scatter_(1, torch.randint(d, (rounds, k), generator=stream("again")), 1)
    assert (again.sum(1) < k).any()  # with replacement


# Flip and resample


def proposed(features, d, k, n=400, change="flip", seed=0):
    full = resolved(features, d)
    unit, can = units(full), flips(full)
    draws = Draws(full, full, int(unit.max()) + 1, stream(seed, "moves"))
    moves = Moves(unit, can & (change == "flip"), bool(can.all()))
    x = draws.start(torch.arange(n))
    x = x.bool() if moves.bits else x
    after = moves.propose(x, torch.full((n,), k), torch.arange(n), draws)
    return x.float(), after.float(), moves


def test_flip_changes_k_features_and_twice_is_the_identity():
    x, after, moves = proposed(BITS, 40, 9)
    assert ((x != after).sum(1) == 9).all()
    draws = Draws(BITS, BITS, 40, stream("twice"))
    again = []
    for record in (x.bool(), None):
        draws.generator.manual_seed(5)
        again.append(
            moves.propose(again[-1] if again else record, torch.full((400,), 9), torch.arange(400), draws)
        )
    assert torch.equal(again[1].float(), x)


def test_resample_with_fair_bits_changes_half_of_k():
    x, after, _ = proposed(BITS, 40, 10, n=2000, change="resample")
    changed = (x != after).sum(1).double()
    assert changed.max() <= 10
    assert abs(changed.mean() - 5) < 4 * math.sqrt(10 / 4 / 2000)
    _, after, _ = proposed([binary(p=0.1)], 40, 40, n=1000, change="resample")
    assert abs(after.mean() - 0.1) < 4 * math.sqrt(0.09 / 40_000)  # biased bits keep their density


def test_a_group_and_a_block_move_as_one_feature():
    x, after, _ = proposed([one_of([0, 1, 2, 3]), one_of([4, 5, 6])], 7, 1)
    assert (after[:, :4].sum(1) == 1).all()
    assert (after[:, 4:].sum(1) == 1).all()
    assert not ((x[:, :4] != after[:, :4]).any(1) & (x[:, 4:] != after[:, 4:]).any(1)).any()
    x, after, moves = proposed([pixel(2, (3, 4, 4))], 48, 1)
    assert ((x != after).sum(1) == 12).all()
    assert all(moves.unit[row].unique().numel() == 1 for row in (x != after))


# What comes back


def test_a_record_is_what_the_target_was_sure_of():
    model = linear()
    got = made(model, range(40), k_max=6)
    p = Oracle(model)(got.x)
    assert got.success.all()
    assert torch.equal(got.y, got.wanted)
    assert torch.equal(p.gather(1, got.y[:, None]).squeeze(1), got.confidence)
    assert (got.confidence > 0.2).all()
    assert torch.equal(p.argmax(1), got.y)
    assert torch.equal(made(model, range(40), k_max=6).x, got.x)
    assert not torch.equal(made(model, range(40), k_max=6, seed=1).x, got.x)
    assert made(model, k_max=6).method == made(model, k_max=6).method != made(model, k_max=5).method


def test_images_keep_their_shape_and_no_answer_changes_the_records():
    class InPlace(nn.Module):
        def forward(self, x):
            x.mul_(0)
            return x.flatten(1)[:, :4]

    oracle = Oracle(InPlace().eval(), batch=5)
    y = torch.zeros(5, dtype=torch.long)
    got = hillclimb(oracle, y, [pixel(2, (1, 4, 4))], shape=(1, 4, 4), conf_min=0.1)
    assert got.x.shape == (5, 1, 4, 4)
    assert (got.x > 0).all()


def test_an_impossible_class_ends_with_a_reason_and_the_others_are_complete():
    got = made(linear(never=[3]), range(12), iter_max=200)
    assert (got.success == (got.wanted != 3)).all()
    assert [r for r, c in zip(got.reason, got.wanted, strict=True) if c == 3] == ["exhausted"] * 3
    row = got.per_class()[3]
    assert (row["wanted"], row["made"], row["success"], row["queries"]) == (3, 0, 0, 600)
    assert math.isnan(row["confidence"])
    assert [line.split(":")[0] for line in got.hard()] == ["class 3"]
    assert got.reasons() == {"exhausted": 3, "sampled": 9}


def test_an_impossible_class_alone_gives_no_record():
    got = made(linear(never=[3]), [3, 3], iter_max=5)
    assert got.x.shape == (0, 24)
    assert got.reason == ("exhausted",) * 2


@pytest.mark.parametrize("batch", [100, 5])
def test_a_budget_is_never_exceeded_and_cuts_the_same_run(batch):
    labels = torch.arange(12) % 4
    model = linear(never=[2])

    def run(budget):
        oracle = Oracle(model, budget=budget)
        return oracle, hillclimb(oracle, labels, BITS, shape=(24,), iter_max=20, conf_min=0.6, batch=batch)

    oracle, free = run(None)
    total, whole = oracle.queries, dict(zip(free.success.nonzero().flatten().tolist(), free.x, strict=True))
    for budget in [*range(0, 30, 3), *range(30, total + 25, 13)]:
        oracle, cut = run(budget)
        assert oracle.queries == int(cut.queries.sum()) == min(budget, total)
        assert (cut.queries <= free.queries).all()
        ids = cut.success.nonzero().flatten().tolist()
        assert all(torch.equal(whole[i], x) for i, x in zip(ids, cut.x, strict=True))
        assert ("budget" in cut.reason) == (budget < total)
    assert cut.reason == free.reason


def test_with_too_few_queries_left_the_first_chains_are_asked():
    oracle = Oracle(linear(never=[0]), budget=7)
    got = hillclimb(oracle, torch.zeros(5, dtype=torch.long), BITS, shape=(24,))
    assert got.queries.tolist() == [2, 2, 1, 1, 1]
    assert set(got.reason) == {"budget"}


def test_logits_raise_in_the_first_round():
    with pytest.raises(ValueError, match="probabilities in .* logits"):
        made(mask=(lambda p: p.log() + 3,))
    with pytest.raises(ValueError, match="probabilities"):
        made(mask=(lambda p: p * torch.nan,))


@pytest.mark.parametrize("bad", [math.nan, 1.5, -0.1, math.inf])
def test_an_invalid_answer_after_a_chain_has_finished_costs_one_record(bad):
    def script(call, x, p):
        if call == 1:
            p[0] = torch.tensor([1.0, 0, 0, 0])  # chain 0 is returned at once
        if call == 3:
            p[1, 3] = bad  # of chain 2: chain 1 is the first row by then
        return p

    oracle = Scripted(linear(never=[1, 2]), script)
    labels = torch.tensor([0, 1, 2, 0, 0])
    got = hillclimb(oracle, labels, BITS, shape=(24,), iter_max=50, conf_min=0.9)
    assert got.reason == ("sampled", "exhausted", "invalid", "sampled", "sampled")
    assert got.queries[[0, 2]].tolist() == [1, 3]
    assert len(got.x) == 3


def test_ctrl_c_keeps_what_is_finished():
    def script(call, x, p):
        if call == 4:
            raise KeyboardInterrupt
        return p

    whole = made(labels=range(40), conf_min=0.7)
    oracle = Scripted(linear(), script)
    got = hillclimb(oracle, torch.arange(40) % 4, BITS, shape=(24,), conf_min=0.7)
    assert got.reasons().keys() == {"interrupted", "sampled"}
    assert torch.equal(got.success, whole.queries <= 3)
    assert torch.equal(got.x, whole.x[whole.queries <= 3])
    assert torch.equal(got.queries, whole.queries.clamp(max=3))


def test_tick_is_told_of_every_round():
    told = []
    got = made(labels=range(30), batch=7, tick=lambda finished, queries: told.append((finished, queries)))
    assert told == sorted(told)
    assert told[-1] == (30, int(got.queries.sum()))


# Masks


def test_a_label_only_target_returns_a_start_of_the_class_at_once_and_climbs_blind_otherwise():
    model = linear()
    starts = []
    oracle = Scripted(model, lambda call, x, p: (starts.append(x), p)[1], reveals="labels")
    labels = torch.arange(40) % 4
    got = hillclimb(oracle, labels, BITS, shape=(24,), iter_max=300)
    hit = Oracle(model, reveals="labels")(starts[0]) == labels
    assert torch.equal(got.queries == 1, hit)
    assert 0 < hit.sum() < 40
    assert torch.equal(got.x[hit[got.success]], starts[0][hit])
    assert (got.confidence == 1).all()


def test_plateaus_and_hidden_classes_are_results():
    for mask in (round_to(1), round_to(0), top_k(1)):
        got = made(labels=range(20), mask=(mask,), iter_max=100, conf_min=0.9)
        assert set(got.reason) <= {"sampled", "exhausted"}
        assert got.success.any()


# Starts and settings


def first_asked(**settings):
    seen = []
    oracle = Scripted(linear(), lambda call, x, p: (seen.append(x.clone()), p)[1])
    hillclimb(oracle, torch.zeros(500, dtype=torch.long), shape=(24,), iter_max=1, **settings)
    return seen[0]


def test_where_a_chain_starts():
    known = [binary(p=0.1)]
    fair, biased = first_asked(features=known), first_asked(features=known, start="marginals")
    assert abs(fair.mean() - 0.5) < 4 * 0.5 / math.sqrt(12_000)
    assert abs(biased.mean() - 0.1) < 4 * 0.3 / math.sqrt(12_000)
    records = torch.eye(24)[:7]
    x = first_asked(features=known, start=records)
    assert torch.equal(x, records[torch.arange(500) % 7])


def test_redrawn_values_come_from_the_marginals_where_the_start_does():
    for start, p in (("marginals", 0.0), ("random", 0.5), (torch.zeros(1, 24), 0.0)):
        settings = {"change": "resample", "start": start, "k_max": 24, "k_min": 24, "iter_max": 30}
        seen = []
        oracle = Scripted(linear(never=[0]), lambda call, x, p, seen=seen: (seen.append(x.clone()), p)[1])
        hillclimb(oracle, torch.zeros(50, dtype=torch.long), [binary(p=0.0)], shape=(24,), **settings)
        assert abs(torch.cat(seen[1:]).mean() - p) < 0.02


def test_the_preset_runs_and_says_where_it_comes_from():
    assert PRESETS.keys() == NOTES.keys()
    oracle, preset = Oracle(linear(600, scale=0.3)), PRESETS["shokri2017_purchase"]
    got = hillclimb(oracle, torch.arange(8) % 4, BITS, shape=(600,), **preset)
    assert got.success.all()
    assert "not checked" in NOTES["shokri2017_purchase"]


def test_defaults_follow_the_number_of_features_not_of_columns():
    x = []
    oracle = Scripted(linear(24, never=[0]), lambda call, rows, p: (x.append(rows.clone()), p)[1])
    groups = [one_of(range(i, i + 4)) for i in range(0, 24, 4)]  # 6 features: k_max 2
    hillclimb(oracle, torch.zeros(200, dtype=torch.long), groups, shape=(24,), iter_max=2)
    assert (x[0] != x[1]).sum(1).max() == 4  # two groups, two columns each


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"k_max": 25}, "k_min <= k_max <= 24 features"),
        ({"k_max": 4, "k_min": 5}, "k must have"),
        ({"k_min": 0}, "k must have"),
        ({"rej_max": -1}, "rej_max"),
        ({"iter_max": 0}, "iter_max"),
        ({"batch": 0}, "batch"),
        ({"conf_min": 1.1}, "conf_min"),
        ({"start": "marginals"}, "no marginal"),
        ({"start": torch.zeros(3, 23)}, "start must hold records of shape"),
        ({"start": torch.full((3, 24), 0.5)}, "start must hold legal values"),
        ({"labels": []}, "labels must be one or more"),
        ({"features": [binary(range(23))]}, "each of 24 columns once"),
    ],
)
def test_refuses_settings_out_of_range(settings, match):
    with pytest.raises(ValueError, match=match):
        made(**settings)


def test_refuses_labels_that_the_target_does_not_know_and_training_mode():
    with pytest.raises(ValueError, match=r"labels must be in 0 \.\. 3, got 4"):
        hillclimb(Oracle(linear()), torch.tensor([1, 4]), BITS, shape=(24,))
    with pytest.raises(ValueError, match="eval mode"):
        made(linear().train())


# Speed


def mlp():
    model = nn.Sequential(nn.Linear(600, 128), nn.Tanh(), nn.Linear(128, 100)).eval()
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.copy_(
                0.6 * torch.randn(layer.weight.shape, generator=stream("mlp", *layer.weight.shape))
            )
    return model


def seconds(run, times):
    out = []
    for _ in range(times):
        begun = time.perf_counter()
        run()
        out.append(time.perf_counter() - begun)
    return min(out)


@torch.no_grad()
def one_record_at_a_time(model, c, queries, chance):
    """`queries` steps of Algorithm 1 on one record, as fast as it goes without a batch."""
    best = (torch.rand(600, generator=chance) < 0.5).float()
    x, y_best, j, k = best, 0.0, 0, 128
    for _ in range(queries):
        p = model(x[None])[0].double().softmax(0)
        y = p[c].item()
        if y >= y_best:
            assert not (y > 0.999999 and int(p.argmax()) == c and y > 2)
            best, y_best, j = x, y, 0
        else:
            j += 1
            if j > 10:
                k, j = max(4, (k + 1) // 2), 0
        x = best.clone()
        at = torch.randperm(600, generator=chance)[:k]
        x[at] = 1 - x[at]


@pytest.mark.slow
def test_many_chains_are_faster_than_one_at_a_time():
    model, m, rounds = mlp(), 500, 20
    oracle, labels = Oracle(model), torch.arange(m) % 100
    settings = {"k_max": 128, "k_min": 4, "conf_min": 1.0, "iter_max": rounds}
    batched = seconds(lambda: hillclimb(oracle, labels, BITS, shape=(600,), **settings), 7) / (m * rounds)
    alone = seconds(lambda: one_record_at_a_time(model, 3, 500, stream("alone")), 7) / 500
    assert alone / batched > 2.5


@pytest.mark.slow
def test_a_shared_order_is_faster_than_sorting_for_each_chain():
    g, k = stream("sort"), torch.full((500,), 128)
    draws, chains = Draws(BITS, BITS, 600, g), torch.arange(500)
    ours = seconds(lambda: window(draws.rank(), draws.offset(chains), k, 600), 20)

    def sorting():
        return torch.rand(500, 600, generator=g).argsort(1).argsort(1) < k[:, None]

    assert seconds(sorting, 5) > ours
