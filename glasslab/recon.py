"""How near an inversion comes to its label: one value a label, in ascending order of labels (`y.unique()`).

x [n *d] are inversions in [0, 1] with labels y, several a label allowed; a label's value is the mean over its
inversions, the table's figure the mean over labels. Features are those of a classifier other than the target.
feature_distance: min_i ||e(x) - e(p_i)||^2 over the label's private images p_i, squared and without root.
gap: distance to the nearest held-out image minus distance to the nearest training image, > 0 = nearer to what
the target learned. ssim: Wang et al. 2004, equation 13. nearest_id: the nearest by normalised correlation.
"""

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor
from torch.nn.functional import conv2d

WINDOW, SIGMA = 11, 1.5
C1, C2 = 0.01**2, 0.03**2  # (K L)^2 with the data range L = 1
ROUNDING = 1e-12  # of an image's norm, and of a correlation


def feature_distance(
    features: Float[Tensor, "n k"],
    y: Int[Tensor, "n"],
    private: Float[Tensor, "p k"],
    y_private: Int[Tensor, "p"],
) -> Float64[Tensor, "l"]:
    """Squared distance to the nearest private image of the label, in units of the features squared.

    Repeating a label's inversions changes nothing. Raises ValueError for a label without a private image.
    """
    near = [squared(features[i], private[j]).amin(1) for i, j in _labels(y, y_private, "y_private")]
    return _means(near, features)


def gap(
    features: Float[Tensor, "n k"],
    y: Int[Tensor, "n"],
    train: Float[Tensor, "t k"],
    y_train: Int[Tensor, "t"],
    held: Float[Tensor, "h k"],
    y_held: Int[Tensor, "h"],
) -> Float64[Tensor, "l"]:
    """Squared distance to the nearest held-out image minus that to the nearest training image of the label.

    Of more images one lies nearer by chance, so the larger side is cut to the size of the smaller one, and
    the mean over all such subsets is taken. Swapping the sides turns the sign, to the last bit.
    Raises ValueError for a label without a training or a held-out image.
    """
    out = []
    sides = zip(_labels(y, y_train, "y_train"), _labels(y, y_held, "y_held"), strict=True)
    for (i, seen), (_, unseen) in sides:
        k = min(len(seen), len(unseen))
        far, near = (_least_of(squared(features[i], s), k) for s in (held[unseen], train[seen]))
        out.append(far - near)
    return _means(out, features)


def judge_acc(logits: Float[Tensor, "n c"], y: Int[Tensor, "n"], k: int = 1) -> Float64[Tensor, "l"]:
    """Share of a label's inversions whose label is among the judge's k highest; ties and NaN count against.

    Raises ValueError unless 1 <= k <= c, and for a label that the logits do not have.
    """
    c = logits.shape[1]
    if not 1 <= k <= c:
        raise ValueError(f"k must lie in 1 .. {c}, the classes, got {k}")
    if len(y) and not 0 <= int(y.min()) <= int(y.max()) < c:
        raise ValueError(f"y must lie in 0 .. {c - 1}, got labels from {int(y.min())} to {int(y.max())}")
    lower = (logits < logits.gather(1, y.long()[:, None])).sum(1)
    return _per_label((lower >= c - k).double(), y)


def correlation(
    x: Float[Tensor, "n *d"],
    y: Int[Tensor, "n"],
    unseen: Float[Tensor, "u *d"],
    y_unseen: Int[Tensor, "u"],
) -> Float64[Tensor, "l"]:
    """Mean normalised correlation with the label's unseen images, -1 to 1; of an image of one value 0.

    Raises ValueError for a label without an unseen image.
    """
    a, b = _unit(x), _unit(unseen)
    return _means([(a[i] @ b[j].T).mean(1) for i, j in _labels(y, y_unseen, "y_unseen")], x)


def nearest_id(
    x: Float[Tensor, "n *d"],
    y: Int[Tensor, "n"],
    unseen: Float[Tensor, "u *d"],
    y_unseen: Int[Tensor, "u"],
) -> Float64[Tensor, "l"]:
    """Share of a label's inversions that correlate most with one of its images, of all unseen ones.

    A tie with another label's image counts against: an image of one value identifies nobody.
    Raises ValueError for a label without an unseen image.
    """
    _labels(y, y_unseen, "y_unseen")
    near = _unit(x) @ _unit(unseen).T
    own = y[:, None] == y_unseen[None]
    best, other = (near.where(side, -torch.inf).amax(1) for side in (own, ~own))
    return _per_label((best > other + ROUNDING).double(), y)


def psnr(
    x: Float[Tensor, "n *d"],
    y: Int[Tensor, "n"],
    private: Float[Tensor, "p *d"],
    y_private: Int[Tensor, "p"],
) -> Float64[Tensor, "l"]:
    """-10 log10 of the mean squared error in decibels, best over the label's private images; equal: inf.

    Raises ValueError for a label without a private image.
    """
    a, b, out = x.flatten(1), private.flatten(1), []
    for i, j in _labels(y, y_private, "y_private"):
        out.append(-10 * (squared(a[i], b[j]).amin(1) / a.shape[1]).log10())
    return _means(out, x)


def ssim(
    x: Float[Tensor, "n *d"],
    y: Int[Tensor, "n"],
    private: Float[Tensor, "p *d"],
    y_private: Int[Tensor, "p"],
) -> Float64[Tensor, "l"]:
    """Structural similarity, at most 1, best over the label's private images; channels are averaged.

    A Gaussian window of 11 x 11 (sigma 1.5) at every place where it fits. On an image smaller than it: at
    every pixel, cut at the border and weighted anew. Raises ValueError on tables, and for a label without a
    private image.
    """
    if x.ndim not in (3, 4):
        raise ValueError(f"x must hold images [n, c, h, w] or [n, h, w], got shape {tuple(x.shape)}")
    own = _labels(y, y_private, "y_private")
    a, b = (t.double().reshape(len(t), -1, *t.shape[-2:]) for t in (x, private))
    near = [torch.stack([_similar(one, b[j]).amax() for one in a[i]]) for i, j in own]
    return _means(near, x)


def squared(a: Float[Tensor, "n k"], b: Float[Tensor, "m k"]) -> Float64[Tensor, "n m"]:
    """||a_i - b_j||^2, exactly 0 for equal rows."""
    exact = "donot_use_mm_for_euclid_dist"  # products of matrices leave 1e-7 between equal rows
    return torch.cdist(a.double(), b.double(), compute_mode=exact).square()


def _least_of(d: Float64[Tensor, "n m"], k: int) -> Float64[Tensor, "n"]:
    """Mean over all k-subsets of the m columns of the least of them: sum_j C(m-j, k-1) / C(m, k) d_(j)."""
    m = d.shape[1]
    j = torch.arange(1, m, dtype=torch.float64)
    ratio = ((m - j - k + 1) / (m - j)).clamp(min=0)
    weight = torch.cat([torch.ones(1, dtype=torch.float64), ratio.cumprod(0)]) * k / m
    return (d.sort(1).values * weight.to(d.device)).sum(1)


def _similar(a: Float64[Tensor, "c h w"], b: Float64[Tensor, "p c h w"]) -> Float64[Tensor, "p"]:
    """SSIM of one image with each of p."""
    a = a.expand_as(b)
    mean_a, mean_b, aa, bb, ab = (_windows(t) for t in (a, b, a * a, b * b, a * b))
    luminance = (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
    spread = (aa - mean_a**2) + (bb - mean_b**2)
    return (luminance * (2 * (ab - mean_a * mean_b) + C2) / (spread + C2)).mean((1, 2, 3))


def _windows(t: Float64[Tensor, "p c h w"]) -> Float64[Tensor, "p c i j"]:
    """Mean under the Gaussian window around each place."""
    place = torch.arange(WINDOW, dtype=torch.float64, device=t.device) - WINDOW // 2
    line = (-(place**2) / (2 * SIGMA**2)).exp()
    line, small = line / line.sum(), min(t.shape[2:]) < WINDOW

    def along(v: Tensor, shape: tuple[int, int]) -> Tensor:
        return conv2d(v, line.reshape(1, 1, *shape), padding=[s // 2 for s in shape] if small else 0)

    def both(v: Tensor) -> Tensor:
        return along(along(v, (WINDOW, 1)), (1, WINDOW))

    mean = both(t.flatten(0, 1)[:, None])
    if small:
        mean = mean / both(t.new_ones(1, 1, *t.shape[2:]))
    return mean.reshape(*t.shape[:2], *mean.shape[2:])


def _unit(x: Float[Tensor, "n *d"]) -> Float64[Tensor, "n k"]:
    """Less its mean, of norm 1; an image of one value becomes 0."""
    flat = x.double().flatten(1)
    centred = flat - flat.mean(1, keepdim=True)
    norm = centred.norm(dim=1, keepdim=True)
    return torch.where(norm <= ROUNDING * flat.norm(dim=1, keepdim=True), 0.0, centred / norm)


def _labels(
    y: Int[Tensor, "n"], y_others: Int[Tensor, "p"], name: str
) -> list[tuple[Bool[Tensor, "n"], Int[Tensor, "q"]]]:
    """For each label, ascending: which inversions are its own, and the ids of its images among the others."""
    if not len(y):
        raise ValueError("y must hold one inversion or more, got none")
    pairs = [(int(label), (y_others == label).nonzero()[:, 0]) for label in y.unique()]
    for label, rows in pairs:
        if not len(rows):
            raise ValueError(f"{name} must hold every label of y, got no image of label {label}")
    return [(y == label, rows) for label, rows in pairs]


def _means(values: list[Float64[Tensor, "_"]], like: Tensor) -> Float64[Tensor, "l"]:
    return torch.stack([v.mean() for v in values]).to(like.device)


def _per_label(value: Float64[Tensor, "n"], y: Int[Tensor, "n"]) -> Float64[Tensor, "l"]:
    return torch.stack([value[y == label].mean() for label in y.unique()])
