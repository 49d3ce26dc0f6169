import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import pad

from glasslab.augment import augment, queries


def images(n, c=3, h=16, w=16, seed=0):
    return torch.rand(n, c, h, w, generator=torch.Generator().manual_seed(seed))


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def shifts(image, s):
    """All crops of one image over reflected borders, pixel by pixel: (dy, dx) -> image."""

    def reflect(i, side):
        return -i if i < 0 else 2 * (side - 1) - i if i >= side else i

    h, w = image.shape[1:]
    found = {}
    for dy in range(-s, s + 1):
        for dx in range(-s, s + 1):
            rows, columns = [reflect(i + dy, h) for i in range(h)], [reflect(j + dx, w) for j in range(w)]
            found[dy, dx] = image[:, rows][:, :, columns]
    return found


def which(image, candidates):
    """The names of the candidates that equal an image."""
    return [name for name, candidate in candidates.items() if torch.equal(image, candidate)]


def test_mirror_turns_half_of_the_records():
    x = images(400)
    y = augment(x, ("mirror",), stream())
    turned = torch.tensor([torch.equal(b, a.flip(2)) for a, b in zip(x, y, strict=True)])
    kept = torch.tensor([torch.equal(b, a) for a, b in zip(x, y, strict=True)])
    assert torch.equal(turned, ~kept)
    assert 150 < turned.sum() < 250  # 5 standard deviations


@pytest.mark.parametrize(
    ("h", "w", "s"), [(8, 8, (1, 1)), (28, 28, (3, 3)), (32, 32, (4, 4)), (16, 32, (2, 4))]
)
def test_a_crop_is_one_of_the_shifts(h, w, s):
    x = images(40, 2, h, w)
    y = augment(x, ("crop",), stream())
    found = [which(b, shifts(a, max(s))) for a, b in zip(x, y, strict=True)]
    assert all(len(names) == 1 for names in found)
    assert all(abs(dy) <= s[0] and abs(dx) <= s[1] for ((dy, dx),) in found)


def test_crops_use_every_shift_and_records_differ():
    x = images(1, 1, 8, 8).expand(400, -1, -1, -1)
    found = [which(b, shifts(x[0], 1))[0] for b in augment(x, ("crop",), stream())]
    counts = [found.count(name) for name in shifts(x[0], 1)]
    assert min(counts) > 400 / 9 - 5 * 7
    assert max(counts) < 400 / 9 + 5 * 7


def test_cutout_paints_one_square_with_the_mean():
    x = images(300, 3, 16, 16)
    y = augment(x, ("cutout",), stream())
    areas, centres = [], set()
    for a, b in zip(x, y, strict=True):
        painted = (a != b).all(0)
        assert torch.equal(painted, (a != b).any(0))
        rows, columns = painted.any(1).nonzero()[:, 0], painted.any(0).nonzero()[:, 0]
        assert torch.equal(painted, painted.any(1)[:, None] & painted.any(0)[None])
        assert len(rows) == rows[-1] - rows[0] + 1 <= 8
        assert len(columns) == columns[-1] - columns[0] + 1 <= 8
        torch.testing.assert_close(
            b[:, painted], a.mean((1, 2))[:, None].expand(-1, len(rows) * len(columns))
        )
        areas.append(len(rows) * len(columns))
        centres.add((int(rows[0]), int(rows[-1])))
    assert max(areas) == 64
    assert min(areas) < 32  # cut at a border
    assert len(centres) == 16


@pytest.mark.parametrize(
    "names", [("mirror",), ("crop",), ("cutout",), ("mirror", "crop", "cutout")], ids="-".join
)
def test_the_generator_decides_alone(names):
    x = images(64)
    before = x.clone()
    y = augment(x, names, stream(1))
    assert torch.equal(augment(x, names, stream(1)), y)
    assert not torch.equal(augment(x, names, stream(2)), y)
    last = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(augment(last, names, stream(1)), y)  # a mean may add in another order
    assert augment(x.bfloat16(), names, stream(1)).dtype == torch.bfloat16
    assert torch.equal(x, before)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 5), st.integers(1, 3), st.integers(4, 20), st.integers(4, 20))
def test_any_shape(n, c, h, w):
    x = images(n, c, h, w)
    y = augment(x, ("mirror", "crop", "cutout"), stream())
    assert y.shape == x.shape
    assert y.min() >= x.min()
    assert y.max() <= x.max()


def test_names_are_applied_in_their_order():
    x = images(32)
    g = stream(3)
    one_by_one = augment(augment(x, ("crop",), g), ("mirror",), g)
    assert torch.equal(augment(x, ("crop", "mirror"), stream(3)), one_by_one)
    assert torch.equal(augment(x, (), stream()), x)


def test_refuses_an_unknown_augmentation():
    with pytest.raises(ValueError, match="augment must name some of mirror, crop, cutout, got 'mixup'"):
        getattr(augment, "__wrapped__", augment)(images(2), ("mixup",), stream())


@pytest.mark.parametrize(("k", "s"), [(2, 0), (18, 1), (50, 2), (162, 4)])
def test_queries_are_all_shifts_of_both_sides(k, s):
    x = images(3, 2, 9, 11)
    grid = queries(x, k)
    assert grid.shape == (k, 3, 2, 9, 11)
    assert torch.equal(grid[0], x)
    assert torch.equal(grid[k // 2], x.flip(3))
    for i in range(3):
        wanted = {("as it is", *d): v for d, v in shifts(x[i], s).items()}
        wanted |= {("mirror", *d): v for d, v in shifts(x[i].flip(2), s).items()}
        assert sorted(name for q in range(k) for name in which(grid[q, i], wanted)) == sorted(wanted)


def test_queries_follow_the_authors_order_but_for_the_identity():
    x = images(1, 1, 8, 8)
    padded = pad(x, (1, 1, 1, 1), mode="reflect")
    authors = [padded[:, :, dy : dy + 8, dx : dx + 8] for dx in range(3) for dy in range(3)]
    assert torch.equal(queries(x, 18)[:9], torch.stack([authors[4], *authors[:4], *authors[5:]]))


def test_a_query_is_the_same_pixels_in_any_company():
    x = images(6, 3, 12, 12)
    grid = queries(x, 50)
    assert torch.equal(queries(x[2:3], 50), grid[:, 2:3])
    assert torch.equal(queries(x, 50), grid)


def test_a_shift_moves_pixels_not_channels():
    x = torch.zeros(1, 3, 8, 8)
    x[0, 1, 4, 4] = 1
    assert torch.equal(queries(x, 18).sum((1, 3, 4)), torch.tensor([[0.0, 1.0, 0.0]]).expand(18, 3))


def test_tables_are_asked_once():
    table = torch.rand(5, 7)
    assert torch.equal(queries(table, 1), table[None])
    with pytest.raises(ValueError, match="queries must be 1 for tables, got 2"):
        queries(table, 2)


def test_refuses_other_grids():
    with pytest.raises(ValueError, match="queries must be one of 1, 2, 18, 50, 162, got 10"):
        queries(images(2), 10)
    with pytest.raises(ValueError, match="queries=162 needs images larger than 4 pixels, got 4 x 9"):
        queries(images(2, 1, 4, 9), 162)
