"""LiRA, the likelihood-ratio attack (Carlini et al. 2022, arXiv:2112.03570, Algorithm 1; and offline).

The attacker has: the target's probabilities, and m shadow models whose training sets it knows.
Online: log N(phi | mu_in, sig_in^2) - log N(phi | mu_out, sig_out^2). Offline: -log Pr[Z > phi] for
Z ~ N(mu_out, sig_out^2). Over k queries it is the mean of these, never a ratio of means.
Who scores many targets one after another fits once, with `glasslab.likelihood`: `ratio(phi, fit(...))`.
"""

from jaxtyping import Bool, Float, Float64
from torch import Tensor

from glasslab.likelihood import Location, Variance, fit, ratio, tail
from glasslab.moments import a_model_each


def lira(
    phi: Float[Tensor, "... n"],
    shadow_phi: Float[Tensor, "m *k n"],
    shadow_member: Bool[Tensor, "m n"],
    *,
    variance: Variance = "auto",
    location: Location = "median",
) -> Float64[Tensor, "... n"]:
    """Scores in nats, one a record: [n], or [*t n] for phi [*t n] with shadows [m n], [*t k n] with [m k n].

    `variance` and `location` as in `glasslab.likelihood.fit`: by default each record's own spread where 32
    models a side allow it, else one pooled spread a side.
    Raises ValueError, naming record, needed and found count, where a record has too few models in or out.
    """
    a_model_each(shadow_member, "in", "; lira_offline needs none")
    return ratio(phi, fit(shadow_phi, shadow_member, variance=variance, location=location))


def lira_offline(
    phi: Float[Tensor, "... n"],
    shadow_phi: Float[Tensor, "m *k n"],
    shadow_member: Bool[Tensor, "m n"],
    *,
    two_sided: bool = False,
    variance: Variance = "auto",
    location: Location = "median",
) -> Float64[Tensor, "... n"]:
    """Scores in nats from the OUT models alone; shapes, settings and errors as in `lira`.

    `two_sided` is the reference code's -log N(phi | out), for which unusually low phi speaks of members too.
    """
    # DIFFERS: minus the log p-value. Lambda itself is 1 from u = 8.3 on, and ties the surest members.
    # DIFFERS: k > 1 queries are combined as Fisher does, others average log Lambda.
    held = fit(shadow_phi, shadow_member, variance=variance, location=location, sides="out")
    return tail(phi, held, two_sided=two_sided)
