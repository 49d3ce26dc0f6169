"""`glasslab synthesize`: makes records by asking a target, or from aux, and says how good they are.

In the folder: synthetic.safetensors (x, y, confidence), synthesize.json (manifest, a row a class, reasons,
quality), and the blocks, from which a second run of the same command goes on.
"""

import json
import os
import shlex
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import save_file

from glasslab.results import provenance, strict
from glasslab.zoo import Zoo
from synthesis.quality import overlap, quality
from synthesis.report import Quality
from synthesis.synthetic import Synthetic
from workbench import steps
from workbench.experiments.runs import net
from workbench.options import SynthesizeOptions
from workbench.play import floored
from workbench.steps import Stopped
from workbench.synthesising import blocks, making, printed
from workbench.synthesising.plan import Plan, planned

FILES = ("synthetic.safetensors", "synthesize.json")


def synthesize(options: SynthesizeOptions) -> int:
    """Runs it; 0. Raises ValueError, before any training, for what cannot be."""
    start, plan = perf_counter(), planned(options)
    zoo = steps.trained(plan.order)
    method = plan.named(zoo.key)
    when, data = f"{datetime.now():%Y%m%d-%H%M%S}", zoo.data.name.split(":")[0]
    folder = options.out or Path("runs") / f"{when}-synthesize-{data}-{net(zoo)}"
    folder.mkdir(parents=True, exist_ok=True)
    notes: list[str] = []
    try:
        with floored(notes):
            held = making.make(plan, zoo, folder, method)
        made = blocks.merged(held, plan.labels(torch.arange(plan.n)), plan.aux.shape, method)
        member = zoo.target_member[0]
        # for the evaluator alone: no method is given these records
        found = quality(made, zoo.pool[member], zoo.pool[~member], seed=options.seed)
    except KeyboardInterrupt:
        left = len(blocks.missing(blocks.held(folder, method), plan.n))
        kept = f"{plan.n - left:,} of {plan.n:,} records are finished and kept in {folder}"
        raise Stopped(f"{kept}; with --out {folder} the same command goes on") from None
    manifest = _manifest(plan, zoo, made)
    manifest |= {"notes": notes, "making_seconds": sum(block.seconds for block in held)}
    manifest["seconds"] = perf_counter() - start
    _save(folder, made, manifest, found)
    console = Console(width=None if sys.stdout.isatty() else steps.WIDTH)
    console.print(printed.table(made))
    console.print(printed.report(made, manifest, found), soft_wrap=True)
    steps.say(f"{folder}: {', '.join(FILES)}")
    return 0


def _manifest(plan: Plan, zoo: Zoo, made: Synthetic) -> dict[str, Any]:
    options, asked, records = plan.options, int(made.queries.sum()), len(made.y)
    command = shlex.join(["glasslab", *sys.argv[1:]])
    learned = plan.learned
    return provenance(seed=options.seed, device=zoo.device, command=command) | {
        "method": made.method,
        "settings": plan.settings,
        "data": {"name": zoo.data.name, "digest": zoo.data.digest, "classes": zoo.data.classes},
        "zoo": zoo.key,
        "recipe": zoo.recipe.key(),
        "net": net(zoo),
        "accuracy": zoo.accuracy("target"),
        "wanted": plan.n,
        "made": records,
        "queries": asked,
        "queries_per_record": asked / plan.n,
        "queries_per_record_made": asked / records if records else None,
        "checks": [] if learned is None else overlap(learned, zoo.pool[zoo.target_member[0]]),
    }


def _save(folder: Path, made: Synthetic, manifest: dict[str, Any], found: Quality) -> None:
    """Each file whole or not at all."""
    document = {
        "manifest": manifest,
        "rows": made.per_class(),
        "reasons": made.reasons(),
        "hard": made.hard(),
        "quality": found.values(),
        "doubts": found.doubts(),
    }
    tensors = {name: getattr(made, name).contiguous() for name in ("x", "y", "confidence")}
    words = {"name": f"synthetic:{made.method}", "classes": str(manifest["data"]["classes"])}
    with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as scratch:
        parts = [Path(scratch) / name for name in FILES]
        save_file(tensors, parts[0], metadata=words)
        parts[1].write_text(json.dumps(strict(document), indent=1, allow_nan=False) + "\n")
        for part in parts:
            os.replace(part, folder / part.name)
