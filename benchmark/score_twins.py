"""Textbook twins of the attacks: the scores of one record, as one reads the formula, with NumPy and SciPy.

A loop over records around them is what benchmark/score.py measures against where no package has the attack.
"""

import warnings
from collections.abc import Callable, Mapping

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator
from scipy.special import softmax
from scipy.stats import norm, t
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from torch.nn.functional import binary_cross_entropy_with_logits

Given = Mapping[str, np.ndarray]
Twin = Callable[[Given, int], "float | np.ndarray"]  # arrays, record
Plain = Callable[[Given], np.ndarray]  # the whole attack


def modified_entropy(a: Given, i: int) -> float:
    p, y = softmax(a["z"][i].astype(float)), a["y"][i]
    total = -(1 - p[y]) * np.log(p[y])
    for c in range(len(p)):
        if c != y:
            total -= p[c] * np.log(1 - p[c])
    return -float(total)


def similarity(a: Given, i: int) -> float:
    p, inside = softmax(a["z"][i].astype(float)), a["shadow_member"][:, i]
    shadows = [softmax(z.astype(float)) for z in a["shadow_z"][:, i]]
    p_in = np.mean([q for q, held in zip(shadows, inside, strict=True) if held], 0)
    p_out = np.mean([q for q, held in zip(shadows, inside, strict=True) if not held], 0)
    return float(sum(p * (np.log(p_in) - np.log(p_out))))


def gmia(a: Given, i: int) -> float:
    held = np.sort(a["shadow_loss"][~a["shadow_member"][:, i], i])
    knots, rank = np.unique(held, return_counts=True)
    F = PchipInterpolator(np.append(0, knots), np.append(0, rank.cumsum() / len(held)))
    l = a["loss"][i]
    return -1.0 if l >= held[-1] else -float(F(l))


def sablayrolles(a: Given, i: int) -> np.ndarray:
    S, inside = a["shadow_phi"][:, i], a["shadow_member"][:, i]
    return np.asarray(a["phi"][:, i] - (np.median(S[inside]) + np.median(S[~inside])) / 2)


def watson(a: Given, i: int) -> np.ndarray:
    return np.asarray(a["phi"][:, i] - np.mean(a["shadow_phi"][~a["shadow_member"][:, i], i]))


def ye_p(a: Given, i: int) -> float:
    return -float(a["loss"][i])


def ye_s(a: Given, i: int) -> float:
    own = a["y"] == a["y"][i]
    return _cdf(a["loss"][i], a["shadow_loss"][:, own][~a["shadow_member"][:, own]])


def ye_r(a: Given, i: int) -> float:
    return _cdf(a["loss"][i], a["shadow_loss"][~a["shadow_member"][:, i], i])


def _cdf(l: float, held: np.ndarray) -> float:
    knots = np.concatenate([[0], np.sort(held), [1000]])
    return -float(np.interp(l, knots, np.linspace(0, 1, len(knots))))


def lira(a: Given, i: int) -> np.ndarray:
    return normal_ratio(a["phi"][..., i], a["shadow_phi"][..., i], a["shadow_member"][:, i])


def normal_ratio(phi: np.ndarray, S: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Scores [t] of one record, from phi [t k] and S [m k]."""
    scores: np.ndarray = np.zeros(phi.shape)
    for q in range(S.shape[1]):
        x_in, x_out = S[inside, q], S[~inside, q]
        laws = [norm(np.median(x), np.std(x)) for x in (x_in, x_out)]
        for a in range(len(phi)):
            scores[a, q] = laws[0].logpdf(phi[a, q]) - laws[1].logpdf(phi[a, q])
    return np.asarray(scores.mean(1))


def base(a: Given, i: int) -> np.ndarray:
    return np.asarray(a["log_p"][:, i] - np.log(np.mean(np.exp(a["shadow_log_p"][:, i]))))


def bavaria(a: Given, i: int) -> np.ndarray:
    """Form t, nu0 = 4, kappa0 = 0; the pooled variances are told."""
    inside, laws = a["shadow_member"][:, i], []
    for side, pooled in ((inside, a["pooled_in"]), (~inside, a["pooled_out"])):
        f = a["shadow_phi"][side, i]
        nu = 4 + len(f)
        variance = (4 * pooled + np.sum((f - f.mean()) ** 2)) / nu
        laws.append(t(nu, f.mean(), np.sqrt(variance * (1 + 1 / len(f)))))
    return np.asarray(laws[0].logpdf(a["phi"][:, i]) - laws[1].logpdf(a["phi"][:, i]))


def rmia(a: Given, i: int) -> np.ndarray:
    """gamma 2, trim 0.2, a 0.3; pair by pair."""
    inside = a["shadow_member"][:, i]
    assert inside.sum() == (~inside).sum()  # else some are left out
    px = _trimmed_mean(np.exp(a["shadow_log_p"][:, i]))
    beaten = np.zeros(len(a["log_p"]))
    for z in range(a["log_p_aux"].shape[1]):
        pz = (1.3 * _trimmed_mean(np.exp(a["shadow_log_p_aux"][:, z])) + 0.7) / 2
        beaten += np.exp(a["log_p"][:, i]) / px / (np.exp(a["log_p_aux"][:, z]) / pz) > 2
    return np.asarray(beaten / a["log_p_aux"].shape[1])


def _trimmed_mean(p: np.ndarray) -> float:
    cut = int(0.2 * len(p))
    return float(np.mean(np.sort(p)[cut : len(p) - cut]))


def merlin(a: Given, i: int) -> float:
    rng = np.random.default_rng(i)
    loss = _loss(a, a["x"][i], a["y"][i])
    higher = 0
    for _ in range(100):
        higher += _loss(a, a["x"][i] + 0.3 * rng.standard_normal(a["x"].shape[1]), a["y"][i]) > loss
    return higher / 100


def ml_leaks(a: Given) -> np.ndarray:
    """scikit-learn's MLP on the three largest of a shadow's answers; its records are half members."""
    top, known = (np.sort(p)[:, :-4:-1] for p in (a["p"], a["shadow_p"][0]))
    mean, spread = known.mean(0), known.std(0)
    epochs = {"max_iter": 100, "n_iter_no_change": 101, "tol": 0.0}
    net = MLPClassifier(64, learning_rate_init=0.01, batch_size=100, alpha=1e-6, random_state=0, **epochs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # all epochs are wanted
        net.fit((known - mean) / spread, a["shadow_member"][0])
    return np.asarray(net.predict_proba((top - mean) / spread)[:, 1])


def augmentation(a: Given, i: int) -> float:
    """The share of five versions, the image and its shifts by a pixel, that keep the label."""
    image = np.pad(a["image"][i, 0], 1, "edge")
    kept = 0
    for dy, dx in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)):
        kept += _logits(a, image[1 + dy : 9 + dy, 1 + dx : 9 + dx].ravel()).argmax() == a["y"][i]
    return float(kept / 5)


def augmentation_mlp(a: Given) -> np.ndarray:
    """An MLP a class on the versions kept, 300 steps of Adam on all its pairs; both sides weigh alike."""
    torch.manual_seed(0)
    b, y, member = (torch.from_numpy(a[name]) for name in ("agree", "y", "member"))
    score = torch.zeros(len(y))
    for c in range(10):
        own, inside = b[y == c].float(), member[y == c].float()
        weight = inside / inside.sum() + (1 - inside) / (1 - inside).sum()
        layers = [torch.nn.Linear(*shape) for shape in ((5, 10), (10, 10), (10, 1))]
        net = torch.nn.Sequential(layers[0], torch.nn.LeakyReLU(), layers[1], torch.nn.LeakyReLU(), layers[2])
        optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
        for _ in range(300):
            optimiser.zero_grad()
            logit = net(own).squeeze(1)
            binary_cross_entropy_with_logits(logit, inside, weight, reduction="sum").backward()
            optimiser.step()
        score[y == c] = net(own).squeeze(1).sigmoid().detach()
    return score.numpy()


def noise_robustness(a: Given, i: int) -> float:
    rng = np.random.default_rng(i)
    x, y = a["x"][i], a["y"][i]
    if _logits(a, x).argmax() != y:
        return 0.0
    kept = 0
    for _ in range(2500):
        kept += _logits(a, x + 0.3 * rng.standard_normal(len(x))).argmax() == y
    return float(kept / 2500)


def _loss(a: Given, x: np.ndarray, y: int) -> float:
    z = _logits(a, x)
    return float(np.logaddexp.reduce(z) - z[y])


def _logits(a: Given, x: np.ndarray) -> np.ndarray:
    hidden = np.maximum(a["w1"].astype(float) @ x + a["b1"], 0)
    return np.asarray(a["w2"].astype(float) @ hidden + a["b2"])


def quantile(a: Given) -> np.ndarray:
    """mu and log sigma by one hidden layer of 128: all of 30 epochs over half of aux, the best is kept."""
    torch.manual_seed(0)
    x, x_aux = ((torch.from_numpy(a[k]) - a["x_aux"].mean(0)) / a["x_aux"].std(0) for k in ("x", "x_aux"))
    mean, spread = a["s_aux"].mean(), a["s_aux"].std()
    u, u_aux = (torch.from_numpy((a[k] - mean) / spread).float() for k in ("s", "s_aux"))
    net = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 2))
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)

    def error(rows: torch.Tensor) -> torch.Tensor:
        mu, log_sigma = net(x_aux[rows]).T
        return torch.mean(log_sigma + ((u_aux[rows] - mu) / log_sigma.exp()) ** 2 / 2)

    order = torch.randperm(len(x_aux))
    held, told = order[: len(order) // 5], order[len(order) // 5 :]
    best, kept = np.inf, net.state_dict()
    for _ in range(30):
        for rows in told[torch.randperm(len(told))][: len(x_aux) // 2].split(32):
            optimiser.zero_grad()
            error(rows).backward()
            optimiser.step()
        with torch.no_grad():
            loss = float(error(held))
        if loss < best:
            best, kept = loss, {name: v.clone() for name, v in net.state_dict().items()}
    net.load_state_dict(kept)
    with torch.no_grad():
        mu, log_sigma = net(x).T
    return np.asarray((u - mu) / log_sigma.exp())
