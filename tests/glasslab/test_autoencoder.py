import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from glasslab import autoencoder, faces
from glasslab.autoencoder import Masking, trained
from glasslab.data import Data
from glasslab.datasets import load
from glasslab.faces import SOFTMAX, TRAIN, face_model, per_class, sigmoid_mlp
from glasslab.oracle import forward
from glasslab.split import stream

FILE = Path(os.environ.get("GLASSLAB_DATA", "data")) / "olivetti_faces.npz"
needs_faces = pytest.mark.skipif(not FILE.is_file(), reason=f"needs {FILE.name} in $GLASSLAB_DATA")
BRIEF = {"hidden": (24, 12), "layer_epochs": 50, "epochs": 50, "batch": 20, "lr": 0.1}


def patterns(n=120, classes=4, seed=0):
    """Images 1 x 6 x 5 in [0, 1]: a pattern a class, each pixel as often 0.2 as 0.8, and noise."""
    g = stream(7, "patterns")
    means = 0.2 + 0.6 * (torch.rand(classes, 1, 6, 5, generator=g) < 0.5)
    g = stream(seed, "records")
    y = torch.arange(n) % classes
    x = (means[y] + 0.15 * torch.randn(n, 1, 6, 5, generator=g)).clamp(0, 1)
    return Data(x, y, classes, "patterns")


def error(model, data):
    return (forward(model, data.x).argmax(1) != data.y).double().mean().item()


@pytest.fixture(scope="module")
def dae():
    return trained(patterns(), generator=stream(0), **BRIEF)


# The autoencoder


def test_masking_sets_a_share_to_0_and_leaves_the_others():
    mask, x = Masking(0.2), 1 + torch.rand(400, 50, generator=stream(0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        out = mask.train()(x)
    gone = out == 0
    torch.testing.assert_close(out[~gone], x[~gone])  # dropout would make them larger
    assert gone.double().mean().item() == pytest.approx(0.2, abs=4 * (0.16 / 20_000) ** 0.5)
    assert torch.equal(mask.eval()(x), x)


def test_the_loss_is_summed_over_a_record_and_a_mean_over_records():
    z, a = torch.randn(3, 5, generator=stream(0)), torch.rand(3, 5, generator=stream(1))
    p = z.double().sigmoid()
    want = sum(
        -(a[i, j].double() * p[i, j].log() + (1 - a[i, j].double()) * (1 - p[i, j]).log())
        for i in range(3)
        for j in range(5)
    )
    assert autoencoder._cross_entropy(z, a).item() == pytest.approx(want.item() / 3, rel=1e-5)


def test_it_learns_the_classes_and_its_decoder_gives_records_back(dae):
    fresh = patterns(seed=1)
    assert error(dae, patterns()) == 0
    assert error(dae, fresh) < 0.05
    with torch.no_grad():
        back = dae.decode(dae.encode(fresh.x))
    assert back.shape == fresh.x.shape
    mean = (patterns().x.mean(0) - fresh.x).square().mean()
    assert (back - fresh.x).square().mean() < 0.5 * mean  # a decoder that was never trained is worse than it
    assert not any(part.training for part in dae.modules())
    assert all(p.requires_grad for p in dae.parameters())


def test_labels_move_the_encoder_and_not_the_decoder():
    """As good as no fine-tuning, and much of it: the decoders are the same, the encoders are not."""
    little, much = (trained(patterns(), generator=stream(0), **BRIEF | {"lr": lr}) for lr in (1e-6, 0.1))
    assert torch.equal(little.decode.weight, much.decode.weight)
    assert torch.equal(little.decode.bias, much.decode.bias)
    for name in ("encode.1.weight", "above.0.weight", "above.2.weight"):
        assert (little.state_dict()[name] - much.state_dict()[name]).abs().max() > 1e-3
    assert error(little, patterns()) > 0.3  # layers alone know no label
    assert error(much, patterns()) == 0


def test_each_layer_learns_the_clean_code_of_the_one_below(monkeypatch):
    asked, whole = [], autoencoder._denoising

    def watched(a, width, *rest):
        state = whole(a, width, *rest)
        asked.append((a, width, state))
        return state

    monkeypatch.setattr(autoencoder, "_denoising", watched)
    data = patterns()
    dae = trained(data, generator=stream(0), **BRIEF | {"lr": 1e-9, "epochs": 1})
    (a, width, first), (b, above, second) = asked
    assert (width, above) == (24, 12)
    assert torch.equal(a, data.x.flatten(1))
    torch.testing.assert_close(b, (a @ first["1.weight"].T + first["1.bias"]).sigmoid())
    torch.testing.assert_close(dae.encode[1].weight, first["1.weight"])
    torch.testing.assert_close(dae.above[0].weight, second["1.weight"])
    assert torch.equal(dae.decode.weight, first["3.weight"])
    h = (b @ second["1.weight"].T + second["1.bias"]).sigmoid()
    back = (h @ second["3.weight"].T + second["3.bias"]).sigmoid()
    assert (back - b).square().mean() < 0.7 * (b - b.mean(0)).square().mean()


def test_each_step_has_noise_of_its_own(monkeypatch):
    """The layer's input is masked anew, its target is not."""
    seen, told, whole = [], [], autoencoder._cross_entropy
    monkeypatch.setattr(autoencoder, "_cross_entropy", lambda z, a: told.append(a) or whole(z, a))

    class Watched(Masking):
        def forward(self, x):
            seen.append((x, super().forward(x)))
            return seen[-1][1]

    monkeypatch.setattr(autoencoder, "Masking", Watched)
    settings = {"hidden": (5,), "layer_epochs": 3, "epochs": 1, "batch": 60}
    trained(patterns(60), generator=stream(0), corruption=0.4, **settings)
    assert len(seen) == 3
    for (clean, noisy), target in zip(seen, told, strict=True):
        assert torch.equal(clean, target)
        gone = (noisy == 0) & (clean > 0)
        assert gone.double().mean().item() == pytest.approx(0.4, abs=0.06)
    gone = [noisy[clean[:, 0].argsort()] == 0 for clean, noisy in seen]
    assert not torch.equal(gone[0], gone[1])


def test_it_depends_on_the_generator_alone_and_leaves_its_data():
    data, settings = patterns(), BRIEF | {"layer_epochs": 2, "epochs": 2}
    held, before = data.x.clone(), torch.get_rng_state()
    first, again, other = (trained(data, generator=stream(seed), **settings) for seed in (0, 0, 1))
    for name, t in first.state_dict().items():
        assert torch.equal(t, again.state_dict()[name])
        assert not torch.equal(t, other.state_dict()[name])
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(data.x, held)


def test_one_layer_or_three():
    settings = BRIEF | {"layer_epochs": 1, "epochs": 1}
    for hidden in ((7,), (9, 8, 7)):
        dae = trained(patterns(), generator=stream(0), **settings | {"hidden": hidden})
        assert dae.encode(patterns().x).shape == (120, hidden[0])
        assert len(autoencoder._layers(dae)) == len(hidden)


def test_refuses_what_it_cannot_do():
    data = patterns()
    for wrong, match in (
        ({"hidden": ()}, r"hidden must give one layer or more of one unit or more, got \(\)"),
        ({"hidden": (4, 0)}, r"hidden must give .* got \(4, 0\)"),
        ({"corruption": 1.0}, r"corruption must lie in \[0, 1\), got 1.0"),
        ({"corruption": -0.1}, "corruption must lie in"),
        ({"epochs": 0}, "epochs must be 1 or more, got 0"),
        ({"layer_lr": 0.0}, "lr must be above 0, got 0.0"),
    ):
        with pytest.raises(ValueError, match=match):
            trained(data, generator=stream(0), **BRIEF | wrong)
    with pytest.raises(ValueError, match=r"data must hold features in \[0, 1\], got 0 to 2 in 'patterns'"):
        trained(replace(data, x=2 * (data.x > 0.5).float()), generator=stream(0), **BRIEF)
    with pytest.raises(ValueError, match="y must hold every class 0 .. 3, got none of 3"):
        trained(data[data.y < 3], generator=stream(0), **BRIEF)


# Splits person by person, and the three nets


@pytest.mark.parametrize("train", TRAIN.values())
def test_a_split_takes_as_many_of_each_class(train):
    y = torch.arange(400) % 40
    held, rest = per_class(y, train, stream(0))
    assert torch.bincount(y[held]).tolist() == 40 * [train]
    assert torch.bincount(y[rest]).tolist() == 40 * [10 - train]
    assert sorted([*held.tolist(), *rest.tolist()]) == list(range(400))
    assert held.tolist() == sorted(held.tolist())
    assert torch.equal(held, per_class(y, train, stream(0))[0])
    assert not torch.equal(held, per_class(y, train, stream(1))[0])


def test_splits_are_drawn_at_random_in_each_class():
    """Each record is drawn in 7 of 10 splits: 400 of them, 4.5 standard errors, 40 records."""
    y = torch.arange(4).repeat_interleave(10)
    g = stream(0)
    share = torch.zeros(40)
    for _ in range(400):
        share[per_class(y, 7, g)[0]] += 1 / 400
    assert (share - 0.7).abs().max() < 4.5 * (0.21 / 400) ** 0.5
    alike = [per_class(y, 7, g)[0].reshape(4, 7) % 10 for _ in range(20)]
    assert any(not torch.equal(a[0], a[1]) for a in alike)  # not the same places in every class


def test_a_split_refuses():
    y = torch.tensor([0, 0, 0, 1, 1])
    with pytest.raises(ValueError, match="train must leave every class a record, got 2 of 2 in class 1"):
        per_class(y, 2, stream(0))
    with pytest.raises(ValueError, match="train must be 1 or more, got 0"):
        per_class(y, 0, stream(0))


def test_the_hidden_layer_has_3000_sigmoids():
    net = sigmoid_mlp((1, 4, 3), 5)
    assert sum(p.numel() for p in net.parameters()) == 13 * 3000 + 3001 * 5
    x = torch.rand(2, 1, 4, 3)
    h = torch.sigmoid(x.flatten(1) @ net[1].weight.T + net[1].bias)
    torch.testing.assert_close(net(x), h @ net[3].weight.T + net[3].bias)


def test_softmax_is_trained_by_plain_descent_on_all_records(monkeypatch):
    """Step by step in float64."""
    data, index = patterns(40), torch.arange(30)
    monkeypatch.setattr(faces, "SOFTMAX", replace(SOFTMAX, epochs=1))
    start = face_model("softmax", data, index, 3)
    monkeypatch.setattr(faces, "SOFTMAX", replace(SOFTMAX, epochs=40))
    end = face_model("softmax", data, index, 3)
    w, b = (p.detach().double().requires_grad_() for p in start.parameters())
    for _ in range(39):
        loss = cross_entropy(data.x[index].flatten(1).double() @ w.T + b, data.y[index])
        grads = torch.autograd.grad(loss, (w, b))
        w, b = ((p - 0.02 * g).detach().requires_grad_() for p, g in zip((w, b), grads, strict=True))
    for p, want in zip(end.parameters(), (w, b), strict=True):
        torch.testing.assert_close(p.detach().double(), want.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["softmax", "mlp", "dae"])
def test_face_models_depend_on_their_seed_and_their_records_alone(name, monkeypatch):
    data, index = patterns(), torch.arange(60)
    monkeypatch.setattr(faces, "SOFTMAX", replace(SOFTMAX, epochs=5))
    monkeypatch.setattr(faces, "MLP", replace(faces.MLP, epochs=1))
    real = trained
    brief = BRIEF | {"layer_epochs": 2, "epochs": 2}
    monkeypatch.setattr(autoencoder, "trained", lambda d, generator: real(d, generator=generator, **brief))
    before = torch.get_rng_state()
    first, again, other = (face_model(name, data, index, seed) for seed in (0, 0, 1))
    x = data.x[60:]
    assert torch.equal(forward(first, x), forward(again, x))
    assert not torch.equal(forward(first, x), forward(other, x))
    elsewhere = replace(data, x=torch.cat([data.x[:60], 1 - x]))
    assert torch.equal(forward(face_model(name, elsewhere, index, 0), x), forward(first, x))
    assert torch.equal(before, torch.get_rng_state())
    assert not any(part.training for part in first.modules())


def test_face_models_refuse():
    data = patterns()
    with pytest.raises(ValueError, match="name must be one of softmax, mlp, dae, got 'cnn'"):
        face_model("cnn", data, torch.arange(9), 0)
    with pytest.raises(ValueError, match="y must hold every class 0 .. 3, got none of 3"):
        face_model("softmax", data, (data.y < 3).nonzero().squeeze(1), 0)


@needs_faces
@pytest.mark.slow
def test_softmax_on_the_faces():
    """Five random splits of 7 and 3 images a person."""
    data, errors = load("olivetti"), []
    for seed in range(5):
        index, rest = per_class(data.y, TRAIN["paper"], stream(seed, "faces"))
        model = face_model("softmax", data, index, seed)
        errors.append(error(model, data[rest]))
        assert error(model, data[index]) == 0
    assert max(errors) <= 0.1
    assert sum(errors) / 5 <= 0.075


@needs_faces
@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "dae"])
def test_deeper_nets_on_the_faces(name):
    data = load("olivetti")
    index, rest = per_class(data.y, TRAIN["paper"], stream(0, "faces"))
    model = face_model(name, data, index, 0)
    assert error(model, data[rest]) <= 0.1
    assert error(model, data[index]) <= 0.01
