import math
from itertools import combinations

import pytest
import torch
from scipy.linalg import sqrtm

from glasslab.checks import Floored
from glasslab.recon import correlation, feature_distance, gap, judge_acc, nearest_id, psnr, ssim
from glasslab.recon_rows import reference_rows
from glasslab.recon_sets import diversity, frechet
from glasslab.split import stream

MEASURES = [feature_distance, correlation, nearest_id, psnr, ssim]


def faces(n=9, p=14, labels=3, shape=(2, 13, 12), seed=0, dtype=torch.float32):
    """(x, y, private, y_private): every label several times, in no order."""
    g = stream(seed, "faces")
    y, z = torch.arange(n) % labels, torch.arange(p) % labels
    y, z = y[torch.randperm(n, generator=g)], z[torch.randperm(p, generator=g)]
    x, private = (torch.rand(k, *shape, generator=g, dtype=dtype) for k in (n, p))
    return x, y + 4, private, z + 4


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=stream(seed, "rows"), dtype=torch.float64)


# The definitions, one pixel at a time


def textbook_distance(a, b):
    return sum((float(s) - float(t)) ** 2 for s, t in zip(a.flatten(), b.flatten(), strict=True))


def by_label(y, value):
    """Mean of value(i) over a label's inversions."""
    every = sorted(set(y.tolist()))
    found = [[value(i) for i in range(len(y)) if y[i] == label] for label in every]
    return torch.tensor([sum(values) / len(values) for values in found], dtype=torch.float64)


def own(z, label):
    return [j for j in range(len(z)) if z[j] == label]


def textbook_feature_distance(x, y, p, z):
    return by_label(y, lambda i: min(textbook_distance(x[i], p[j]) for j in own(z, y[i])))


def textbook_gap(x, y, train, y_train, held, y_held):
    def value(i):
        near = [textbook_distance(x[i], train[j]) for j in own(y_train, y[i])]
        far = [textbook_distance(x[i], held[j]) for j in own(y_held, y[i])]
        k = min(len(near), len(far))
        means = []
        for side in (far, near):
            least = [min(subset) for subset in combinations(side, k)]
            means.append(sum(least) / len(least))
        return means[0] - means[1]

    return by_label(y, value)


def textbook_correlation(a, b):
    a, b = a.double().flatten().tolist(), b.double().flatten().tolist()
    ma, mb = sum(a) / len(a), sum(b) / len(b)
    cov = sum((s - ma) * (t - mb) for s, t in zip(a, b, strict=True))
    return cov / math.sqrt(sum((s - ma) ** 2 for s in a) * sum((t - mb) ** 2 for t in b))


def textbook_ssim(a, b):
    """Equation 13 of Wang et al. at every place where 11 x 11 fits."""
    c, h, w = a.shape
    side = range(11)
    kernel = [[math.exp(-((i - 5) ** 2 + (j - 5) ** 2) / 4.5) for j in side] for i in side]
    total = sum(map(sum, kernel))
    values = []
    for ch in range(c):
        for top in range(h - 10):
            for left in range(w - 10):
                s = [
                    (kernel[i][j] / total, float(a[ch, top + i, left + j]), float(b[ch, top + i, left + j]))
                    for i in side
                    for j in side
                ]
                ma, mb = sum(k * u for k, u, _ in s), sum(k * v for k, _, v in s)
                va = sum(k * (u - ma) ** 2 for k, u, _ in s)
                vb = sum(k * (v - mb) ** 2 for k, _, v in s)
                cov = sum(k * (u - ma) * (v - mb) for k, u, v in s)
                top_ = (2 * ma * mb + 0.01**2) * (2 * cov + 0.03**2)
                values.append(top_ / ((ma**2 + mb**2 + 0.01**2) * (va + vb + 0.03**2)))
    return sum(values) / len(values)


def test_feature_distance_equals_its_definition():
    x, y, p, z = faces(shape=(7,))
    torch.testing.assert_close(feature_distance(x, y, p, z), textbook_feature_distance(x, y, p, z))


def test_feature_distance_is_squared_and_its_mean_runs_over_inversions():
    """Public code has it without the square, or sums over inversions and divides by the labels."""
    x, y, p, z = faces(n=12, shape=(7,))
    right = feature_distance(x, y, p, z)
    each = torch.tensor([min(textbook_distance(x[i], p[j]) for j in own(z, y[i])) for i in range(12)])
    rooted = by_label(y, lambda i: math.sqrt(each[i]))
    too_large = each.sum().double() / 3  # four inversions a label: four times the figure
    assert not torch.allclose(rooted, right, rtol=0.05)
    assert float(too_large / right.mean()) == pytest.approx(4)


def test_repeating_the_inversions_changes_nothing():
    x, y, p, z = faces(n=6, p=6, shape=(1, 11, 11))
    for measure in (feature_distance, psnr, ssim, correlation, nearest_id):
        args = (x.flatten(1), y, p.flatten(1), z) if measure is feature_distance else (x, y, p, z)
        twice = [torch.cat([t, t]) for t in args[:2]]
        one = y == 5  # of one label alone: the mean over labels stays too
        more = [torch.cat([args[0], args[0][one]]), torch.cat([y, y[one]])]
        for again in (twice, more):
            torch.testing.assert_close(measure(*again, *args[2:]), measure(*args))


@pytest.mark.parametrize(("t", "h"), [(3, 3), (5, 2), (2, 6), (1, 4), (6, 1)])
def test_gap_equals_the_mean_over_all_subsets(t, h):
    x, y, train, y_train = faces(n=6, p=3 * t, shape=(4,))
    _, _, held, y_held = faces(n=6, p=3 * h, shape=(4,), seed=1)
    got = gap(x, y, train, y_train, held, y_held)
    torch.testing.assert_close(got, textbook_gap(x, y, train, y_train, held, y_held))
    assert torch.equal(gap(x, y, held, y_held, train, y_train), -got)  # to the last bit


def test_gap_is_nought_where_both_sides_are_alike_though_one_is_larger():
    """400 worlds; false alarm 6e-5 (4 standard errors). Without equal numbers, the larger side wins."""
    x, y = rows(400, 3), torch.arange(400)
    train, held = rows(400 * 7, 3, seed=1), rows(400 * 3, 3, seed=2)
    y_train, y_held = torch.arange(400).repeat(7), torch.arange(400).repeat(3)
    value = gap(x, y, train, y_train, held, y_held)
    assert abs(value.mean()) < 4 * value.std() / 20
    wrong = feature_distance(x, y, held, y_held) - feature_distance(x, y, train, y_train)
    assert wrong.mean() > 4 * wrong.std() / 20


def test_gap_says_which_side_is_nearer():
    x, y = torch.zeros(2, 3), torch.tensor([0, 1])
    near, far = torch.full((2, 3), 1.0), torch.full((2, 3), 2.0)
    assert gap(x, y, near, y, far, y).tolist() == pytest.approx([9.0, 9.0])  # 12 - 3


def test_judge_acc_is_of_the_k_highest():
    logits = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [3.0, 1.0, 2.0]])
    y = torch.tensor([0, 1, 1])
    assert judge_acc(logits, y).tolist() == [1.0, 0.0]
    assert judge_acc(logits, y, 2).tolist() == [1.0, 0.5]
    assert judge_acc(logits, y, 3).tolist() == [1.0, 1.0]


def test_top_five_is_not_any_of_five_restarts():
    """Five restarts of each of two labels: public code calls a label hit where one of them is."""
    g = stream(0)
    y = torch.arange(2).repeat(5)
    logits = torch.rand(10, 12, generator=g)
    logits[0, 0] = logits[1, 1] = 9.0  # one restart of each is right
    logits[2:].scatter_(1, y[2:, None], -9.0)  # the others have the label last
    any_of_five = torch.stack([(logits.argmax(1) == y)[y == c].any() for c in (0, 1)]).double()
    assert any_of_five.tolist() == [1.0, 1.0]
    assert judge_acc(logits, y, 5).tolist() == [0.2, 0.2]
    assert judge_acc(logits, y, 1).tolist() == [0.2, 0.2]


def test_judge_acc_reads_the_labels_own_column():
    """Labels 7 and 3, in this order: row i is not label i, so score[i, i] is another label's."""
    logits = torch.zeros(2, 9)
    logits[0, 7] = logits[1, 3] = 1.0
    assert judge_acc(logits, torch.tensor([7, 3])).tolist() == [1.0, 1.0]
    logits[1, 3] = -1.0
    assert judge_acc(logits, torch.tensor([7, 3])).tolist() == [0.0, 1.0]  # ascending: 3, then 7


def test_ties_and_nan_are_no_hits():
    y = torch.tensor([0, 1, 2])
    assert judge_acc(torch.zeros(3, 3), y).tolist() == [0.0, 0.0, 0.0]
    assert judge_acc(torch.full((3, 3), torch.nan), y, 2).tolist() == [0.0, 0.0, 0.0]
    x, p = torch.full((3, 1, 4, 4), 0.3), torch.rand(3, 1, 4, 4, generator=stream(0))
    assert nearest_id(x, y, p, y).tolist() == [0.0, 0.0, 0.0]  # an image of one value
    assert correlation(x, y, p, y).tolist() == [0.0, 0.0, 0.0]
    assert nearest_id(p, y, torch.cat([p, p]), torch.cat([y, (y + 1) % 3])).tolist() == [0.0, 0.0, 0.0]
    assert nearest_id(p.fill_(torch.nan), y, torch.rand(3, 1, 4, 4, generator=stream(1)), y).sum() == 0


def test_correlation_and_nearest_id_equal_their_definitions():
    x, y, p, z = faces(n=30, p=9, shape=(1, 2, 3))
    each = [[textbook_correlation(a, b) for b in p] for a in x]

    def mean(i):
        mine = [each[i][j] for j in own(z, y[i])]
        return sum(mine) / len(mine)

    torch.testing.assert_close(correlation(x, y, p, z), by_label(y, mean))
    first = by_label(y, lambda i: float(z[max(range(9), key=each[i].__getitem__)] == y[i]))
    assert torch.equal(nearest_id(x, y, p, z), first)
    assert 0 < first.mean() < 1


def test_correlation_does_not_see_brightness_and_contrast():
    x, y, p, z = faces()
    torch.testing.assert_close(
        correlation(1e-4 * x + 0.4, y, p, z), correlation(x, y, p, z), atol=1e-3, rtol=0
    )
    assert torch.equal(nearest_id(-2 * x, y, x, y), torch.zeros(3).double())
    assert torch.equal(nearest_id(0.5 * x + 7, y, x, y), torch.ones(3).double())


def test_ssim_and_psnr_equal_their_definitions():
    x, y, p, z = faces(n=4, p=6, labels=2)
    x = (x + 3 * p[:4]) / 4
    each = [[textbook_ssim(a, b) for b in p] for a in x]
    best = by_label(y, lambda i: max(each[i][j] for j in own(z, y[i])))
    torch.testing.assert_close(ssim(x, y, p, z), best, rtol=1e-9, atol=1e-9)
    decibels = by_label(
        y, lambda i: max(-10 * math.log10(textbook_distance(x[i], p[j]) / 312) for j in own(z, y[i]))
    )
    torch.testing.assert_close(psnr(x, y, p, z), decibels)


def test_equal_images_are_equal():
    x, y, *_ = faces(n=6, p=1)
    for shape in ((2, 13, 12), (3, 8, 13), (13, 24)):
        same = x.reshape(6, *shape)
        torch.testing.assert_close(ssim(same, y, same, y), torch.ones(3).double(), rtol=0, atol=1e-12)
        assert psnr(same, y, same, y).tolist() == [math.inf] * 3
    many, one = torch.rand(30, 64, generator=stream(0)), torch.zeros(30).long()  # cdist changes at 25 rows
    assert feature_distance(many, one, many, one).tolist() == [0.0]
    assert torch.cdist(many, many).square().diag().max() > 0  # as it would without a word


def test_ssim_on_images_smaller_than_the_window():
    """The window is cut: constants keep their mean, and only the luminance differs."""
    a, b, y = torch.full((1, 1, 8, 8), 0.5), torch.full((1, 1, 8, 8), 0.25), torch.tensor([0])
    luminance = (2 * 0.5 * 0.25 + 1e-4) / (0.5**2 + 0.25**2 + 1e-4)
    torch.testing.assert_close(
        ssim(a, y, b, y), torch.tensor([luminance], dtype=torch.float64), rtol=1e-9, atol=0
    )
    x, _, p, _ = faces(n=3, p=3, shape=(1, 8, 8))
    y = torch.arange(3)
    torch.testing.assert_close(ssim(x, y, p, y), ssim(p, y, x, y))
    torch.testing.assert_close(ssim(x.flip(3), y, p.flip(3), y), ssim(x, y, p, y))
    assert (ssim(x, y, p, y) < 0.5).all()


def test_ssim_equals_scikit_image():
    metrics = pytest.importorskip("skimage.metrics", reason="scikit-image is not installed")
    x, p = (torch.rand(40, 40, generator=stream(k), dtype=torch.float64) for k in (0, 1))
    theirs = metrics.structural_similarity(
        x.numpy(), p.numpy(), gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0
    )
    y = torch.tensor([0])
    assert float(ssim(x[None], y, p[None], y)) == pytest.approx(theirs, abs=1e-6)


def test_the_order_of_records_does_not_matter_and_arguments_are_left_alone():
    x, y, p, z = faces()
    held = [t.clone() for t in (x, y, p, z)]
    i, j = torch.randperm(9, generator=stream(1)), torch.randperm(14, generator=stream(2))
    for measure in MEASURES:
        a, b = (x.flatten(1), p.flatten(1)) if measure is feature_distance else (x, p)
        value = measure(a, y, b, z)
        assert value.shape == (3,)
        assert value.dtype == torch.float64
        torch.testing.assert_close(measure(a[i], y[i], b[j], z[j]), value)
    assert all(torch.equal(a, b) for a, b in zip(held, (x, y, p, z), strict=True))


def test_measures_refuse_what_they_cannot_do():
    x, y, p, z = faces()
    for measure in MEASURES:
        a, b = (x.flatten(1), p.flatten(1)) if measure is feature_distance else (x, p)
        with pytest.raises(ValueError, match=r"^y_\w+ must hold every label of y, got no image of label 5$"):
            measure(a, y, b[z != 5], z[z != 5])
        with pytest.raises(ValueError, match="y must hold one inversion or more, got none"):
            measure(a[:0], y[:0], b, z)
    a, b = x.flatten(1), p.flatten(1)
    with pytest.raises(ValueError, match="y_held must hold every label of y, got no image of label 4"):
        gap(a, y, b, z, b[z != 4], z[z != 4])
    with pytest.raises(ValueError, match=r"x must hold images .* got shape \(9, 312\)"):
        ssim(a, y, b, z)
    for k in (0, 4):
        with pytest.raises(ValueError, match=rf"k must lie in 1 .. 3, the classes, got {k}"):
            judge_acc(torch.zeros(2, 3), torch.tensor([0, 1]), k)
    with pytest.raises(ValueError, match="y must lie in 0 .. 2, got labels from 0 to 3"):
        judge_acc(torch.zeros(2, 3), torch.tensor([0, 3]))


# Many inversions together


def textbook_diversity(a, p, k):
    n = range(len(a))
    pairs = [textbook_distance(a[i], a[j]) for i in n for j in n if i != j]

    def reach(points, i):
        return sorted(textbook_distance(points[i], points[j]) for j in range(len(points)) if j != i)[k - 1]

    recall = [any(textbook_distance(a[i], q) <= reach(a, i) for i in n) for q in p]
    coverage = [any(textbook_distance(a[i], q) <= reach(p, j) for i in n) for j, q in enumerate(p)]
    return sum(pairs) / len(pairs), sum(recall) / len(p), sum(coverage) / len(p)


@pytest.mark.parametrize("k", [1, 3])
def test_diversity_equals_its_definitions(k):
    a, p = rows(24, 3), 1.5 * rows(34, 3, seed=1) + 0.5
    y, z = torch.arange(24) % 3, torch.arange(34) % 3
    got = diversity(a, y, p, z, k=k)
    want = torch.tensor([textbook_diversity(a[y == c], p[z == c], k) for c in range(3)]).double().T
    torch.testing.assert_close(torch.stack(got[:3]), want, rtol=1e-6, atol=1e-6)
    assert got.reason is None
    assert (got.recall != got.coverage).any()


def test_collapsed_inversions_have_no_diversity_and_those_of_the_private_images_have_all():
    p, z = rows(12, 3), torch.arange(12) % 2
    assert diversity(p[:2].repeat(6, 1), z, p, z).pairwise.tolist() == [0.0, 0.0]
    full = diversity(p, z, p, z)
    assert full.recall.tolist() == full.coverage.tolist() == [1.0, 1.0]
    far = diversity(p + 100, z, p, z)
    assert far.recall.tolist() == far.coverage.tolist() == [0.0, 0.0]


def test_labels_with_too_few_images_are_named_not_skipped():
    y, z = torch.tensor([0, 1, 1, 2, 2, 2, 2]), torch.tensor([0] * 4 + [1] * 4 + [2] * 3)
    got = diversity(rows(7, 2), y, rows(11, 2, seed=1), z)
    assert got.pairwise.isnan().tolist() == [True, False, False]
    assert got.recall.isnan().tolist() == [True, True, False]
    assert got.coverage.isnan().tolist() == [False, False, True]
    assert got.reason == (
        "all three need 4 inversions and 4 private images a label: "
        "label 0 has 1 and 4; label 1 has 2 and 4; label 2 has 4 and 3"
    )
    with pytest.raises(ValueError, match="k must be 1 or more, got 0"):
        diversity(rows(2, 2), torch.tensor([0, 1]), rows(2, 2), torch.tensor([0, 1]), k=0)


def test_frechet_of_a_set_with_itself_and_with_its_shift():
    a, d = rows(50, 6) @ rows(6, 6, seed=1), rows(6, seed=2)
    assert frechet(a, a).value == pytest.approx(0, abs=1e-6)
    assert frechet(a, a + d).value == pytest.approx(float(d.square().sum()), rel=1e-7)
    assert frechet((a * 3).float(), a.float()).value > 1


def test_frechet_equals_the_general_matrix_root():
    a, b = rows(30, 5) @ rows(5, 5, seed=1), rows(20, 5, seed=2) @ rows(5, 5, seed=3) + 1
    for s in (None, 0.3):
        cov = [torch.cov(t.T).numpy() for t in (a, b)]
        if s:
            eye = torch.eye(5).double().numpy()
            cov = [(1 - s) * c + s * c.trace() / 5 * eye for c in cov]
        mean = float((a.mean(0) - b.mean(0)).square().sum())
        want = mean + cov[0].trace() + cov[1].trace() - 2 * sqrtm(cov[0] @ cov[1]).real.trace()
        assert frechet(a, b, shrinkage=s).value == pytest.approx(want, rel=1e-8)
        assert frechet(b, a, shrinkage=s).value == pytest.approx(want, rel=1e-8)


def test_frechet_is_nothing_with_a_reason_where_a_covariance_is_not_determined():
    """Never 0, which would be the best value."""
    a, b = rows(6, 6), rows(50, 6, seed=1)
    for pair in ((a, b), (b, a)):
        assert frechet(*pair) == (None, "6 rows of 6 features: a covariance needs 7 or more")
        assert frechet(*pair, shrinkage=0.1).value > 0
    assert frechet(rows(7, 6), b).value is not None
    assert frechet(a[:1], b, shrinkage=0.5).reason == "1 rows of 6 features: a covariance needs 2 or more"
    assert frechet(b.clone().fill_(torch.nan), b) == (None, "features are NaN or infinite")
    for s in (0.0, 1.5):
        with pytest.raises(ValueError, match=rf"shrinkage must lie in \(0, 1\], got {s}"):
            frechet(b, b, shrinkage=s)


# Reference rows


def test_reference_rows():
    x, y, p, z = faces()
    step, aux = x / 2, p[:5] * 0.9
    held = [t.clone() for t in (x, y, step, p, z, aux)]
    got = reference_rows(x, y, step, p, z, aux, generator=stream(0))
    assert list(got) == ["class mean", "one step", "random private image", "other class", "public mean"]
    assert [row.reference for row in got.values()] == [True, False, True, False, False]
    for i, label in enumerate(y):
        mine = p[z == label]
        torch.testing.assert_close(got["class mean"].x[i], sum(mine) / len(mine))
        assert any(torch.equal(got["random private image"].x[i], image) for image in mine)
        torch.testing.assert_close(got["public mean"].x[i], sum(aux) / 5)
    assert torch.equal(got["one step"].x, step)
    assert torch.equal(got["other class"].x, x)
    assert all(torch.equal(got[name].y, y) for name in got if name != "other class")
    assert all(torch.equal(a, b) for a, b in zip(held, (x, y, step, p, z, aux), strict=True))
    again = reference_rows(x, y, step, p, z, aux, generator=stream(0))
    assert torch.equal(again["random private image"].x, got["random private image"].x)


def test_another_class_is_another_class_for_every_inversion():
    """Rolling the labels themselves by one keeps most of them where a label has several inversions."""
    y = torch.tensor([2, 2, 2, 5, 5, 9])
    x, p = rows(6, 3), rows(6, 3, seed=1)
    other = reference_rows(x, y, x, p, y, p, generator=stream(0))["other class"].y
    assert other.tolist() == [5, 5, 5, 9, 9, 2]
    assert (y.roll(1) == y).any()


def test_random_private_images_are_drawn_evenly():
    """3,000 draws of 3; false alarm below 2e-4 (4 standard errors)."""
    y, z, p = torch.zeros(3000).long(), torch.zeros(3).long(), torch.arange(3.0)[:, None]
    with pytest.warns(Floored, match="1 label has no other class"):
        got = reference_rows(torch.zeros(3000, 1), y, torch.zeros(3000, 1), p, z, p, generator=stream(0))
    assert "other class" not in got
    counts = torch.bincount(got["random private image"].x[:, 0].long(), minlength=3)
    assert (counts - 1000).abs().max() < 4 * math.sqrt(3000 * 2 / 9)


def test_reference_rows_refuse_what_they_cannot_do():
    x, y, p, z = faces()
    with pytest.raises(ValueError, match="y_private must hold every label of y, got no image of label 4"):
        reference_rows(x, y, x, p[z != 4], z[z != 4], p, generator=stream(0))
    with pytest.raises(ValueError, match="aux must hold one record or more, got none"):
        reference_rows(x, y, x, p, z, p[:0], generator=stream(0))
