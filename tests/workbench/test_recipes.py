import pytest
import torch

from glasslab import load
from glasslab.data import Data
from glasslab.recipe import Recipe
from glasslab.train import resolve
from workbench.recipes import PAPERS, RECIPES, SIZES, changed, named


def images(side, name="mine", channels=3):
    return Data(torch.rand(20, channels, side, side), torch.arange(20) % 2, 2, name)


def test_every_recipe_builds_its_net():
    """A recipe for a data set has a net that takes its records."""
    binary = Data(torch.rand(60, 446), torch.arange(60) % 30, 30, "binary")
    for (name, net), recipe in RECIPES.items():
        assert recipe.net == net
        data = load("digits") if name == "digits" else images(32) if net == "cnn" else binary
        resolve(recipe, data, "cpu")
    for (_, net), paper in PAPERS.items():
        assert paper.recipe.net == net
        resolve(paper.recipe, images(32), "cpu")


def test_the_usual_net():
    assert named(load("digits"), None, "quick")[0] == RECIPES["digits", "mlp"]
    assert named(images(32), None, "quick")[0].net == "cnn"
    assert named(images(8), None, "standard")[0].net == "mlp"
    assert named(images(32), "resnet9", "quick")[0].net == "resnet9"
    assert named(images(32), "softmax", "quick")[0].net == "softmax"


def test_paper_is_refused_where_none_is_written():
    recipe, queries = named(images(32, "cifar10"), None, "paper")
    assert (recipe.net, queries) == ("wrn28-2", 18)
    with pytest.raises(ValueError, match="size paper is written for cifar10 with wrn28-2.*; got digits"):
        named(load("digits"), None, "paper")
    with pytest.raises(ValueError, match="got cifar10 with cnn"):
        named(images(32, "cifar10"), "cnn", "paper")
    with pytest.raises(ValueError, match="net must be one of softmax, .* got 'cnnn'"):
        named(images(32), "cnnn", "quick")


def test_changes():
    was = Recipe(net="cnn", epochs=5)
    now = changed(was, "lr=1e-3, hidden=64+32,augment=mirror+crop,norm=group")
    assert (now.lr, now.hidden, now.augment, now.norm) == (1e-3, (64, 32), ("mirror", "crop"), "group")
    assert (now.net, now.epochs) == ("cnn", 5)
    assert changed(now, "augment=").augment == ()
    assert changed(was, "") == was


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("epochs=x", "recipe epochs must be int, got 'x'"),
        ("epochs=0", "epochs must be 1 or more, got 0"),
        ("norm=layer", "recipe norm must be batch or group or none, got 'layer'"),
        ("augment=mirror+flip", "got 'flip'"),
        ("speed=9", "recipe must be like epochs=50,lr=0.1, of hidden, .*; got 'speed=9'"),
        ("epochs", "got 'epochs'"),
        ("net=cnn", "got 'net=cnn'"),
    ],
)
def test_wrong_changes_are_refused_in_one_line(line, said):
    with pytest.raises(ValueError, match=said) as caught:
        changed(Recipe(), line)
    assert "\n" not in str(caught.value)


def test_sizes():
    assert (SIZES["quick"].records, SIZES["quick"].shadows, SIZES["quick"].targets) == (2000, 64, 8)
    assert (SIZES["paper"].records, SIZES["paper"].shadows) == (None, 256)
    assert SIZES["quick"].attacks == "default"
    assert SIZES["standard"].attacks == "standard"
    assert [SIZES[name].search for name in ("quick", "standard", "paper")] == [100, 250, 2500]
