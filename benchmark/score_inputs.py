"""Made-up inputs for benchmark/score_cases.py, in the shapes that a zoo or an oracle gives.

Each function takes (records, models, seed) and returns arrays by name. Time does not depend on the values.
What asks a model asks a net of 64-128-10 on scikit-learn's digits, in closed form.
"""

from collections.abc import Mapping

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from glasslab.oracle import Oracle
from glasslab.split import shadow_rows, target_rows

Arrays = dict[str, np.ndarray]
Given = Mapping[str, Tensor]

CLASSES = 10


def signals(records: int, models: int, seed: int, queries: int = 2) -> Arrays:
    """phi [1 k n] and shadow_phi [m k n]: N(hard, 1), members one higher."""
    rng = np.random.default_rng(seed)
    hard = 3 * rng.standard_normal(records)
    arrays: Arrays = {
        "shadow_member": shadow_rows(models, records, seed).numpy(),
        "target_member": target_rows(1, records, seed).numpy(),
    }
    for name, kind in (("phi", "target"), ("shadow_phi", "shadow")):
        inside = arrays[f"{kind}_member"][:, None]
        noise = rng.standard_normal((len(inside), queries, records))
        arrays[name] = hard + inside + noise
    return arrays


def one_query(records: int, models: int, seed: int) -> Arrays:
    """phi [1 n], shadow_phi [m n], and the losses of both."""
    arrays = signals(records, models, seed, 1)
    for name in ("phi", "shadow_phi"):
        arrays[name] = arrays[name][:, 0]
    return arrays


def pooled(records: int, models: int, seed: int) -> Arrays:
    """As `one_query`, and each side's pooled variance: the twin is spared a pass over all records."""
    arrays = one_query(records, models, seed)
    S, inside = arrays["shadow_phi"], arrays["shadow_member"]
    for name, side in (("pooled_in", inside), ("pooled_out", ~inside)):
        around = np.where(side, S - np.mean(S, 0, where=side), 0)
        arrays[name] = np.array(np.sum(around**2) / np.sum(side.sum(0) - 1))
    return arrays


def losses(records: int, models: int, seed: int) -> Arrays:
    """loss [n] and shadow_loss [m n], and labels y [n]."""
    arrays = one_query(records, models, seed)
    loss, shadow_loss = (np.logaddexp(0, -arrays.pop(name)) for name in ("phi", "shadow_phi"))
    y = np.random.default_rng(seed).integers(CLASSES, size=records)
    return arrays | {"loss": loss[0], "shadow_loss": shadow_loss, "y": y}


def population(records: int, models: int, seed: int) -> Arrays:
    """As `one_query`, and a fifth as many records that no model was trained on: phi_aux, shadow_phi_aux."""
    arrays, rng, aux = one_query(records, models, seed), np.random.default_rng(seed + 1), records // 5
    hard = 3 * rng.standard_normal(aux)
    drawn = {"phi_aux": rng.standard_normal((1, aux)), "shadow_phi_aux": rng.standard_normal((models, aux))}
    arrays |= {name: hard + noise for name, noise in drawn.items()}
    logs = {k.replace("phi", "log_p"): -np.logaddexp(0, -v) for k, v in arrays.items() if "phi" in k}
    return arrays | logs


def answers(records: int, models: int, seed: int) -> Arrays:
    """Logits z [n c] and shadow_z [m n c] (float32), the true class higher, for members more; p, shadow_p."""
    rng = np.random.default_rng(seed)
    y = rng.integers(CLASSES, size=records)
    arrays: Arrays = {
        "y": y,
        "shadow_member": shadow_rows(models, records, seed).numpy(),
        "target_member": target_rows(1, records, seed).numpy(),
    }
    hard = np.eye(CLASSES)[y] * (2 + 2 * rng.standard_normal(records)[:, None])
    for name, kind in (("z", "target"), ("shadow_z", "shadow")):
        inside = arrays[f"{kind}_member"][..., None] * np.eye(CLASSES)[y]
        arrays[name] = (hard + inside + rng.standard_normal(inside.shape)).astype(np.float32)
    arrays["z"] = arrays["z"][0]
    return arrays


def probabilities(records: int, models: int, seed: int) -> Arrays:
    arrays = answers(records, models, seed)
    z, shadow_z = (torch.from_numpy(arrays.pop(name)).double() for name in ("z", "shadow_z"))
    return arrays | {"p": z.softmax(-1).numpy(), "shadow_p": shadow_z.softmax(-1).numpy()}


def digits(records: int, models: int, seed: int) -> Arrays:
    """x [n 64] in [0, 1] and y, and the weights of a net: random ReLU units, and a ridge on them."""
    x, y = load_digits(return_X_y=True)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(x))
    x, y = (x / 16)[order], y[order]
    w1, b1 = rng.standard_normal((128, 64)) / 4, rng.standard_normal(128) / 4
    h = np.append(np.maximum(x @ w1.T + b1, 0), np.ones((len(x), 1)), 1)[: len(x) // 2]
    w = np.linalg.solve(h.T @ h + np.eye(129), h.T @ np.eye(CLASSES)[y[: len(h)]])
    at = np.arange(records) % len(x)
    weights = {"w1": w1, "b1": b1, "w2": 10 * w[:-1].T, "b2": 10 * w[-1]}
    return {"x": x[at].astype(np.float32), "y": y[at]} | {k: v.astype(np.float32) for k, v in weights.items()}


def tables(records: int, models: int, seed: int) -> Arrays:
    """Signals s [n] of records x [n 64], which tell their centre and spread, and as many of aux."""
    rng = np.random.default_rng(seed)
    w, v = rng.standard_normal((2, 64)) / 8
    arrays = {name: rng.standard_normal((records, 64)).astype(np.float32) for name in ("x", "x_aux")}
    for name, x in (("s", arrays["x"]), ("s_aux", arrays["x_aux"])):
        arrays[name] = x @ w + np.exp(x @ v) * rng.standard_normal(records)
    return arrays


def images(records: int, models: int, seed: int) -> Arrays:
    """As `digits`, and the images [n 1 8 8]."""
    arrays = digits(records, models, seed)
    return arrays | {"image": arrays["x"].reshape(-1, 1, 8, 8)}


def agreements(records: int, models: int, seed: int) -> Arrays:
    """Whether each of five versions keeps the label, which those of members do more often."""
    rng = np.random.default_rng(seed)
    member, y = rng.random(records) < 0.5, rng.integers(CLASSES, size=records)
    hard = rng.random(records) + member * 0.3
    return {"agree": rng.random((records, 5)) < hard[:, None], "y": y, "member": member}


def net(a: Given) -> nn.Module:
    """The net whose weights `digits` drew."""
    layers = [nn.Linear(*a[f"w{i}"].shape[::-1]) for i in (1, 2)]
    for i, layer in enumerate(layers, 1):
        layer.weight.data, layer.bias.data = a[f"w{i}"], a[f"b{i}"]
    return nn.Sequential(nn.Flatten(), layers[0], nn.ReLU(), layers[1]).eval()


def asked(a: Given) -> Oracle:
    """Labels alone."""
    return Oracle(net(a), reveals="labels")
