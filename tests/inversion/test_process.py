import inspect
import math
from dataclasses import fields

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from glasslab.nets import Dae
from glasslab.split import stream
from inversion import process as module
from inversion.process import decoded, denoise, encoded, identity, sharpen, through
from inversion.result import Inversion


def images(*shape, seed=0, noise=0.1, dtype=torch.float64):
    """Noise over a step from dark to bright."""
    g = stream(seed, "process")
    x = torch.full(shape, 0.3, dtype=dtype)
    x[..., shape[-1] // 2 :] = 0.7
    return x + noise * torch.randn(*shape, generator=g, dtype=dtype)


def dae(shape=(1, 12, 10), dtype=torch.float32, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Dae(shape, (9, 6), 3).to(dtype).eval()


def result(x):
    c = len(x)
    one = torch.ones(c, dtype=torch.float64)
    return Inversion(
        x, torch.arange(c), one, one / 2, torch.ones(c).int(), torch.zeros(c).int(), ("stall",) * c
    )


# Non-local means as one reads it: pixel by pixel, float64


def textbook(x, h=0.1, patch=7, window=21, *, root=False, inside=False, total=False):
    """Of one image [ch, h, w]. `root`, `inside` and `total` are mistakes (below)."""
    reach, half = window // 2, patch // 2
    edge = reach + half
    wide = np.pad(x.numpy(), ((0, 0), (edge, edge), (edge, edge)), mode="reflect")
    out = np.empty_like(x.numpy())
    rows, columns = x.shape[-2:]
    for i in range(rows):
        for j in range(columns):
            top, weights = 0.0, 0.0
            own = wide[:, i + reach : i + reach + patch, j + reach : j + reach + patch]
            for s in range(-reach, reach + 1):
                for t in range(-reach, reach + 1):
                    if inside and not (0 <= i + s < rows and 0 <= j + t < columns):
                        continue
                    a, b = i + s + reach, j + t + reach
                    square = (own - wide[:, a : a + patch, b : b + patch]) ** 2
                    d = square.sum() if total else square.mean()
                    w = math.exp(-(math.sqrt(d) / h if root else d / h**2))
                    top, weights = top + w * wide[:, a + half, b + half], weights + w
            out[:, i, j] = top / weights
    return torch.from_numpy(out)


@pytest.mark.parametrize(
    ("shape", "h", "patch", "window"),
    [
        ((1, 5, 4), 0.1, 7, 21),  # the margin is wider than the image
        ((1, 7, 11), 0.2, 3, 5),
        ((3, 6, 7), 0.1, 3, 7),
        ((1, 5, 6), 0.1, 1, 3),
        ((1, 4, 4), 0.1, 3, 1),
        ((1, 1, 6), 0.1, 3, 5),
    ],
)
def test_denoise_is_that_of_the_textbook(shape, h, patch, window):
    x = images(1 if window > 9 else 2, *shape)
    want = torch.stack([textbook(one, h, patch, window) for one in x])
    torch.testing.assert_close(denoise(x, h=h, patch=patch, window=window), want, rtol=0, atol=1e-12)


def test_a_flat_batch_and_one_of_channels_are_the_same_grey_images():
    x = images(3, 9, 8)
    assert torch.equal(denoise(x)[:, None], denoise(x[:, None]))
    assert torch.equal(sharpen(x)[:, None], sharpen(x[:, None]))


def test_the_textbook_tells_mistakes_apart():
    """The root of the distance, a window that ends with the image, a sum for a mean, other sizes."""
    x = images(1, 9, 8)
    right = denoise(x[None], patch=3, window=5)[0]
    for mistake in ("root", "inside", "total"):
        wrong = textbook(x, patch=3, window=5, **{mistake: True})
        assert (right - wrong).abs().max() > 1e-3
    assert (right - textbook(x, patch=5, window=5)).abs().max() > 1e-3
    assert (right - textbook(x, patch=3, window=3)).abs().max() > 1e-3


def test_defaults_are_patches_of_7_in_windows_of_21():
    x = images(1, 1, 24, 25)
    assert torch.equal(denoise(x), denoise(x, h=0.1, patch=7, window=21))
    assert torch.equal(sharpen(x), sharpen(x, amount=1.5, sigma=2.0))
    given = {f.name: f.default for f in fields(through) if f.name != "dae"}
    own = {p.name: p.default for f in (denoise, sharpen) for p in inspect.signature(f).parameters.values()}
    assert given == {name: value for name, value in own.items() if name != "x"}


def test_denoise_keeps_constants():
    for value in (0.0, 0.37, 1.0):
        for x in (torch.full((1, 1, 64, 64), value), torch.full((1, 5, 3), value)):
            torch.testing.assert_close(denoise(x), x, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "turn", [lambda x: x.flip(-1), lambda x: x.flip(-2), lambda x: x.mT, lambda x: x.rot90(1, (-2, -1))]
)
def test_denoise_and_sharpen_commute_with_flips(turn):
    for dtype, near in ((torch.float32, 1e-5), (torch.float64, 1e-13)):
        x = images(2, 1, 13, 10, dtype=dtype)
        for f in (denoise, sharpen):
            torch.testing.assert_close(f(turn(x)), turn(f(x)), rtol=0, atol=near)


def test_denoise_takes_noise_away_and_leaves_the_step():
    clean, x = images(4, 1, 32, 32, noise=0.0), images(4, 1, 32, 32, noise=0.05)
    out = denoise(x)
    assert (out - clean).square().mean() < 0.2 * (x - clean).square().mean()
    assert (out[..., 17:].mean() - out[..., :15].mean()).item() == pytest.approx(0.4, abs=0.02)
    torch.testing.assert_close(denoise(x, h=1e-4), x)  # no patch is like another
    assert x.amin() <= out.amin() <= out.amax() <= x.amax()


def test_the_order_of_the_shifts_has_each_pair_once():
    held = module._shifts(10)
    assert len(held) == 220
    both = {*held, *((-a, -b) for a, b in held)}
    assert len(both) == 440
    assert (0, 0) not in both


@pytest.mark.parametrize("k", [1, 2, 3, 5, 6, 7, 9])
def test_sums_of_neighbours(k):
    x = torch.rand(2, 1, 12, 11, dtype=torch.float64, generator=stream(0))
    torch.testing.assert_close(module._sums(x, k, -1), x.unfold(-1, k, 1).sum(-1))
    torch.testing.assert_close(module._sums(x, k, -2), x.unfold(-2, k, 1).sum(-1))


@pytest.mark.parametrize("margin", [0, 2, 4, 11])
def test_margins_are_those_of_numpy(margin):
    x = images(2, 5, 3)
    edge = ((0, 0), (margin, margin), (margin, margin))
    once = torch.from_numpy(np.pad(x.numpy(), edge, mode="reflect"))
    twice = torch.from_numpy(np.pad(x.numpy(), edge, mode="symmetric"))
    assert torch.equal(module._mirrored(x, margin), once)
    assert torch.equal(module._mirrored(x, margin, twice=True), twice)


@pytest.mark.parametrize("sigma", [0.5, 2.0, 3.3])
def test_sharpen_is_that_of_scipy(sigma):
    x = images(2, 3, 11, 14, noise=0.3)
    smooth = np.stack([[gaussian_filter(c.numpy(), sigma, mode="reflect") for c in one] for one in x])
    plain = x + 1.5 * (x - torch.from_numpy(smooth))
    assert (plain < 0).any()  # so that the clamp shows
    assert (plain > 1).any()
    torch.testing.assert_close(sharpen(x, sigma=sigma), plain.clamp(0, 1), rtol=0, atol=1e-12)
    torch.testing.assert_close(sharpen(x, sigma=sigma, amount=0.0), x.clamp(0, 1))


def test_sharpen_of_a_constant_is_that_constant():
    for value in (0.0, 0.37, 1.0):
        x = torch.full((2, 1, 20, 6), value)
        torch.testing.assert_close(sharpen(x), x, rtol=0, atol=1e-6)


@pytest.mark.parametrize("f", [denoise, sharpen])
def test_each_image_is_treated_alone(f, monkeypatch):
    x = images(5, 1, 12, 11, dtype=torch.float32)
    whole = f(x)
    assert torch.equal(torch.cat([f(one[None]) for one in x]), whole)
    monkeypatch.setattr(module, "FEW", 3)
    assert torch.equal(f(x), whole)
    assert torch.equal(f(x.flip(0)), whole.flip(0))
    assert f(x[:0]).shape == (0, 1, 12, 11)
    x[2, 0, 3, 3] = torch.nan
    assert torch.equal(f(x)[[0, 1, 3, 4]], whole[[0, 1, 3, 4]])


@pytest.mark.parametrize("f", [denoise, sharpen, identity])
def test_the_argument_is_left_alone(f):
    x = images(2, 1, 9, 9, dtype=torch.float32).requires_grad_()
    held, threads = x.detach().clone(), torch.get_num_threads()
    out = f(x)
    assert out.shape == x.shape
    assert out.dtype == x.dtype
    assert torch.equal(x.detach(), held)
    assert x.grad is None
    assert out.requires_grad == (f is identity)
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()


# scikit-image


def fast_mode(x, h):
    """scikit-image's fast mode as its source reads, for one grey image.

    Patches are uniform and the margin mirrors the image, as here. But of a patch's 7 x 7 squares it adds
    6 x 6, dividing by 49 all the same, and weights below exp(-5) are 0.
    """
    edge, (rows, columns) = 14, x.shape
    wide = torch.from_numpy(np.pad(x.numpy(), edge, mode="reflect"))
    top, weights = torch.zeros_like(x), torch.zeros_like(x)
    for s in range(-10, 11):
        for t in range(-10, 11):
            square = (wide - wide.roll((-s, -t), (0, 1))).square()
            line = sum(square.roll(-a, 0) for a in range(-2, 4))
            d = sum(line.roll(-b, 1) for b in range(-2, 4))[edge : edge + rows, edge : edge + columns] / 49
            w = torch.where(d > 5 * h**2, 0.0, (-d / h**2).exp())
            top = top + w * wide[edge + s : edge + s + rows, edge + t : edge + t + columns]
            weights = weights + w
    return top / weights


def near(ours, theirs, x):
    """A tenth of what denoising does is what the departures of `fast_mode` may change."""
    assert (ours - theirs).abs().mean() < 0.1 * (ours - x).abs().mean()
    assert (ours - theirs).abs().max() < 0.1


def test_denoise_equals_that_of_scikit_image():
    restoration = pytest.importorskip("skimage.restoration")
    x = images(1, 26, 24)[0]
    theirs = restoration.denoise_nl_means(x.numpy(), patch_size=7, patch_distance=10, h=0.1, fast_mode=True)
    torch.testing.assert_close(torch.from_numpy(theirs), fast_mode(x, 0.1), rtol=0, atol=5e-3)
    near(denoise(x[None])[0], torch.from_numpy(theirs), x)


def test_denoise_is_near_the_fast_mode_of_scikit_image():
    """Read off its source, and so without it."""
    x = images(1, 26, 24)[0]
    ours = denoise(x[None])[0]
    near(ours, fast_mode(x, 0.1), x)
    for h in (0.07, 0.14):  # another h is farther away
        assert (ours - fast_mode(x, h)).abs().mean() > 2 * (ours - fast_mode(x, 0.1)).abs().mean()


def test_sharpen_equals_that_of_scikit_image():
    filters = pytest.importorskip("skimage.filters")
    x = images(1, 40, 33)
    theirs = filters.unsharp_mask(x[0].clamp(0, 1).numpy(), radius=2, amount=1.5)
    torch.testing.assert_close(sharpen(x.clamp(0, 1))[0], torch.from_numpy(theirs), rtol=0, atol=1e-6)


# Codes


def test_through_decodes_denoises_sharpens_and_encodes():
    net = dae(dtype=torch.float64)
    h = 4 * torch.rand(5, 9, generator=stream(1), dtype=torch.float64)
    x = sharpen(denoise(net.decode(h), h=0.3), amount=0.5)
    got = through(net, h=0.3, amount=0.5)(h)
    assert torch.equal(got, net.encode(x))
    assert got.shape == h.shape
    assert not got.requires_grad
    other = net.encode(denoise(sharpen(net.decode(h), amount=0.5), h=0.3))  # the order shows
    assert (got - other).abs().max() > 1e-6
    assert (got - through(net)(h)).abs().max() > 1e-6


def test_a_process_is_named_by_its_settings():
    net = dae()
    assert repr(through(net)) == "through(h=0.1, patch=7, window=21, amount=1.5, sigma=2.0)"
    assert repr(through(net)) == repr(through(dae(seed=1)))
    assert through(net) == through(net) != through(net, h=0.2)
    with pytest.raises(AttributeError):
        through(net).h = 0.5


def test_codes_and_images():
    net = dae()
    x = torch.rand(4, 1, 12, 10, generator=stream(0))
    h = encoded(net, x)
    assert h.shape == (4, 9)
    assert torch.equal(h, net.encode(x))
    assert encoded(net, net.decode(h)).shape == h.shape
    black = encoded(net, torch.zeros(1, 12, 10))
    torch.testing.assert_close(black, net.encode[1].bias.sigmoid())
    assert black.abs().min() > 0.1  # a black image is not the start h = 0
    assert not encoded(net, x).requires_grad
    held = result(h)
    found = decoded(net, held)
    assert torch.equal(found.x, net.decode(h))
    assert torch.equal(held.x, h)
    for f in fields(Inversion):
        if f.name != "x":
            assert getattr(found, f.name) is getattr(held, f.name)


def test_the_net_is_left_alone():
    net, h = dae(), torch.rand(2, 9, generator=stream(0))
    net.above[0].weight.requires_grad_(False)
    held = {name: t.clone() for name, t in net.state_dict().items()}
    flags = [p.requires_grad for p in net.parameters()]
    through(net)(h)
    decoded(net, result(h))
    encoded(net, torch.rand(1, 1, 12, 10))
    assert all(torch.equal(t, held[name]) for name, t in net.state_dict().items())
    assert [p.requires_grad for p in net.parameters()] == flags
    assert all(p.grad is None for p in net.parameters())
    assert not net.training


def test_refuses_what_it_cannot_do():
    x, net = torch.rand(2, 1, 12, 10), dae()
    for f in (denoise, sharpen):
        with pytest.raises(ValueError, match=r"x must be images .* got shape \(2, 10\)"):
            f(x[:, 0, 0])
    for settings, match in (
        ({"h": 0.0}, "h must be above 0, got 0.0"),
        ({"h": math.nan}, "h must be above 0, got nan"),
        ({"patch": 6}, "patch must be odd, 1 or more pixels, got 6"),
        ({"window": -1}, "window must be odd, 1 or more pixels, got -1"),
    ):
        with pytest.raises(ValueError, match=match):
            denoise(x, **settings)
    with pytest.raises(ValueError, match="sigma must be above 0, got 0"):
        sharpen(x, sigma=0.0)
    with pytest.raises(ValueError, match=r"dae must take images, got records of shape \(7,\)"):
        through(dae((7,)))
    with pytest.raises(
        ValueError, match=r"start must hold records of shape \(1, 12, 10\), got shape \(2, 9\)"
    ):
        encoded(net, torch.rand(2, 9))
    with pytest.raises(ValueError, match=r"found must hold codes of length 9, got shape \(2, 1, 12, 10\)"):
        decoded(net, result(x))
    ready = through(net)
    net.train()
    for call in (
        lambda: through(net),
        lambda: ready(torch.rand(2, 9)),
        lambda: encoded(net, x),
        lambda: decoded(net, result(torch.rand(2, 9))),
    ):
        with pytest.raises(ValueError, match="dae must be in eval mode, got training mode"):
            call()
    net.eval().above.train()
    with pytest.raises(ValueError, match="dae must be in eval mode"):
        ready(torch.rand(2, 9))
