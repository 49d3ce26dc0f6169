import pytest
import torch
from torch import nn
from torch.nn.functional import relu

from glasslab import nets
from glasslab.layers import Residual, conv, window
from glasslab.layers import head as layers_head
from glasslab.recipe import Recipe
from glasslab.split import stream
from whitebox import cut as module
from whitebox.cut import check_slice, cut, head, head_parameters, resume

SHAPES = {
    "softmax": (7,),
    "mlp": (7,),
    "dae": (7,),
    "cnn": (3, 8, 8),
    "resnet9": (3, 8, 8),
    "wrn16-4": (3, 8, 8),
}


def net(name, norm="batch"):
    shape = SHAPES[name]
    recipe = Recipe(net=name, width=4 if len(shape) == 3 else 0, norm=norm)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nets.build(recipe, shape, 4, (torch.zeros(shape[0]), torch.ones(shape[0]))).eval()


def records(name, n=5):
    return torch.rand(n, *SHAPES[name], generator=stream(0, name))


class Functional(nn.Module):
    """No chain of modules: functions in between, a BatchNorm and Dropout on both sides of `b`'s input."""

    def __init__(self, d=6, c=3):
        super().__init__()
        self.a, self.norm, self.b, self.above = (
            nn.Linear(d, 5),
            nn.BatchNorm1d(5),
            nn.Linear(5, 5),
            nn.Linear(5, c),
        )
        self.below_drop, self.drop, self.spare = nn.Dropout(0.5), nn.Dropout(0.5), nn.Linear(2, 2)

    def forward(self, x):
        h = relu(self.below_drop(self.norm(self.a(x))))
        return self.above(self.drop(relu(self.b(h) + h))) * 2

    def by_hand(self, h):
        return self.above(relu(self.b(h) + h)) * 2


class Around(nn.Module):
    """A little of the record flows around `a` and around all of `inner`."""

    def __init__(self, share=1e-3):
        super().__init__()
        self.inner, self.last, self.share = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 3), share

    def forward(self, x):
        return self.last(self.inner(x) + self.share * x)


def made(kind, *arguments):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return kind(*arguments).eval()


def frozen(model):
    """All that a function could leave behind on a model."""
    state = {k: v.clone() for k, v in model.state_dict().items()}
    hooks = [
        (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()
    ]
    return (
        state,
        hooks,
        [m.training for m in model.modules()],
        [(w.grad, w.requires_grad) for w in model.parameters()],
    )


def assert_untouched(model, before):
    now = frozen(model)
    assert all(torch.equal(now[0][k], v) for k, v in before[0].items())
    assert now[1:] == before[1:]


@pytest.mark.parametrize("name", SHAPES)
def test_a_net_cut_at_its_default_goes_on_to_its_own_logits(name):
    model, x = net(name), records(name)
    z = cut(model, None, x)
    assert torch.equal(resume(model, None, x, z), model(x))
    part, _ = head(model, None, x)
    assert torch.equal(part(z), model(x))
    last = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)][-1]
    assert head_parameters(model, None, x) == (f"{last}.weight", f"{last}.bias")
    assert len(list(part.parameters())) == 2


def test_features_and_logits_are_those_of_the_layers():
    model, x = net("mlp"), records("mlp")
    linear, relu_, last = model[1][1], model[1][2], model[1][3]
    assert torch.equal(cut(model, "1.1", x), linear(x))
    assert torch.equal(cut(model, None, x), relu_(linear(x)))
    other = torch.randn(5, 128, generator=stream(1))
    assert torch.equal(resume(model, "1.1", x, other), last(relu_(other)))
    assert torch.equal(resume(model, None, x, other), last(other))
    assert head_parameters(model, "1.1", x) == ("1.3.weight", "1.3.bias")
    assert head_parameters(model, "0", x) == ("1.1.weight", "1.1.bias", "1.3.weight", "1.3.bias")
    assert head_parameters(model, "1.3", x) == ()


def residual(norm):
    """He's block with a shortcut of its own, and a pre-activated one, which is a chain around a sum."""
    wide = Residual(nn.Sequential(*conv(4, 4, norm)), window(4, 4, 1, 1, norm))
    basic = Residual(nn.Sequential(*conv(3, 4, norm, pool=True)[:-1]), nn.MaxPool2d(2), nn.ReLU(inplace=True))
    basic.shortcut = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(3, 4, 1))
    return nn.Sequential(basic, nn.Sequential(nn.ReLU(), wide), *layers_head(4, 3, 0.1))


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_every_place_is_a_slice_or_is_refused(norm):
    model, x = made(residual, norm), torch.rand(2, 3, 6, 6, generator=stream(0))
    refused = []
    for place in (n for n, _ in model.named_modules() if n):
        try:
            part, names = head(model, place, x)
        except ValueError:
            refused.append(place)
            continue
        z = cut(model, place, x)
        assert torch.equal(part(z), model(x))
        noise = torch.randn(z.shape, generator=stream(2))
        assert torch.equal(resume(model, place, x, noise), resume(model, place, 1 - x, noise))
        torch.testing.assert_close(part(noise), resume(model, place, x, noise))
        assert {names[k] for k, _ in part.named_parameters()} == set(head_parameters(model, place, x))
    sides = ("0.body", "0.shortcut", "1.1.body", "1.1.shortcut")
    assert refused == [n for n, _ in model.named_modules() if n.startswith(sides)]


def test_where_information_flows_around_the_block_is_named():
    model, x = net("resnet9"), records("resnet9")
    with pytest.raises(ValueError, match=r"flows around `1.7.body.0`; cut at `1.7`$"):
        check_slice(model, "1.7.body.0", x)
    check_slice(model, "1.7", x)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("share", [1.0, 1e-3])
def test_a_small_way_around_is_found_with_one_record_too(share, n):
    x = torch.randn(n, 4, generator=stream(0))
    for place in ("inner.0", "inner"):
        with pytest.raises(ValueError, match=f"information flows around `{place}`$"):
            check_slice(made(Around, share), place, x)
    check_slice(made(Around, share), None, x)
    check_slice(made(Around, 0.0), "inner.0", x)


def test_the_same_records_again_would_not_show_the_way_around():
    """The wrong version: both runs on the same x always agree."""
    model, x = made(Around), torch.randn(3, 4, generator=stream(0))
    z = cut(model, "inner", x)
    assert torch.equal(resume(model, "inner", x, z), model(x))
    assert not torch.allclose(resume(model, "inner", x.flip(0), z), model(x))


def test_records_of_whole_numbers():
    model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 3)).eval()
    x = torch.randint(9, (5, 3), generator=stream(0))
    part, _ = head(model, "0", x)
    assert torch.equal(part(cut(model, "0", x)), model(x))
    assert head_parameters(model, "0", x) == ("2.weight", "2.bias")


def test_a_net_that_is_no_chain_is_run_as_a_whole():
    model, x = made(Functional), torch.randn(5, 6, generator=stream(0))
    before = frozen(model)
    part, names = head(model, "below_drop", x)
    assert isinstance(part, module.Whole)
    h = torch.randn(7, 5, generator=stream(1))
    torch.testing.assert_close(part(h), model.by_hand(relu(h)))
    learns = {names[k] for k, w in part.named_parameters() if w.requires_grad}
    assert (
        learns
        == {"b.weight", "b.bias", "above.weight", "above.bias"}
        == set(head_parameters(model, "below_drop", x))
    )
    part.train()
    modes = {n for n, m in part.model.named_modules() if m.training}
    assert modes == {"b", "above", "drop"}  # neither the trunk's BatchNorm nor its Dropout
    part(h).sum().backward()
    assert_untouched(model, before)
    assert not any(m.training for m in part.eval().modules())


def test_heads_are_copies_and_leave_features_alone():
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Linear(5, 3)).eval()
    for w in model.parameters():
        w.requires_grad_(False)  # frozen parameters belong to the head all the same
    x, before = torch.randn(4, 6, generator=stream(0)), frozen(model)
    z = cut(model, "0", x)
    kept = z.clone()
    assert (z < 0).any()
    part, _ = head(model, "0", x)
    assert torch.equal(part(z), resume(model, "0", x, z))
    assert torch.equal(z, kept)
    assert head_parameters(model, "0", x) == ("2.weight", "2.bias")
    part(z).sum().backward()
    with torch.no_grad():
        for w in part.parameters():
            w.zero_()
    assert_untouched(model, before)
    assert torch.equal(model[1](model[0](x)), cut(model, "1", x))


def test_gradients_pass_through_a_cut():
    model, x = net("mlp"), records("mlp")
    z = cut(model, None, x).detach().requires_grad_()
    resume(model, None, x, z)[:, 0].sum().backward()
    torch.testing.assert_close(z.grad, model[1][3].weight[0].expand(5, -1))


def test_the_last_one_with_parameters_is_the_last_one_called():
    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.first, self.unused = nn.Linear(4, 3), nn.Linear(5, 4), nn.Linear(1, 1)

        def forward(self, x):
            return self.last(self.first(x).tanh())

    model, x = made(Turned), torch.randn(3, 5, generator=stream(0))
    assert torch.equal(cut(model, None, x), model.first(x).tanh())
    assert head_parameters(model, None, x) == ("last.weight", "last.bias")
    linear = nn.Linear(5, 3)  # itself the last one
    assert torch.equal(cut(linear, None, x), x)
    assert head_parameters(linear, None, x) == ("weight", "bias")
    assert set(head(linear, None, x)[1].values()) == {"weight", "bias"}


def test_places_that_are_none():
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.Tanh(), shared, nn.Linear(4, 3)).eval()
    x = torch.randn(3, 4, generator=stream(0))
    with pytest.raises(ValueError, match="place must be called once a run, but `0` is called 2 times"):
        cut(model, "0", x)
    with pytest.raises(ValueError, match="place must be a module's name, such as .*1.*, got 'tanh1'"):
        cut(model, "tanh1", x)
    model = made(Functional)
    with pytest.raises(ValueError, match="`spare` is called 0 times"):
        cut(model, "spare", torch.randn(2, 6))
    with pytest.raises(ValueError, match="model must own parameters where place is None"):
        cut(nn.Tanh(), None, x)
    recurrent = nn.Sequential(nn.LSTM(4, 4))
    with pytest.raises(
        ValueError, match="place must give one tensor with a row a record, got something else of `0`"
    ):
        cut(recurrent, "0", torch.randn(3, 2, 4))


def test_models_are_as_before_after_success_and_error():
    model, x = net("cnn"), records("cnn")
    before, keep = frozen(model), x.clone()
    rng = torch.get_rng_state()
    check_slice(model, "1.4", x)
    head_parameters(model, "1.4", x)
    head(model, "1.4", x)
    resume(model, "1.4", x, cut(model, "1.4", x))
    with pytest.raises(RuntimeError):
        resume(model, "1.4", x, torch.zeros(5, 1, 2, 2))
    with pytest.raises(ValueError, match="4D"):
        cut(model, "1.4", torch.zeros(5, 3))
    with pytest.raises(ValueError, match="place"):
        cut(model, "9", x)
    assert_untouched(model, before)
    assert torch.equal(x, keep)
    assert torch.equal(rng, torch.get_rng_state())


def test_a_way_around_is_found_with_one_constant_record():
    """Its features rolled by one are the same record."""
    for value in (0.0, 1.0):
        with pytest.raises(ValueError, match="information flows around `inner`$"):
            check_slice(made(Around), "inner", torch.full((1, 4), value))
