"""Hill climbing on image targets: where it works, and where it finds what the net calls the class.

    python -m benchmark.synthesis_images

Target 0 of fixed zoos: digits of 8x8 pixels (mlp), Fashion-MNIST of 28x28 and colour images of 32x32 (cnn);
the last two are read from GLASSLAB_DATA. From uniform noise, with pixels or blocks of 4x4 as features, and
from public images (aux). `success`: share of wanted records that were made; `told`: how often the better of
two classifiers tells them from real ones, 1 = off the manifold. The density is the mean pixel.
"""

from collections.abc import Mapping
from time import perf_counter
from typing import Any

import tyro
from torch import Tensor

from benchmark import record
from benchmark.zoos import ZOOS
from glasslab.oracle import Oracle
from glasslab.zoo import Zoo
from synthesis.features import pixel
from synthesis.hillclimb import hillclimb
from synthesis.quality import quality
from synthesis.synthetic import labels
from workbench.evidence import one_thread

Row = dict[str, Any]
SETS: Mapping[str, int] = {"digits": 200, "fashion_cnn": 50, "colour_cnn": 50}  # and wanted records
CONF = (0.2, 0.8)
MOST = {"digits": 1000}  # queries a record; else 300


def rows(name: str, wanted: int, seed: int) -> list[Row]:
    """One row a way to start and a threshold."""
    zoo = ZOOS[name].zoo(seed, targets=4 if name != "digits" else None)
    c, h, w = zoo.pool.shape
    ways: dict[str, tuple[int, str | Tensor]] = {"noise": (1, "random"), "public images": (1, zoo.aux.x)}
    if h % 4 == 0:
        ways["noise, blocks of 4x4"] = (4, "random")
    out = []
    for way, (patch, start) in ways.items():
        for conf_min in CONF:
            with one_thread():
                out.append(row(zoo, name, wanted, way, patch, (c, h, w), start, conf_min, seed))
            say(out[-1])
    return out


def row(
    zoo: Zoo,
    name: str,
    wanted: int,
    way: str,
    patch: int,
    shape: tuple[int, int, int],
    start: Any,
    conf_min: float,
    seed: int,
) -> Row:
    """What was made, in how many queries, and how far from real images it is."""
    oracle, begun = Oracle(zoo.target(0)), perf_counter()
    made = hillclimb(
        oracle,
        labels(wanted, zoo.pool.classes),
        [pixel(patch, shape)],
        shape=shape,
        conf_min=conf_min,
        iter_max=MOST.get(name, 300),
        start=start,
        seed=seed,
    )
    seconds = perf_counter() - begun
    member = zoo.target_member[0]
    found: Row = {
        "data": name,
        "start": way,
        "conf_min": conf_min,
        "wanted": wanted,
        "success": len(made.x) / wanted,
        "queries_a_record": oracle.queries / max(len(made.x), 1),
        "reasons": made.reasons(),
        "seconds": seconds,
    }
    if not len(made.x):
        return found | {"told": None, "density": None, "density_real": None, "confidence": None}
    seen = quality(made, zoo.pool[member], zoo.pool[~member], seed=seed)
    told = seen.two_sample
    return found | {
        "told": None if told is None else told.best.value,
        "density": None if seen.density is None else seen.density.synthetic,
        "density_real": None if seen.density is None else seen.density.real,
        "confidence": None if seen.confidence is None else seen.confidence.mean,
        "doubts": seen.doubts(),
    }


def main(only: tuple[str, ...] = (), seed: int = 0) -> None:
    """Runs all sets (or `only` those named), writes results/synthesis_images.json when all ran."""
    found = [line for name, n in SETS.items() if not only or name in only for line in rows(name, n, seed)]
    if not only:
        figures = {}
        for line in found:
            way = line["start"].replace(" ", "_").replace(",", "")
            for key in ("success", "told"):
                if line[key] is not None:
                    figures[f"{line['data']}_{way}_{line['conf_min']}_{key}"] = line[key]
        record.write(
            "synthesis_images", f"python -m benchmark.synthesis_images --seed {seed}", seed, figures, found
        )


def say(line: Row) -> None:
    print(
        ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in line.items()), flush=True
    )


if __name__ == "__main__":
    tyro.cli(main)
