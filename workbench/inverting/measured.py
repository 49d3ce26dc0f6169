"""From inversions to the rows of a table: every measure, its interval over labels, and the paired tests.

Rows marked `reference` read private data: nobody may take them for attacks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from glasslab import recon
from glasslab.metrics import auc
from glasslab.paired_labels import label_interval, paired_labels
from glasslab.recon_rows import Row, reference_rows
from glasslab.recon_sets import frechet
from glasslab.split import stream
from inversion.membership import membership
from inversion.result import Inversion
from workbench.inverting.victim import Victim

Line = dict[str, Any]
RATES = ("judge_acc1", "judge_acc5", "nearest_id")
MEASURES = (*RATES, "feature_distance", "gap", "ssim", "psnr", "correlation")
RIVALS = ("one step", "class mean")
POINTS = 120  # of a curve


@dataclass(frozen=True, eq=False)
class Measured:
    """One row: its values label by label; None where a measure is undefined for these records."""

    name: str
    row: Row
    values: dict[str, Float64[Tensor, "l"] | None]
    frechet: float | None
    reason: str | None

    def line(self, seed: int) -> Line:
        """Plain numbers: means over labels with 95 % intervals."""
        out: Line = {"row": self.name, "reference": self.row.reference}
        for name, value in self.values.items():
            mean = None if value is None or not bool(value.isfinite().all()) else float(value.mean())
            span = (
                None
                if mean is None or value is None
                else label_interval(value, rate=name in RATES, seed=seed)
            )
            out |= {name: mean, f"{name}_low": span and span[0], f"{name}_high": span and span[1]}
        return out | {"frechet_judge": self.frechet, "frechet_reason": self.reason}


def measured(victim: Victim, name: str, row: Row) -> Measured:
    """Every measure of images under labels."""
    x, y, data, judge = row.x.float(), row.y, victim.data, victim.judge
    private, unseen, held = (data[ids] for ids in (victim.trained, victim.unseen, victim.comparison))
    feature, logits = judge.features(x), judge.logits(x)
    own, other = judge.features(private.x), judge.features(held.x)
    images = len(data.shape) == 3
    values = {
        "judge_acc1": recon.judge_acc(logits, y, 1),
        "judge_acc5": recon.judge_acc(logits, y, 5) if data.classes > 5 else None,
        "nearest_id": recon.nearest_id(x, y, unseen.x, unseen.y),
        "feature_distance": recon.feature_distance(feature, y, own, private.y),
        "gap": recon.gap(feature, y, own, private.y, other, held.y),
        "ssim": recon.ssim(x, y, private.x, private.y) if images else None,
        "psnr": recon.psnr(x, y, private.x, private.y),
        "correlation": recon.correlation(x, y, unseen.x, unseen.y),
    }
    far = frechet(feature, own)
    return Measured(name, row, values, far.value, far.reason)


def references(
    victim: Victim, found: Inversion, one: Float[Tensor, "n *d"], seed: int
) -> dict[str, Measured]:
    """The five rows beside one attack; `one` is its first step from the same start."""
    private = victim.data[victim.trained]
    drawn = stream(seed, "references")
    rows = reference_rows(
        found.x.float(), found.y, one.float(), private.x, private.y, victim.aux, generator=drawn
    )
    return {name: measured(victim, name, row) for name, row in rows.items()}


def against(attack: Measured, rival: Measured, seed: int) -> Line:
    """Paired tests over labels; `better` only where one rejects in favour and none against."""
    ours, theirs = attack.values, rival.values
    pairs = [side[name] for name in ("feature_distance", "gap") for side in (ours, theirs)]
    hits = [side["nearest_id"] for side in (ours, theirs)]
    values, identified = ([v for v in some if v is not None] for some in (pairs, hits))
    found = paired_labels(*values, *(v > 0.5 for v in identified), seed=seed)
    key = rival.name.replace(" ", "_")
    said = "better" if found.better else "worse" if found.worse else "not told apart"
    return {
        f"p_distance_{key}": found.p_distance,
        f"p_gap_{key}": found.p_gap,
        f"p_identification_{key}": found.p_identification,
        f"against_{key}": said if found.note is None else f"{said} ({found.note})",
    }


def cost(victim: Victim, found: Inversion, seconds: float, access: str, queries: int) -> Line:
    """What an attack reached and what it took; its AUC as a membership score of all records of its labels."""
    reasons = {name: found.stop_reason.count(name) for name in sorted(set(found.stop_reason))}
    return {
        "access": access,
        "images": len(found.y),
        "confidence": _median(found.confidence),
        "steps": _median(found.steps.double()),
        "queries": queries,
        "stop_reasons": reasons,
        "seconds": seconds,
        "membership_auc": membership_auc(victim, found),
    }


def membership_auc(victim: Victim, found: Inversion) -> float | None:
    """Trained against unseen records of the labels that were rebuilt, by the distance to what was rebuilt."""
    ids = torch.cat([victim.trained, victim.unseen])
    data = victim.data[ids]
    some = torch.isin(data.y, found.y)
    if not bool(found.x.isfinite().all()):
        return None
    score = membership(found, data.x[some], data.y[some])
    return float(auc(score, (torch.arange(len(ids)) < len(victim.trained))[some.cpu()]))


def curves(found: dict[str, Inversion]) -> list[Line]:
    """Confidence against the step, label by label: at POINTS steps, close together where it begins."""
    out: list[Line] = []
    for name, each in found.items():
        if each.curve is None or not len(each.curve):
            continue
        k, top = len(each.curve), int(each.steps.max())
        stride = max(1, -(-top // k))
        some = torch.logspace(0, math.log10(k), POINTS).round().long().unique() - 1
        steps = [min((i + 1) * stride, top) for i in some.tolist()]
        out += [
            {"row": name, "label": label, "steps": steps, "confidence": column}
            for label, column in zip(
                each.y.tolist(), each.curve[some.to(each.curve.device)].T.tolist(), strict=True
            )
        ]
    return out


def nearest_private(victim: Victim, x: Float[Tensor, "n *d"], y: Int[Tensor, "n"]) -> Float[Tensor, "n *d"]:
    """For each image the training image of its label with the highest correlation: for pictures alone."""
    private = victim.data[victim.trained]
    out: list[Tensor] = []
    for image, label in zip(x, y, strict=True):
        own = private.x[private.y == label]
        near = [torch.corrcoef(torch.stack([image.flatten(), each.flatten()]).double())[0, 1] for each in own]
        out.append(own[int(torch.stack(near).nan_to_num(-1).argmax())])
    return torch.stack(out)


def _median(t: Tensor) -> float | None:
    value = float(t.double().quantile(0.5))
    return None if value != value else value


def flat(lines: Sequence[Line]) -> list[Line]:
    """The same columns in every line, None where undefined."""
    names = dict.fromkeys(name for line in lines for name in line)
    return [dict(names) | line for line in lines]
