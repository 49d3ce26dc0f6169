import math

import pytest
import torch

from glasslab.split import stream
from inversion.penalty import blur, blurred, box, l2, none, total_variation

KERNEL = torch.tensor([[0.0, 0.1, 0.3], [0.05, 0.2, 0.0], [0.1, 0.15, 0.1]], dtype=torch.float64)


def images(*shape, seed=0):
    """Some pixels lie outside [0, 1]."""
    return 2 * torch.rand(*shape, generator=stream(seed, "penalty"), dtype=torch.float64) - 0.5


def terms(shape):
    return {
        "none": none,
        "l2": l2(images(*shape, seed=1), 0.7),
        "total_variation": total_variation(0.3),
        "box": box(1.3),
        "blurred": blurred(images(*shape, seed=2), KERNEL, 0.9),
    }


NAMES = list(terms((1, 3, 3)))
every = pytest.mark.parametrize("name", NAMES)


# The formulas, one pixel at a time, of one image [ch, h, w]


def textbook(name, x, shape):
    to, x0 = images(*shape, seed=1).reshape(x.shape), images(*shape, seed=2).reshape(x.shape)
    channels, height, width = x.shape
    places = [(c, i, j) for c in range(channels) for i in range(height) for j in range(width)]
    if name == "l2":
        return 0.7 * sum((x[p] - to[p]) ** 2 for p in places)
    if name == "total_variation":
        right = [abs(x[c, i, j] - x[c, i, j + 1]) for c, i, j in places if j + 1 < width]
        down = [abs(x[c, i, j] - x[c, i + 1, j]) for c, i, j in places if i + 1 < height]
        return 0.3 * (sum(right) / len(right) + sum(down) / len(down))
    if name == "box":
        return 1.3 * sum(max(-x[p], 0) ** 2 + max(x[p] - 1, 0) ** 2 for p in places)
    if name == "blurred":
        return 0.9 * sum((smooth(x, p) - x0[p]) ** 2 for p in places)
    return 0.0 * x.sum()


def smooth(x, place):
    """Convolution: the kernel's entry below its centre weighs the pixel above."""
    c, i, j = place
    height, width = x.shape[1:]
    return sum(
        KERNEL[1 + a, 1 + b] * x[c, min(max(i - a, 0), height - 1), min(max(j - b, 0), width - 1)]
        for a in (-1, 0, 1)
        for b in (-1, 0, 1)
    )


@every
@pytest.mark.parametrize("shape", [(1, 4, 5), (3, 3, 4), (4, 6)])
def test_terms_are_those_of_the_textbook(name, shape):
    x = images(4, *shape)
    planes = x if x.ndim == 4 else x[:, None]
    want = torch.stack([torch.as_tensor(textbook(name, one, shape)) for one in planes])
    got = terms(shape)[name](x)
    assert got.shape == (4,)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    if name != "none":
        assert got.min() > 0


@every
def test_gradients_are_those_of_differences(name):
    shape, step = (1, 3, 4), 1e-6
    term, x = terms(shape)[name], images(2, *shape).requires_grad_()
    total = term(x).sum()
    (grad,) = torch.autograd.grad(total, x) if total.requires_grad else (torch.zeros_like(x),)
    flat = x.detach().flatten()
    for i, g in enumerate(grad.flatten()):
        e = torch.zeros_like(flat).index_fill(0, torch.tensor([i]), step)
        up, down = (term((flat + s * e).reshape(x.shape)).sum() for s in (1, -1))
        assert g.item() == pytest.approx(((up - down) / (2 * step)).item(), abs=1e-6)


@every
def test_each_image_has_a_value_of_its_own(name):
    """Neither a mean over the batch nor a sum over it: the other labels do not matter."""
    shape = (1, 4, 5)
    term, x = terms(shape)[name], images(5, *shape)
    values = term(x)
    torch.testing.assert_close(torch.cat([term(one[None]) for one in x]), values, rtol=1e-13, atol=0)
    torch.testing.assert_close(term(x.flip(0)), values.flip(0), rtol=1e-13, atol=0)
    for wrong in (values.mean().expand(5), values.sum().expand(5), values / 5):
        if name != "none":
            assert not torch.allclose(wrong, values)


@every
def test_the_argument_is_left_alone(name):
    shape = (1, 4, 5)
    term, x = terms(shape)[name], images(2, *shape).float()
    held = x.clone()
    assert term(x).dtype == torch.float32
    assert torch.equal(x, held)
    assert term(x[:0]).shape == (0,)


def test_where_a_term_is_0():
    x = images(2, 1, 4, 5).clamp(0, 1)
    assert box(1.0)(x).tolist() == [0, 0]
    assert l2(x[0], 1.0)(x).tolist()[0] == 0
    assert blurred(blur(x[:1], KERNEL)[0], KERNEL, 1.0)(x).tolist()[0] == pytest.approx(0, abs=1e-30)
    flat = torch.full((2, 3, 4, 5), 0.3)
    assert total_variation(1.0)(flat).tolist() == [0, 0]
    assert total_variation(1.0)(flat).shape == (2,)
    assert l2(x[0], 0.0)(x).tolist() == [0, 0]


def test_hand_cases():
    x = torch.tensor([[[0.0, 1.0], [3.0, -1.0]]])  # right: 1, 4; down: 3, 2
    assert total_variation(1.0)(x).item() == pytest.approx(2.5 + 2.5)
    assert total_variation(2.0)(x[:, :1]).item() == pytest.approx(2.0)  # a line
    assert total_variation(2.0)(x[:, :1, :1]).item() == 0
    assert box(1.0)(x).item() == 4 + 1
    assert l2(torch.ones(2, 2), 0.5)(x).item() == 0.5 * (1 + 0 + 4 + 4)
    codes = torch.tensor([[0.5, 1.5, -2.0]])  # any record will do for these two
    assert box(1.0)(codes).item() == 0.25 + 4
    assert l2(torch.zeros(3), 1.0)(codes).item() == 6.5


def test_blur_is_a_convolution_that_keeps_the_size():
    point = torch.zeros(1, 1, 5, 6, dtype=torch.float64)
    point[0, 0, 2, 3] = 1
    assert torch.equal(blur(point, KERNEL)[0, 0, 1:4, 2:5], KERNEL)  # flipped, it would be a correlation
    assert not torch.equal(KERNEL, KERNEL.flip(0, 1))
    assert torch.equal(blur(point[:, 0], KERNEL), blur(point, KERNEL)[:, 0])
    constant = torch.full((2, 3, 5, 6), 0.4, dtype=torch.float64)
    torch.testing.assert_close(blur(constant, KERNEL), constant * KERNEL.sum())  # at the edge too
    one = torch.ones(1, 1, dtype=torch.float64)
    assert torch.equal(blur(constant, one), constant)
    assert blur(constant, torch.ones(1, 7).double() / 7).shape == constant.shape


def test_a_term_is_named_by_its_settings():
    assert repr(l2(torch.zeros(3), 0.5)) == "l2(weight=0.5)"
    assert repr(total_variation(0.5)) == "total_variation(weight=0.5)"
    assert repr(box(0.5)) == "box(weight=0.5)"
    assert repr(blurred(torch.zeros(2, 2), KERNEL, 0.5)) == "blurred(weight=0.5)"
    assert box(0.5) == box(0.5) != box(0.6)
    with pytest.raises(AttributeError):
        box(0.5).weight = 1.0


def test_refuses_what_it_cannot_do():
    x = torch.rand(2, 1, 4, 5)
    for make in (box, total_variation, lambda w: l2(x[0], w), lambda w: blurred(x[0], KERNEL, w)):
        for weight in (-0.1, math.nan, math.inf):
            with pytest.raises(ValueError, match=f"weight must be 0 or more, and finite, got {weight}"):
                make(weight)
    with pytest.raises(
        ValueError, match=r"to must be one image of shape \(1, 4, 5\), got shape \(2, 1, 4, 5\)"
    ):
        l2(x, 1.0)(x)
    with pytest.raises(ValueError, match=r"x0 must be one image of shape \(1, 4, 5\), got shape \(4, 5\)"):
        blurred(x[0, 0], KERNEL, 1.0)(x)
    for kernel in (torch.ones(2, 3), torch.ones(3, 4)):
        with pytest.raises(ValueError, match=r"kernel must have two odd sides, got shape \([23], [34]\)"):
            blurred(x[0], kernel, 1.0)
    for term in (total_variation(1.0), blurred(x[0, 0, 0], KERNEL, 1.0)):
        with pytest.raises(ValueError, match=r"x must be images .* got shape \(2, 5\)"):
            term(x[:, 0, 0])
