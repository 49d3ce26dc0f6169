"""What takes long: joint signals of each model, one file a model, so that nothing is computed twice."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter

import torch
from jaxtyping import Float64
from safetensors.torch import load_file, save
from torch import Tensor

from glasslab.design import Kind
from glasslab.store import write
from glasslab.zoo import Zoo
from whitebox.decode import bits, foreign, shares
from whitebox.dual import solve
from whitebox.gram import Gram, grams, pooled
from workbench.evidence import one_thread
from workbench.open_problem.frozen import Config

Part = Mapping[str, Float64[Tensor, "n"]]
RIDGE = 0.01
LEAST = 12  # shadows: two a side in each half, and a pair aside


def players(m: int, most: int) -> list[int]:
    """Shadows that play the target: whole pairs, from the start of either half of the rows."""
    half = m // 2
    each = min(most // 2, half - 2) // 2 * 2  # the last pair lends its gradients
    return [*range(each), *range(half, half + each)]


def parts(
    zoo: Zoo, config: Config, folder: Path, tick: Callable[[str, int], None]
) -> tuple[list[Part], list[Part]]:
    """Joint signals of the players and of the targets; `tick` hears what is next and how many are left.

    A model's signals are `decode_i` and `shadow_i` for each law, `dual`, and the seconds of either kind.
    """
    m, t = len(zoo.shadow_member), len(zoo.target_member)
    play = players(m, config.players)
    lent: list[Gram] = []

    def reference() -> Gram:
        if not lent:
            lent.append(_gram(zoo, "shadow", m - 1, config))
        return lent[0]

    todo: list[tuple[Kind, int]] = [*(("shadow", i) for i in play), *(("target", a) for a in range(t))]
    found = []
    with one_thread():
        for k, (kind, i) in enumerate(todo):
            tick(f"{kind} {i}", len(todo) - k)
            found.append(_part(zoo, kind, i, config, folder, reference))
    return found[: len(play)], found[len(play) :]


def _part(zoo: Zoo, kind: Kind, i: int, config: Config, folder: Path, reference: Callable[[], Gram]) -> Part:
    """From its file, or anew."""
    about = {"zoo": zoo.key, "config": asdict(config) | {"players": 0, "C": 0}, "kind": kind, "i": i}
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    place = folder / "parts" / f"{kind}-{i}-{key}.safetensors"
    if place.exists():
        return load_file(place)
    z = zoo.answers(kind)[i, :, 0]
    n_train = round(len(zoo.pool) / 2)
    g = shares(z, zoo.pool.y, zoo.recipe.weight_decay, n_train)
    other = foreign(reference(), z, zoo.pool.y)
    start = perf_counter()
    own = _gram(zoo, kind, i, config)
    made = {f"decode_{j}": bits(own, g, law) for j, law in enumerate(config.laws)}
    white = perf_counter() - start
    made["dual"] = solve(own, RIDGE)
    del own
    start = perf_counter()
    made |= {f"shadow_{j}": bits(other, g, law) for j, law in enumerate(config.laws)}
    black = perf_counter() - start
    seconds = {"white_seconds": white, "black_seconds": black}
    made |= {name: torch.tensor([v], dtype=torch.float64) for name, v in seconds.items()}
    place.parent.mkdir(parents=True, exist_ok=True)
    write(place, [save(made)])
    return made


def _gram(zoo: Zoo, kind: Kind, i: int, config: Config) -> Gram:
    model = zoo.shadow(i) if kind == "shadow" else zoo.target(i)
    x, y = zoo.pool.x.to(zoo.device), zoo.pool.y.to(zoo.device)
    found: Sequence[Gram] = [g for _, g in grams(model, x, y, layers=config.layers)]
    whole = pooled(found)
    return whole._replace(G=whole.G.cpu(), b=whole.b.cpu())
