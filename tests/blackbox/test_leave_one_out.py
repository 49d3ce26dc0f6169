"""A shadow of a balanced design as the target, in worlds where signals know nothing: counts alone can tell.

20,000 records; AUC must lie within 4 standard errors of 1/2 once the counts are equal.
"""

from functools import partial

import pytest
import torch
from worlds import null

from blackbox.baseline import per_class
from blackbox.lira import lira, lira_offline
from blackbox.shadow import shadow
from glasslab.likelihood import fit, ratio
from glasslab.metrics import auc
from glasslab.split import leave_one_out, stream

N = 20_000
FORMS = {
    "online": lira,
    "one-sided": lira_offline,
    "two-sided": partial(lira_offline, two_sided=True),
}
forms = pytest.mark.parametrize("form", FORMS)


def errors(score, truth):
    """Standard errors between the AUC and 1/2."""
    n_pos = int(truth.sum())
    return (auc(score, truth) - 0.5) / ((len(truth) + 1) / (12 * n_pos * (len(truth) - n_pos))) ** 0.5


CURES = {
    "first of each side": leave_one_out,
    "without its complement": lambda a, S, member: (S[2:], member[2:]),  # what a game of the workbench does
    "none": lambda a, S, member: (S[1:], member[1:]),
}
cures = pytest.mark.parametrize("cure", list(CURES)[:2])


def left_out(form, m, rule, cure):
    S, member = null(m, N)
    phi, truth = S[0], member[0]
    S, member = CURES[cure](0, S, member)
    return errors(FORMS[form](phi, S, member, variance=rule), truth)


two_values = pytest.mark.filterwarnings("ignore::glasslab.checks.Floored")  # now and then nearly equal


@two_values
@forms
@cures
@pytest.mark.parametrize("rule", ["auto", "record"])
@pytest.mark.parametrize("m", [6, 8, 16])
def test_equal_counts_left_out_tell_nothing(m, rule, cure, form):
    assert abs(left_out(form, m, rule, cure)) < 4


@two_values
@pytest.mark.parametrize("form", ["online", "two-sided"])
@pytest.mark.parametrize("m", [6, 8])
def test_unequal_counts_tell_who_is_a_member(m, form):
    """So that the test above is known to bite: the counts alone are read, upside down."""
    assert left_out(form, m, "record", "none") < -4


@forms
@cures
@pytest.mark.parametrize("rule", ["auto", "record", "pooled"])
def test_refuses_one_model_a_side(rule, cure, form):
    with pytest.raises(ValueError, match="got 1 "):
        left_out(form, 4, rule, cure)


def test_a_location_alone_can_be_had_from_one_model_a_side():
    S, member = null(4, N)
    rest, inside = leave_one_out(0, S, member)
    f = fit(rest, inside, variance="grand")
    for score in (S[0] - f.mu_out, S[0] - (f.mu_in + f.mu_out) / 2, ratio(S[0], f)):
        assert abs(errors(score, member[0])) < 4


@pytest.mark.parametrize("m", [4, 6, 8, 16])
def test_attacks_that_pool_over_models_tell_nothing(m):
    S, member = null(m, N)
    z = torch.stack([S, torch.zeros_like(S), null(m, N, seed=1)[0]], -1)
    rest, inside = leave_one_out(0, z, member)
    y = torch.randint(3, (N,), generator=stream(0, "y"))
    by_class = per_class(S[0], y, rest[..., 0], y, inside)
    assert abs(errors(by_class, member[0])) < 4
    learned = shadow(z[0].softmax(-1), y, rest.softmax(-1), y, inside, generator=stream(0), pairs=1000)
    assert abs(errors(learned, member[0])) < 4
