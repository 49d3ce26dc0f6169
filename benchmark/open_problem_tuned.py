"""Do weights say more than outputs where all models are fine-tuned from one net?

Every target and shadow starts from one net, which has learned 4,000 records of Fashion-MNIST that are in no
pool, aux or test. Signals read the way from the start to the end: `displacement` (its likelihood ratio over
shadows), `matt`, and `dual` and `decode` on theta - c theta_0, c what weight decay leaves of the start.
"""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from time import process_time
from typing import Final

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from benchmark.invert import say
from benchmark.open_problem_rows import Row, Scores, kept, rmia_online, table
from benchmark.zoos import fashion
from blackbox import bavaria
from glasslab import nets
from glasslab.data import Data
from glasslab.datasets import load
from glasslab.likelihood import fit, ratio
from glasslab.recipe import Factory, Recipe
from glasslab.schedule import rate
from glasslab.signals import phi
from glasslab.split import stream
from glasslab.store import checksum, write
from glasslab.zoo import Zoo
from whitebox.decode import bits, shares
from whitebox.displacement import displaced, displacement, matt, reference_on
from whitebox.dual import by_shadows, solve
from whitebox.gradients import contract, owners
from whitebox.gram import Gram, grams, pooled
from whitebox.kronecker import logits
from whitebox.stacked import fit_stack
from workbench.evidence import one_thread
from workbench.open_problem.frozen import W

SEEDS: Final = (0, 1, 2)
PUBLIC: Final = (20_000, 24_000)  # records of Fashion-MNIST, after those of `fashion`
POOL, SHADOWS, TARGETS = 2000, 32, 16
MLP: Final = Recipe(net="mlp", hidden=(256,), batch=32, weight_decay=5e-4, precision="float32")
LEARN: Final = replace(MLP, epochs=40, lr=0.05)  # 20 passes: an epoch has steps for half of the records
TUNE: Final = replace(MLP, epochs=15, lr=0.02)  # 15 passes over the half that a model learns
COLUMNS: Final = ("end_1", "end_2", "mean_1", "mean_2", "matt", "dual")  # of Moved, for two layers


def public() -> Data:
    """What the start has learned."""
    return replace(load("fashion_mnist")[torch.arange(*PUBLIC)], name="fashion_mnist")


def pretrained(folder: Path) -> Path:
    """The start's weights, trained once."""
    path = folder / "start.safetensors"
    if not path.exists():
        net = reference_on(public(), LEARN, stream(SEEDS[0], "public"))
        write(path, [save(net.state_dict())])
    return path


def from_(state: Mapping[str, Tensor]) -> Factory:
    """A net factory whose fresh nets all have these weights."""

    def started(shape: tuple[int, ...], classes: int) -> nn.Module:
        net = nets.build(TUNE, shape, classes)
        net.load_state_dict(state)
        return net

    return started


def tuned(start: Path, folder: Path, seed: int, shadows: int = SHADOWS, targets: int = TARGETS) -> Zoo:
    """The zoo of fine-tuned models, in a folder named by the start, of which its key does not tell."""
    recipe = replace(TUNE, net=from_(load_file(start)), hidden=())
    root = folder / "zoos" / checksum(start)[:16]
    return Zoo.train(
        fashion(),
        recipe,
        shadows=shadows,
        targets=targets,
        seed=seed,
        records=POOL,
        root=root,
        device="cpu",
    )


def kept_share(recipe: Recipe, n: int) -> float:
    """What weight decay leaves of the first weights after training on half of n records.

    A step of rate eta moves weights by eta / (1 - momentum) of the gradient in the long run.
    """
    steps = recipe.epochs * math.ceil(n / 2 / recipe.batch)
    pace = recipe.weight_decay / (1 - recipe.momentum)
    return math.prod(1 - rate(recipe, step, steps) * pace for step in range(steps))


@dataclass(frozen=True)
class Moved:
    """Signals of the way from the start, one column for each of COLUMNS, and with `decoded` one more.

    theta - c theta_0, c as of `kept_share`, is the sum over members of g_i J_i with
    g_i = (1 - c) / (n lambda) sigma(-phi_i), J and sigma averaged over training. J is taken at the end, sigma
    as the mean of start and end.
    """

    start: nn.Module
    aux: Data
    c: float
    weight_decay: float
    n_train: int
    decoded: bool = False

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        of = pooled(self.grams(model, x, y))
        columns = [displaced(model, self.start, x, y, self.aux, linearise=way) for way in ("end", "mean")]
        one = [matt(self.start, model, x, y, shared=True), solve(of, W.ridge)]
        one += [bits(of, self.weight(x, y, logits(model, x, y)), W.laws[0])] if self.decoded else []
        return torch.cat([*columns, torch.stack(one, 1)], 1)

    def grams(self, model: nn.Module, x: Tensor, y: Tensor) -> list[Gram]:
        """Of each layer, with theta - c theta_0 in the place of theta."""
        first = dict(self.start.named_parameters())
        ends = {k: p.detach().double() for k, p in model.named_parameters()}
        moved = {k: end - self.c * first[k].detach().double() for k, end in ends.items()}
        b = dict(zip(owners(model), contract(model, x, y, moved).T, strict=True))

        def square(name: str) -> float:
            return sum(float(v.square().sum()) for k, v in moved.items() if k.rpartition(".")[0] == name)

        return [g._replace(b=b[name], square=square(name)) for name, g in grams(model, x, y)]

    def weight(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """g, for a model that answers z."""
        ends = [shares(each, y, self.weight_decay, self.n_train) for each in (logits(self.start, x, y), z)]
        return (1 - self.c) * torch.stack(ends).mean(0)


def tuned_scores(zoo: Zoo, start: Path) -> Scores:
    """Every attack of the fine-tuning table on one zoo."""
    recipe, y, member = zoo.recipe, zoo.pool.y, zoo.shadow_member
    net = from_(load_file(start))(zoo.pool.shape, zoo.pool.classes).eval()
    c = kept_share(recipe, len(y))
    signal = Moved(net, zoo.aux, c, recipe.weight_decay, round(len(y) / 2))
    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        S = dict(zip(COLUMNS, zoo.signal(signal, of="shadow").unbind(1), strict=True))
        told = zoo.signal(replace(signal, decoded=True), of="target").unbind(1)
        s = dict(zip((*COLUMNS, "decode"), told, strict=True))
        S["phi"], s["phi"] = (phi(zoo.answers(kind)[:, :, 0], y) for kind in ("shadow", "target"))
        found: Scores = {
            "loss": s["phi"],
            "lira": ratio(s["phi"], fit(S["phi"], member, variance="shrunk")),
            "rmia": rmia_online(zoo),
            "bavaria": bavaria.bavaria(s["phi"], S["phi"], member),
        }
        for name, way in (("displacement", "end"), ("displacement-mean", "mean")):
            pair = [torch.stack([v[f"{way}_1"], v[f"{way}_2"]], -1) for v in (s, S)]
            found[name] = torch.stack(
                [displacement(one, pair[1], member, variance="shrunk") for one in pair[0]]
            )
        for name in ("matt", "dual"):
            found |= {name: s[name], f"{name}-ratio": by_shadows(s[name], S[name], member)}
        found["decode"] = s["decode"]
        found |= by_answers(zoo, signal, s["phi"], S["phi"])
        for name, used in (("stacked", ("phi", "end_1", "end_2")), ("stacked-phi", ("phi",))):
            stack = fit_stack({k: S[k] for k in used}, member, stream(zoo.seed, "stack"))
            found[name] = stack({k: s[k] for k in used})
        found["control-target"] = found["displacement"].roll(1, 0)
    return {name: v.double().contiguous() for name, v in found.items()}


def by_answers(zoo: Zoo, signal: Moved, s: Tensor, S: Tensor) -> Scores:
    """`dual` and `decode` by an attacker who holds the start and own models, and asks the target.

    J is the last shadow's, and how far phi has moved from the start's stands for <J, theta - theta_0>.
    """
    x, y, z = zoo.pool.x, zoo.pool.y, zoo.answers("target")[:, :, 0]
    layers = signal.grams(zoo.shadow(len(S) - 1), x, y)
    G, square = torch.stack([g.G for g in layers]).sum(0), sum(g.square for g in layers)
    first, size = phi(logits(signal.start, x, y), y), sum(g.size for g in layers)
    moved = [[Gram(G, one - first, square, size) for one in some] for some in (s, S)]
    dual_s, dual_S = (torch.stack([solve(of, W.ridge) for of in some]) for some in moved)
    decoded = [bits(of, signal.weight(x, y, each), W.laws[0]) for of, each in zip(moved[0], z, strict=True)]
    found = {"dual-answers": dual_s, "dual-answers-ratio": by_shadows(dual_s, dual_S, zoo.shadow_member)}
    return found | {"decode-answers": torch.stack(decoded)}


def finetuning(folder: Path) -> list[Row]:
    """Rows of all seeds together, of each seed, and what the zoos are."""
    start, scores, truth, about = pretrained(folder), list[Scores](), list[Tensor](), list[Row]()
    for seed in SEEDS:
        zoo = tuned(start, folder, seed)
        begun = process_time()
        scores.append(kept(folder / f"scores-{seed}.safetensors", lambda zoo=zoo: tuned_scores(zoo, start)))  # type: ignore[misc]
        truth.append(zoo.target_member)
        about.append({"table": "about", "seed": seed, "zoo": zoo.key, "n_neg": int((~truth[-1]).sum())})
        about[-1] |= zoo.accuracy() | {"start_kept": kept_share(zoo.recipe, POOL)}
        about[-1] |= {"signals_seconds": process_time() - begun}
        say(about[-1])
    return table(scores, truth, SEEDS, "lira") + about
