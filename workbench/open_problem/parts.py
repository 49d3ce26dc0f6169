"""What takes long: joint signals of each model, one file a model, so that nothing is computed twice."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Final

import torch
from jaxtyping import Float64
from safetensors.torch import load_file, save
from torch import Tensor, nn

from glasslab.design import Kind
from glasslab.store import write
from glasslab.zoo import Zoo
from whitebox.decode import bits, foreign, shares
from whitebox.dual import shaped, solve
from whitebox.gram import Gram, grams, pooled
from workbench.evidence import one_thread
from workbench.open_problem.frozen import Config

Part = Mapping[str, Float64[Tensor, "_"]]
LEAST: Final = 12  # shadows: two a side in each half, and a pair aside


def players(m: int, most: int) -> list[int]:
    """Shadows that play the target for the last weights: whole pairs, from the start of either half."""
    half = m // 2
    each = min(most // 2, half - 2) // 2 * 2  # the last pair lends its gradients to B
    return [*range(each), *range(half, half + each)]


def parts(
    zoo: Zoo, config: Config, folder: Path, tick: Callable[[str, int], None]
) -> tuple[list[Part], list[Part]]:
    """Joint signals of all shadows and of all targets; `tick` hears what is next and how many are left.

    `dual`, `shape` and `shadow_dual`, `shadow_shape`; of targets and players `decode_i` and `shadow_decode_i`
    for each law too; and what either kind took, in seconds.
    """
    m, t = len(zoo.shadow_member), len(zoo.target_member)
    play = players(m, config.players)
    lent: list[Gram] = []

    def reference() -> Gram:
        if not lent:
            lent.append(_gram(zoo, "shadow", m - 1))
        return lent[0]

    todo: list[tuple[Kind, int]] = [*(("target", a) for a in range(t)), *(("shadow", i) for i in range(m))]
    found = []
    with one_thread():
        for k, (kind, i) in enumerate(todo):
            tick(f"{kind} {i}", len(todo) - k)
            decoded = kind == "target" or i in play
            found.append(_part(zoo, kind, i, config, folder, reference, decoded))
    return found[t:], found[:t]


def _part(
    zoo: Zoo,
    kind: Kind,
    i: int,
    config: Config,
    folder: Path,
    reference: Callable[[], Gram],
    decoded: bool,
) -> Part:
    """From its file, or anew."""
    numbers = {k: v for k, v in asdict(config).items() if k not in ("players", "C", "stacker")}
    about = {"zoo": zoo.key, "config": numbers, "kind": kind, "i": i, "decoded": decoded}
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    place = folder / "parts" / f"{kind}-{i}-{key}.safetensors"
    if place.exists():
        return load_file(place)
    z = zoo.answers(kind)[i, :, 0]
    g = shares(z, zoo.pool.y, zoo.recipe.weight_decay, round(len(zoo.pool) / 2))
    made: dict[str, Tensor] = {}
    other = foreign(reference(), z, zoo.pool.y)
    for name, of in (("", None), ("shadow_", other)):
        start = perf_counter()
        of = of or _gram(zoo, kind, i)
        made[f"{name}dual"] = solve(of, config.ridge)
        made[f"{name}shape"] = shaped(of, g, config.shape_ridge)
        if decoded:
            made |= {f"{name}decode_{j}": bits(of, g, law) for j, law in enumerate(config.laws)}
        made[f"{name}seconds"] = torch.tensor([perf_counter() - start], dtype=torch.float64)
    write(place, [save(made)])
    return made


def _gram(zoo: Zoo, kind: Kind, i: int) -> Gram:
    """Of all dense layers together."""
    model = zoo.shadow(i) if kind == "shadow" else zoo.target(i)
    dense = tuple(name for name, m in model.named_modules() if isinstance(m, nn.Linear))
    x, y = zoo.pool.x.to(zoo.device), zoo.pool.y.to(zoo.device)
    whole = pooled([g for _, g in grams(model, x, y, layers=dense)])
    return whole._replace(G=whole.G.cpu(), b=whole.b.cpu())
