"""What training moved: weights less those of a reference, along the gradient of the record.

MATT: Sablayrolles et al. 2019, arXiv:1908.11229. The attacker has the weights, and a reference theta_r that
was trained without the records, say on aux. Score: -(theta - theta_r)' grad loss(theta_r, x).
Displacement is ours. The attacker has shadows, and theta_0, the start of each model's training. Signal of a
layer: <J, B^-1 (theta - theta_0) A^-1>, J = grad phi, A and B the Kronecker factors of grad loss over aux;
score: how much likelier the sum over layers is under a record's IN shadows than under its OUT ones.
Both read weights one by one, which takes coordinates that mean the same in both. Higher = member.
"""

import copy
import warnings
from collections.abc import Sequence
from typing import Final, Literal

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Generator, Tensor, nn
from torch.nn.functional import logsigmoid

from glasslab import nets
from glasslab.checks import Floored
from glasslab.data import Data
from glasslab.likelihood import Variance, fit, ratio
from glasslab.recipe import Recipe
from glasslab.signals import phi
from glasslab.train import resolve, train
from whitebox.gradients import check_eval, chosen, contract, owners
from whitebox.hooks import chunks, outputs, watch
from whitebox.whitened import whitened

AMPLE: Final = 10  # records of aux for each one in training, below which theta_r's own noise is the signal


def matt(
    reference: nn.Module,
    model: nn.Module,
    x: Float[Tensor, "n *d"],
    y: Int[Tensor, "n"],
    *,
    shared: bool = False,
    n_aux: int | None = None,
    n_train: int | None = None,
    memory: str = "512MiB",
) -> Float64[Tensor, "n"]:
    """First-order drop of the loss from the reference to the model, in nats.

    The weights must be comparable: of one dense layer (a convex problem), or `shared=True`, by which the
    caller says that both nets started from the same weights. Where `n_aux`, the records that the reference
    learned, is less than 10 `n_train`, the model's own, a Floored warning says so.
    Raises ValueError on a model in training mode, nets of different parameters, deeper nets unless shared,
    and single layers that scale their records differently.
    """
    moved = _moved(model, reference, "reference")
    names = owners(model)
    if not shared:
        if len(names) != 1 or not isinstance(model.get_submodule(names[0]), nn.Linear):
            raise ValueError(
                "shared must be True unless model is one dense layer (weights of independently initialised "
                f"networks have no common coordinates; see align), got layers {list(names)}"
            )
        if any(not torch.equal(a, b) for a, b in zip(model.buffers(), reference.buffers(), strict=True)):
            raise ValueError("reference must scale its records as model does, got other buffers")
    if n_aux is not None and n_train is not None and n_aux < AMPLE * n_train:
        text = f"reference from {n_aux} of {AMPLE * n_train} records wanted: its own noise is in every score"
        warnings.warn(text, Floored, stacklevel=2)
    slope = contract(reference, x, y, moved, of="phi", memory=memory).sum(1)
    parts = chunks(reference, x, y, memory, outputs(reference, x, y))
    seen = [(watch(reference, (), rows, labels).z, labels) for rows, labels in parts]
    log_share = torch.cat([logsigmoid(-phi(z, labels)) for z, labels in seen]).to(x.device)
    return log_share.exp() * slope


def reference_on(
    aux: Data, recipe: Recipe, generator: Generator, *, init: nn.Module | None = None, val: Data | None = None
) -> nn.Module:
    """A net trained on aux with the target's recipe, in eval mode; from `init` where it is given.

    Scaled by aux, or as `init` is. `val` is for recipes with patience. Raises ValueError as training does.
    """
    recipe = resolve(recipe, aux, aux.x.device)
    scale = nets.statistics(aux.x) if recipe.scale == "standard" else None

    def make() -> nn.Module:
        return (
            nets.build(recipe, aux.shape, aux.classes, scale) if init is None else copy.deepcopy(init).train()
        )

    seed = int(torch.randint(2**31 - 1, (1,), generator=generator))
    member = torch.ones(1, len(aux), dtype=torch.bool)
    state = train(make, recipe, aux.x, aux.y, member, [seed], val=val, device=aux.x.device)
    with torch.random.fork_rng(devices=[]):
        model = make()
    model.load_state_dict({name: t[0] for name, t in state.items()})
    return model.to(aux.x.device).eval()


def displacement(
    s: Float[Tensor, "n *L"],
    S: Float[Tensor, "m n *L"],
    member: Bool[Tensor, "m n"],
    *,
    variance: Variance = "auto",
) -> Float64[Tensor, "n"]:
    """log N(s | IN) - log N(s | OUT) in nats: s are `displaced` of the target, S those of the shadows.

    Each shadow's are measured from its own start, with the same aux as the target's. Layers are summed first.
    `variance` as in `glasslab.likelihood.fit`. Raises ValueError where a record has too few shadows.
    """
    s, S = s.double().reshape(len(s), -1).sum(1), S.double().reshape(*S.shape[:2], -1).sum(2)
    return ratio(s, fit(S, member, variance=variance))


def displaced(
    model: nn.Module,
    start: nn.Module,
    x: Float[Tensor, "n *d"],
    y: Int[Tensor, "n"],
    aux: Data,
    *,
    layers: Sequence[str] | None = None,
    linearise: Literal["end", "mean"] = "end",
    ridge: float = 0.05,
    memory: str = "512MiB",
) -> Float64[Tensor, "n L"]:
    """<J, B^-1 (theta - theta_0) A^-1>, one column a layer; `start` holds theta_0.

    J is taken at theta, or with "mean" as the average of theta's and theta_0's. `ridge` is added to both
    factors in units of their mean eigenvalue. Layers without factors (norms, embeddings) are divided by their
    mean squared gradients. Low-rank adapters must be merged into their layers first: their product has a
    meaning, its factors have none. Raises ValueError as `contract` does, and on nets of different parameters.
    """
    if linearise not in ("end", "mean"):
        raise ValueError(f"linearise must be 'end' or 'mean', got {linearise!r}")
    if not ridge > 0:  # the deltas of the last layer sum to 0 over classes: its B has no inverse
        raise ValueError(f"ridge must be above 0, got {ridge}")
    moved = _moved(model, start, "start")
    V = whitened(model, moved, aux, chosen(model, layers, x), ridge=ridge, memory=memory)
    end = contract(model, x, y, V, of="phi", memory=memory)
    return end if linearise == "end" else (end + contract(start, x, y, V, of="phi", memory=memory)) / 2


def _moved(model: nn.Module, reference: nn.Module, name: str) -> dict[str, Tensor]:
    """theta less the reference's, by parameter. Raises ValueError where the two nets differ."""
    check_eval(model)
    check_eval(reference)
    theta, other = dict(model.named_parameters()), dict(reference.named_parameters())
    if {k: p.shape for k, p in theta.items()} != {k: p.shape for k, p in other.items()}:
        raise ValueError(f"{name} must have the parameters of model, {list(theta)}, got {list(other)}")
    return {k: p.detach().double() - other[k].detach().to(p.device).double() for k, p in theta.items()}
