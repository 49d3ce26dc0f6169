import io
import re

from rich.console import Console

from workbench.attack import HOLDS
from workbench.table import table


def printed(summary, manifest, width=100):
    page = io.StringIO()
    Console(file=page, width=width).print(table(summary, manifest))
    return page.getvalue()


def test_fits_a_page_and_says_what_it_must(held):
    text = printed(held.summary, held.manifest)
    assert max(map(len, text.splitlines())) <= 100
    said = ("glasslab compare", held.manifest["commit"], "seed 0", "cpu", "16 shadows", "5 targets", "gap")
    for word in said:
        assert word in text
    assert "…" not in text  # nothing is cut


def test_one_ranking_a_label_best_first_and_chance_below(held):
    text = printed(held.summary, held.manifest)
    found = []
    for label in (label for label in HOLDS if any(row["holds"] == label for row in held.summary)):
        group = [row for row in held.summary if row["holds"] == label]
        best = sorted(group, key=lambda row: (row["tpr_at_0.1pct"], row["auc"]), reverse=True)
        found += [text.index(f"\n {label} "), *(text.index(f"\n {row['attack']} ") for row in best)]
    found.append(text.index("\n (chance) "))
    assert found == sorted(set(found))
    turned = sorted(held.summary, key=lambda row: row["attack"])
    assert printed(turned, held.manifest).split("°")[0] == text.split("°")[0]


def test_weak_numbers_are_marked_and_printed(held):
    """1,500 scores: 1 % has fewer than 10 false positives, 0.1 % and 0.001 % none."""
    lira = next(row for row in held.summary if row["attack"] == "lira")
    assert [lira[f"tpr_at_{rate}_flag"] for rate in ("1pct", "0.1pct", "0.001pct")] == [
        "few_false_positives",
        "below_resolution",
        "below_resolution",
    ]
    lines = printed(held.summary, held.manifest).splitlines()
    line = next(line for line in lines if line.startswith(" lira "))
    assert re.search(rf"{100 * lira['tpr_at_1pct']:.2f}\*", line)
    assert f"{100 * lira['tpr_at_0.1pct']:.2f}°" in line
    assert f"{lira['auc']:.3f}" in line
    assert f"{lira['queries']:,}" in line


def test_a_failed_attack_is_in_the_table_with_its_error(held):
    failed = dict.fromkeys(held.summary[0]) | {
        "attack": "bad",
        "family": "blackbox",
        "access": "labels",
        "error": "3 of 5 targets: [red]RuntimeError",
    }
    text = printed([*held.summary, failed], held.manifest)
    assert "bad: 3 of 5 targets: [red]RuntimeError" in text
    assert text.index(" bad ") > text.index("(chance)")
    assert "RuntimeError" in printed([failed], held.manifest)  # nothing but failures


def test_doubts_are_spoken(held):
    doubting = [{**row, "checks": ["AUC lies below one half"]} for row in held.summary[:1]]
    manifest = {**held.manifest, "checks": ["members of target 0 differ without the model"]}
    text = printed(doubting, manifest)
    assert "! random: AUC lies below one half" in text
    assert "! members of target 0 differ without the model" in text
