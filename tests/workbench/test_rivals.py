from glasslab.bootstrap import paired
from glasslab.intervals import holm
from glasslab.split import stream
from workbench.rivals import RATES


def test_an_attack_by_another_name_differs_by_nothing(held):
    confidence = next(row for row in held.summary if row["attack"] == "confidence")
    for measure in ("auc", "tpr_at_1pct", "tpr_at_0.1pct"):
        found = [confidence[f"{measure}_minus_loss{end}"] for end in ("", "_low", "_high", "_p")]
        assert found == [0.0, 0.0, 0.0, 1.0]


def test_same_draws_for_both_and_p_for_so_many(held):
    """By hand: every attack against loss, then Holm over all of them."""
    others = [name for name in held.scores if name != "loss"]
    met = [
        paired(held.scores[name], held.scores["loss"], held.truth, stream(0, "rivals"), rates=RATES)
        for name in others
    ]
    p = holm([pair["tpr_at_1pct"].p for pair in met])
    for row in held.summary:
        if row["attack"] in others:
            at = others.index(row["attack"])
            assert row["tpr_at_1pct_minus_loss"] == met[at]["tpr_at_1pct"].value
            assert row["tpr_at_1pct_minus_loss_low"] == met[at]["tpr_at_1pct"].low
            assert row["tpr_at_1pct_minus_loss_p"] == p[at]


def test_lira_is_the_rival_of_those_who_hold_the_same(held):
    for row in held.summary:
        shadows = ("probabilities+shadows", "weights+shadows")
        same = row["holds"].startswith(shadows) and row["attack"] != "lira"
        assert (row["auc_minus_lira"] is not None) == same
