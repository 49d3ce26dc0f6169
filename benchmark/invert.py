"""Model inversion: how fast, against whom, and how near it comes, beside the reference rows.

    python -m benchmark.invert

Olivetti's faces are read from GLASSLAB_DATA. `miface_over_art`: seconds of the MIFace of the
adversarial-robustness-toolbox over ours, softmax regression on 64x64 faces, 40 labels, 5,000 steps of both,
one core each, ART with a batch of 40 (with a batch of 1 as a row: 4 labels, times ten). Tables: MI-FACE with
the weights on three nets, estimated gradients and labels alone, on faces and digits. Each part is kept in
`folder` once it is finished.
"""

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean, median
from time import perf_counter
from typing import Any

import numpy as np
import torch
import tyro
from torch import nn

from benchmark import peer, record
from benchmark.measure import measured as timed
from glasslab.datasets import load
from glasslab.faces import face_model, per_class
from glasslab.nets import Dae
from glasslab.oracle import forward
from glasslab.split import stream
from inversion.gradient import autograd
from inversion.miface import miface
from inversion.process import through
from workbench.evidence import one_thread
from workbench.inverting import attacks
from workbench.inverting.told import told
from workbench.inverting.victim import victim
from workbench.options import InvertOptions

Row = dict[str, Any]
STEPS, LABELS, SPLITS, FEW = 5000, 40, 5, 4
LAW = (10, 40, 200, 530)  # classes of random softmax models


def face(name: str, seed: int) -> tuple[nn.Module, float]:
    """A net on 7 images a person, and its error on the other 3."""
    data = load("olivetti")
    ids, held = per_class(data.y, 7, stream(seed, "faces"))
    model = face_model(name, data, ids, seed)
    right = forward(model, data.x[held]).argmax(1) == data.y[held]
    return model, 1 - float(right.double().mean())


def ours(model: nn.Module, runs: int) -> Row:
    """All labels, all steps, on one core."""

    def inverted() -> torch.Tensor:
        y = torch.arange(LABELS)
        found = miface(autograd(model), y, shape=(1, 64, 64), steps=STEPS, target_confidence=None)
        assert int(found.steps.min()) == STEPS, found.stop_reason
        return found.confidence

    with one_thread():
        reached, cost = timed(inverted, runs=runs, budget=60)
    return {"case": "ours", "labels": LABELS, "confidence_median": float(reached.median()), **cost}


def alone() -> list[Row]:
    """Ours without a rival, for a quiet moment."""
    return [ours(face("softmax", 0)[0], runs=5)]


def speed() -> list[Row]:
    """Ours against ART's, one core each; and ours with PROCESS."""
    model, _ = face("softmax", 0)
    w, b = (p.detach() for p in model.parameters())
    rows = [ours(model, runs=3)]
    cost = rows[0]
    with tempfile.TemporaryDirectory() as scratch:
        for name, t in (("w", w), ("b", b)):
            np.save(Path(scratch) / f"{name}.npy", t.numpy())
        for batch, labels in ((LABELS, LABELS), (1, FEW)):
            settings = {"labels": labels, "batch": batch, "steps": STEPS}
            found = peer.ask("art_miface", Path(scratch), settings)
            scaled = found["seconds"] * LABELS / labels
            rows.append(
                {"case": f"ART, batch {batch}", "labels": labels, **found}
                | {"seconds_all_labels": scaled, "over_ours": scaled / cost["seconds"]}
            )
            say(rows[-1])
    return [*rows, *processed()]


def processed() -> list[Row]:
    """The autoencoder: PROCESS every 50 steps for all steps, and at every step for 200."""
    model, error = face("dae", 0)
    assert isinstance(model, Dae)
    rows: list[Row] = []
    for every, steps in ((50, STEPS), (1, 200)):
        begun = perf_counter()
        found = miface(
            autograd(model.above),
            torch.arange(LABELS),
            shape=(1000,),
            steps=steps,
            target_confidence=None,
            window=steps + 1,
            process=through(model),
            process_every=every,
        )
        rows.append(
            {"case": f"dae, PROCESS every {every}", "labels": LABELS, "steps": int(found.steps.max())}
            | {"seconds": perf_counter() - begun, "confidence_median": float(found.confidence.median())}
            | {"test_error": error, "reasons": sorted(set(found.stop_reason))}
        )
        say(rows[-1])
    return rows


def law() -> list[Row]:
    """Softmax models with W from N(0, 5/256), D = 256: what confidence every label reaches, and when."""
    rows: list[Row] = []
    for c in LAW:
        linear = nn.Linear(256, c, bias=False).eval()
        linear.weight.data = torch.randn(c, 256, generator=stream(0, "law", c)) * (5 / 256) ** 0.5
        with one_thread():
            found = miface(autograd(linear), torch.arange(c), shape=(256,))
        least, steps = float(found.confidence.min()), found.steps.double()
        rows.append({"case": f"random softmax, {c} classes", "least_confidence": least})
        rows[-1] |= {"steps_median": float(steps.median()), "steps_max": float(steps.max())}
        say(rows[-1])
    return rows


def table(options: InvertOptions, name: str = "miface") -> list[Row]:
    """One attack with its reference rows, as `glasslab invert` measures them."""
    held = victim(options, apart=attacks.ATTACKS[name].prior)
    lines = told(held, options, name).lines
    said = {
        "data": options.data,
        "net": held.net,
        "attack": name,
        "gradient": options.gradient if name == "miface" else None,
        "seed": options.seed,
        "test_error": 1 - held.about["accuracy"]["comparison"],
        "train_accuracy": held.about["accuracy"]["train"],
        "judge_accuracy": held.about["judge_accuracy"],
    }
    out = [said | line for line in lines]
    for each in out:
        keys = ("data", "net", "attack", "row", "nearest_id", "judge_acc1", "feature_distance", "confidence")
        say({key: each.get(key) for key in (*keys, "queries", "seconds", "against_one_step")})
    return out


def faces() -> list[Row]:
    """Softmax on five random splits."""
    rows = []
    for seed in range(SPLITS):
        rows += table(InvertOptions(data="olivetti", net="softmax", seed=seed, confidence=1.0))
    errors = [
        {"case": "softmax error", "seed": s, "test_error": face("softmax", s)[1]} for s in range(SPLITS)
    ]
    return rows + errors


def nets() -> list[Row]:
    """The two other nets, one split each."""
    return [row for net in ("mlp", "dae") for row in table(InvertOptions(data="olivetti", net=net))]


def digits() -> list[Row]:
    """The default of the command, and a prior learned on other classes."""
    rows = table(InvertOptions())
    for name in ("gmi", "kedmi", "plg-mi"):
        rows += table(InvertOptions(), name)
    return rows


def asked() -> list[Row]:
    """Without the weights."""
    rows: list[Row] = []
    for data, net in (("digits", None), ("olivetti", "softmax")):
        for gradient in ("difference", "nes"):
            rows += table(InvertOptions(data=data, net=net, gradient=gradient))
        rows += table(InvertOptions(data=data, net=net), "label-only")
    return rows


PARTS: Mapping[str, Callable[[], list[Row]]] = {
    "alone": alone,
    "speed": speed,
    "law": law,
    "faces": faces,
    "nets": nets,
    "digits": digits,
    "asked": asked,
}


def main(only: tuple[str, ...] = (), folder: Path = Path("runs/invert")) -> None:
    """Runs the parts that are not in `folder` yet (or `only` those named, anew); writes results/invert.json
    once all are there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in PARTS.items():
        kept = folder / f"{name}.json"
        if name in only or (not only and not kept.exists()):
            kept.write_text(json.dumps(part(), indent=1, allow_nan=False))
    if all((folder / f"{name}.json").exists() for name in PARTS):
        held = {name: json.loads((folder / f"{name}.json").read_text()) for name in PARTS}
        rows = [{"part": name} | row for name, some in held.items() for row in some]
        record.write("invert", "python -m benchmark.invert", 0, figures(held), rows)


def figures(held: Mapping[str, list[Row]]) -> dict[str, float]:
    """The few numbers that are named elsewhere; means over splits for the faces."""
    cases = {row["case"]: row for row in held["speed"]}
    rows = [row for row in held["faces"] if "row" in row]

    def mean(name: str) -> float:
        return fmean(row["nearest_id"] for row in rows if row["row"] == name)

    errors = [row["test_error"] for row in held["faces"] if row.get("case") == "softmax error"]
    every = cases["dae, PROCESS every 1"]  # it stalls before its 200 steps
    found = {
        "miface_over_art": cases[f"ART, batch {LABELS}"]["over_ours"],
        "miface_over_art_batch_1": cases["ART, batch 1"]["over_ours"],
        "forty_faces_seconds": held["alone"][0]["seconds"],
        "forty_faces_seconds_beside_art": cases["ours"]["seconds"],
        "dae_process_seconds": cases["dae, PROCESS every 50"]["seconds"],
        "dae_process_seconds_a_step": every["seconds"] / every["steps"],
        "olivetti_softmax_test_error": fmean(errors),
        "olivetti_softmax_test_error_worst": max(errors),
        "olivetti_softmax_nearest_id": mean("miface"),
        "olivetti_one_step_nearest_id": mean("one step"),
        "olivetti_class_mean_nearest_id": mean("class mean"),
        "olivetti_other_class_nearest_id": mean("other class"),
    }
    reached = [row["confidence"] for row in rows if row["row"] == "miface"]
    return found | {"olivetti_softmax_confidence": median(reached)}


def say(row: Mapping[str, Any]) -> None:
    print(
        ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True
    )


if __name__ == "__main__":
    tyro.cli(main)
