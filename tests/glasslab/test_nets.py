import math

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from glasslab.layers import GlobalMax, GlobalMean
from glasslab.nets import NETS, Dae, Scale, build
from glasslab.recipe import Recipe

DENSE = ("softmax", "mlp", "dae")
CONV = tuple(name for name in NETS if name not in DENSE)
every = pytest.mark.parametrize("name", NETS)
convolutional = pytest.mark.parametrize("name", CONV)


def small(name, norm="batch", shape=(3, 16, 16), dropout=0.0):
    """The same net with few channels: milliseconds."""
    narrow = {"softmax": {}, "mlp": {"hidden": (8,)}, "dae": {"hidden": (8, 6)}}.get(name, {"width": 4})
    torch.manual_seed(0)
    return build(Recipe(net=name, norm=norm, dropout=dropout, **narrow), shape, 5)


def weights(net):
    return sum(p.numel() for p in net.parameters())


def batch(n=4, shape=(3, 16, 16)):
    g = torch.Generator().manual_seed(1)
    return torch.rand(n, *shape, generator=g), torch.randint(5, (n,), generator=g)


@pytest.mark.parametrize(
    ("name", "norm", "shape", "classes", "count"),
    [
        ("softmax", "batch", (112, 92), 40, 112 * 92 * 40 + 40),
        ("mlp", "batch", (64,), 10, 64 * 128 + 128 + 128 * 10 + 10),
        ("dae", "batch", (1, 64, 64), 40, 4097 * 1000 + 1001 * 300 + 301 * 40),
        ("cnn", "none", (1, 28, 28), 10, 10 * 32 + 289 * 64 + 577 * 128 + 1153 * 128 + 129 * 10),
        ("cnn", "batch", (3, 32, 32), 10, 27 * 32 + 288 * 64 + 576 * 128 + 1152 * 128 + 2 * 352 + 129 * 10),
        ("alexnet", "none", (3, 32, 32), 10, 2_472_266),  # the CIFAR versions that the papers use
        ("resnet9", "batch", (3, 32, 32), 10, 6_573_130),
        ("resnet18", "batch", (3, 32, 32), 10, 11_173_962),
        ("wrn28-2", "batch", (3, 32, 32), 10, 1_467_610),
        ("wrn16-4", "group", (3, 32, 32), 10, 2_748_890),
    ],
)
def test_number_of_weights(name, norm, shape, classes, count):
    assert weights(build(Recipe(net=name, norm=norm), shape, classes)) == count


def test_hidden_and_width_are_the_recipes():
    assert weights(build(Recipe(net="mlp", hidden=(7, 3)), (5,), 2)) == 6 * 7 + 8 * 3 + 4 * 2
    assert weights(build(Recipe(net="dae", hidden=(7,)), (5,), 2)) == 6 * 7 + 8 * 2
    assert build(Recipe(net="cnn", width=6), (3, 8, 8), 2)[0].out_channels == 6


@pytest.mark.parametrize(("name", "depth"), [("resnet18", 17), ("wrn28-2", 25), ("wrn16-4", 13)])
def test_depth(name, depth):
    """Convolutions that are no shortcuts; the last layer is dense."""
    windows = [m.kernel_size for m in small(name).modules() if isinstance(m, nn.Conv2d)]
    assert windows.count((3, 3)) == depth
    assert windows.count((1, 1)) == 3


@pytest.mark.parametrize(
    ("name", "side"),
    [("cnn", 8), ("alexnet", 2), ("resnet9", 4), ("resnet18", 4), ("wrn28-2", 8), ("wrn16-4", 8)],
)
def test_how_far_an_image_is_halved(name, side):
    net, seen = small(name), []
    pool = next(m for m in net if isinstance(m, GlobalMax | GlobalMean))
    pool.register_forward_pre_hook(lambda _, x: seen.append(tuple(x[0].shape[2:])))
    net(torch.rand(2, 3, 32, 32))
    assert seen == [(side, side)]


def test_pooling_of_a_whole_image():
    x = torch.randn(2, 3, 5, 7)
    assert torch.equal(GlobalMax()(x), x.flatten(2).max(2).values)
    torch.testing.assert_close(GlobalMean()(x), x.flatten(2).mean(2))


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 64, 64)], ids=str)
@every
def test_logits_for_images(name, shape):
    if (name, shape) == ("alexnet", (1, 8, 8)):
        return
    net = small(name, shape=shape)
    for n in (2, 5):
        assert net(batch(n, shape)[0]).shape == (n, 5)


@pytest.mark.parametrize("name", DENSE)
def test_logits_for_tables(name):
    assert small(name, shape=(30,))(torch.rand(3, 30)).shape == (3, 5)


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@every
def test_every_weight_has_a_say(name, norm):
    x, y = batch()
    net = small(name, norm)
    cross_entropy(net(x), y).backward()
    unused = [key for key, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    # a bias before no norm at all may meet only dead ReLUs; a whole weight may not
    assert not [key for key in unused if not key.endswith("bias")]


@every
def test_every_layer_is_used_once_and_nothing_is_in_place(name):
    net, calls = small(name, dropout=0.0 if name in ("softmax", "dae") else 0.1), {}
    leaves = {key: m for key, m in net.named_modules() if not list(m.children())}
    for key, m in leaves.items():
        m.register_forward_hook(lambda *_, key=key: calls.update({key: calls.get(key, 0) + 1}))
        assert not getattr(m, "inplace", False)
    x, _ = batch()
    before = x.clone()
    net(x)
    assert torch.equal(x, before)
    assert calls == dict.fromkeys((key for key in leaves if key != "decode"), 1)


@convolutional
def test_norms(name):
    kinds = {norm: {type(m) for m in small(name, norm).modules()} for norm in ("batch", "group", "none")}
    has = {norm: kinds[norm] & {nn.BatchNorm2d, nn.GroupNorm} for norm in kinds}
    assert has == {"batch": {nn.BatchNorm2d}, "group": {nn.GroupNorm}, "none": set()}
    x, _ = batch(6)
    for norm in ("group", "none"):
        net = small(name, norm).train()
        torch.testing.assert_close(net(x)[:2], net(x[:2]), rtol=1e-4, atol=1e-5)
    net = small(name, "batch").train()
    assert not torch.allclose(net(x)[:2], net(x[:2]), rtol=1e-4, atol=1e-5)


@convolutional
@pytest.mark.parametrize("norm", ["group", "none"])
def test_a_gradient_a_record_through_torch_func(name, norm):
    net, (x, y) = small(name, norm), batch(3)
    held = {key: p.detach() for key, p in net.named_parameters()}

    def loss(p, x, y):
        return cross_entropy(functional_call(net, p, x[None]), y[None])

    together = vmap(grad(loss), (None, 0, 0))(held, x, y)
    for i in range(3):
        alone = torch.autograd.grad(cross_entropy(net(x[i : i + 1]), y[i : i + 1]), list(net.parameters()))
        for g, slow in zip(together.values(), alone, strict=True):
            torch.testing.assert_close(g[i], slow, rtol=1e-3, atol=1e-5)


@convolutional
def test_learns_by_heart(name):
    x, y = batch(8)
    net = small(name)
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(40):
        optimiser.zero_grad()
        loss = cross_entropy(net(x), y)
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.2 * math.log(5)


@every
def test_the_global_seed_decides_the_weights(name):
    a, b = small(name), small(name)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    torch.manual_seed(1)
    c = build(Recipe(net="mlp", hidden=(8,)), (3, 16, 16), 5)
    assert not torch.equal(c[1].weight, small("mlp")[1].weight)


@pytest.mark.parametrize(("name", "count"), [("mlp", 1), ("cnn", 1), ("wrn28-2", 12), ("wrn16-4", 6)])
def test_dropout_of_a_hidden_layer_a_head_or_each_wide_block(name, count):
    drops = [m for m in small(name, dropout=0.3).modules() if isinstance(m, nn.Dropout)]
    assert [m.p for m in drops] == [0.3] * count


@pytest.mark.parametrize("name", ["mlp", *CONV])
def test_dropout_acts_in_training_only(name):
    x, _ = batch()
    net = small(name, "group", dropout=0.5)
    torch.manual_seed(0)
    assert not torch.equal(net.train()(x), net(x))
    assert torch.equal(net.eval()(x), net(x))
    torch.testing.assert_close(net(x), small(name, "group").eval()(x))


def test_wide_blocks_carry_their_input_past():
    """With the last convolution at 0, a block that keeps its channels is the identity, before any ReLU."""
    block = small("wrn16-4")[2]
    nn.init.zeros_(block.body[-1].weight)
    x = torch.randn(2, 16, 8, 8)
    assert torch.equal(block(x), x)


def test_wide_blocks_that_widen_share_their_activation():
    """With the last convolution at 0 what is left is the shortcut, of normed and rectified values."""
    norm, relu, block = small("wrn16-4").eval()[1]
    nn.init.zeros_(block.body[-1].weight)
    x = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(block(relu(norm(x))), block.shortcut(norm(x).clamp(min=0)))


def test_basic_blocks_carry_their_input_past():
    block = small("resnet18").eval()[3]
    nn.init.zeros_(block.body[-1].weight)
    x = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(block(x), x.relu())


def test_scale_comes_first():
    x = torch.rand(6, 3, 8, 8)
    mean, std = torch.tensor([0.1, 0.5, 0.2]), torch.tensor([0.3, 0.0, 2.0])
    torch.manual_seed(0)
    net = build(Recipe(net="mlp"), (3, 8, 8), 5, scale=(mean, std))
    by_hand = torch.stack([(x[:, c] - mean[c]) / (std[c] or 1) for c in range(3)], 1)
    torch.testing.assert_close(net(x), net[1](by_hand))
    assert isinstance(net[0], Scale)
    assert {"0.mean", "0.std"} <= net.state_dict().keys()
    assert len(list(net.parameters())) == 4


@pytest.mark.parametrize("shape", [(7,), (1, 4, 4)])
def test_scale_of_each_feature(shape):
    x = 5 * torch.rand(50, *shape) + 1
    scaled = Scale(x.mean(0), x.std(0), shape)(x)
    torch.testing.assert_close(scaled.mean(0), torch.zeros(shape), rtol=0, atol=1e-5)
    torch.testing.assert_close(scaled.std(0), torch.ones(shape))


def test_dae_classifies_the_code_and_keeps_its_decoder():
    net = build(Recipe(net="dae", hidden=(9, 6)), (1, 4, 4), 3)
    x = torch.rand(5, 1, 4, 4)
    h = net.encode(x)
    assert isinstance(net, Dae)
    assert h.shape == (5, 9)
    assert torch.equal(net.above(h), net(x))
    slow = torch.sigmoid(h @ net.decode.weight.T + net.decode.bias).reshape(5, 1, 4, 4)
    torch.testing.assert_close(net.decode(h), slow)
    assert {"decode.weight", "decode.bias"} <= net.state_dict().keys()
    assert not any(key.startswith("decode") for key, _ in net.named_parameters())


def own(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes), nn.Tanh())


def test_a_factory_of_the_users_own():
    net = build(Recipe(net=own), (2, 3), 4, scale=(torch.zeros(2, 3), torch.ones(2, 3)))
    assert net(torch.rand(5, 2, 3)).shape == (5, 4)
    assert isinstance(net[1][2], nn.Tanh)


@convolutional
def test_refuses_tables(name):
    with pytest.raises(ValueError, match=rf"net '{name}' needs images .* got records of shape \(446,\)"):
        build(Recipe(net=name), (446,), 30)


@pytest.mark.parametrize(
    ("recipe", "shape", "text"),
    [
        (Recipe(net="vgg"), (3, 32, 32), "net must be one of softmax, mlp, dae, cnn, .* got 'vgg'"),
        (Recipe(net="alexnet"), (1, 8, 8), r"13 x 13 pixels or more, got records of shape \(1, 8, 8\)"),
        (Recipe(net="cnn", hidden=(5,)), (1, 8, 8), r"hidden must be left out for net 'cnn', got \(5,\)"),
        (Recipe(net="mlp", width=5), (1, 8, 8), "width must be left out for net 'mlp', got 5"),
        (Recipe(net="softmax", dropout=0.5), (8,), "dropout must be left out for net 'softmax', got 0.5"),
    ],
)
def test_refuses_what_it_cannot_build(recipe, shape, text):
    with pytest.raises(ValueError, match=text):
        build(recipe, shape, 10)


@pytest.mark.parametrize(("name", "side"), [("cnn", 4), ("alexnet", 13), ("resnet9", 8), ("resnet18", 2)])
def test_the_smallest_image(name, side):
    assert small(name, "group", (1, side, side))(torch.rand(2, 1, side, side)).shape == (2, 5)
