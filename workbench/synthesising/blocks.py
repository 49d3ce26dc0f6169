"""Blocks of wanted records on disk: what is finished is never made again, and no answer is asked for twice.

A file a block, in the order in which they were made. A record that was interrupted, or that the budget
ended, stands in its block with the queries it took, and may stand in a later one again.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Int
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from synthesis.synthetic import Synthetic

FINAL = ("sampled", "exhausted", "invalid")  # whoever ended so is not begun again
NAMES = ("x", "y", "confidence", "wanted", "success", "queries")


@dataclass(frozen=True, eq=False)
class Block:
    """`ids` are the places of its records among all that are wanted."""

    ids: Int[Tensor, "b"]
    made: Synthetic
    seconds: float

    @property
    def queries(self) -> int:
        return int(self.made.queries.sum())

    @property
    def final(self) -> Bool[Tensor, "b"]:
        return torch.tensor([reason in FINAL for reason in self.made.reason])


def held(folder: Path, method: str) -> list[Block]:
    """All blocks of this method and these settings, in order."""
    return [_read(path) for path in sorted(folder.glob(f"{_stem(method)}-*.safetensors"))]


def keep(folder: Path, method: str, number: int, block: Block) -> None:
    """Whole or not at all."""
    made, path = block.made, folder / f"{_stem(method)}-{number:05d}.safetensors"
    tensors = {name: getattr(made, name).contiguous().clone() for name in NAMES} | {"ids": block.ids}
    words = {"reason": json.dumps(made.reason), "method": made.method, "seconds": repr(block.seconds)}
    scratch = path.with_suffix(".new")
    save_file(tensors, scratch, metadata=words)
    os.replace(scratch, path)


def missing(blocks: list[Block], n: int) -> Int[Tensor, "b"]:
    """Which of n wanted records are to be made, or made again."""
    final = torch.zeros(n, dtype=torch.bool)
    for block in blocks:
        ids = block.ids[block.final]
        final[ids[ids < n]] = True
    return (~final).nonzero().squeeze(1)


def merged(blocks: list[Block], labels: Int[Tensor, "n"], shape: tuple[int, ...], method: str) -> Synthetic:
    """All n wanted records: how each ended at last, and the queries of all its beginnings.

    `labels`: of those that were never begun, for want of a budget.
    """
    n = len(labels)
    wanted, queries, reason = labels.clone(), torch.zeros(n, dtype=torch.long), ["budget"] * n
    success = torch.zeros(n, dtype=torch.bool)
    x, confidence = torch.zeros(n, *shape), torch.zeros(n, dtype=torch.float64)
    for block in blocks:
        made, inside = block.made, block.ids < n
        ids = block.ids[inside]
        wanted[ids], success[ids] = made.wanted[inside], made.success[inside]
        queries[ids] += made.queries[inside]
        for i in inside.nonzero().squeeze(1).tolist():
            reason[int(block.ids[i])] = made.reason[i]
        good, few = ids[made.success[inside]], inside[made.success]
        x[good], confidence[good] = made.x[few], made.confidence[few]
    return Synthetic(
        x=x[success],
        y=wanted[success],
        confidence=confidence[success],
        wanted=wanted,
        success=success,
        queries=queries,
        reason=tuple(reason),
        method=method,
    )


def _stem(method: str) -> str:
    return method.replace(":", "-")


def _read(path: Path) -> Block:
    with safe_open(path, "pt") as file:
        words = file.metadata()
        tensors = {name: file.get_tensor(name) for name in (*NAMES, "ids")}
    ids = tensors.pop("ids")
    made = Synthetic(**tensors, reason=tuple(json.loads(words["reason"])), method=words["method"])
    return Block(ids, made, float(words["seconds"]))
