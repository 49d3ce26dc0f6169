"""What decides every model of a zoo, and the key that follows from it."""

import hashlib
import json
import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from glasslab import nets
from glasslab.data import Data, all_classes
from glasslab.recipe import Factory, Recipe
from glasslab.split import SHARES, Split, shadow_rows, split, subseed, target_rows
from glasslab.store import FORMAT, Plain
from glasslab.train import resolve, rows_at_once

Kind = Literal["shadow", "target"]
Asked = Mapping[Kind, int]  # how many models of each kind
KINDS: tuple[Kind, ...] = ("shadow", "target")


@dataclass(frozen=True)
class Chunk:
    """Rows of one kind that are trained together and lie in one file."""

    kind: Kind
    index: int
    rows: range

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.index:04}"


@dataclass(frozen=True, eq=False)
class Design:
    """Records, a resolved recipe, a split with its seed; neither how many models nor on which device."""

    data: Data
    recipe: Recipe
    split: Split

    @cached_property
    def pool(self) -> Data:
        return self.data[self.split.pool]

    @cached_property
    def aux(self) -> Data:
        return self.data[self.split.aux]

    @cached_property
    def test(self) -> Data:
        return self.data[self.split.test]

    @cached_property
    def val(self) -> Data | None:
        """Only where the recipe stops early."""
        return self.data[self.split.val] if self.recipe.patience else None

    def part(self, on: str | Data) -> Data:
        """The records of that name, or the caller's own. Raises ValueError where these do not fit."""
        named = {"pool": self.pool, "aux": self.aux, "test": self.test}
        if isinstance(on, Data):
            need, got = ((data.shape, data.classes) for data in (self.data, on))
            if need != got:
                raise ValueError(f"on must be records of (shape, classes) {need}, got {got}")
            return on
        if on not in named:
            raise ValueError(f"on must be one of {', '.join(named)}, or Data, got {on!r}")
        return named[on]

    @cached_property
    def head(self) -> Plain:
        """The manifest's lines about what was trained, the key among them."""
        parts = {name: _ids(getattr(self.split, name)) for name in SHARES}
        return {
            "format": FORMAT,
            "key": self.key,
            "recipe": self.recipe.key(),
            "own_net": self._own_net,
            "data": {
                "name": self.data.name,
                "digest": self.data.digest,
                "records": len(self.data),
                "shape": list(self.data.shape),
                "classes": self.data.classes,
            },
            "seed": self.split.seed,
            "split": {"shares": SHARES, "records": self.split.records, "duplicates": self.split.duplicates}
            | parts,
        }

    @cached_property
    def key(self) -> str:
        """SHA-256 over format, recipe, a net of the user's, content of the records, split settings, seed."""
        parts = {
            "format": FORMAT,
            "recipe": self.recipe.key(),
            "own_net": self._own_net,
            "data": self.data.digest,
            "seed": self.split.seed,
            "split": {"shares": SHARES, "records": self.split.records},
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True, allow_nan=False).encode()).hexdigest()

    def net(self) -> nn.Module:
        """A fresh net, drawn from torch's global generator."""
        return nets.build(self.recipe, self.data.shape, self.data.classes, self._scale)

    def model(self, state: Mapping[str, Tensor]) -> nn.Module:
        """A net with these weights, in eval mode."""
        model = deepcopy(self._template)
        model.load_state_dict(state)
        return model

    @cached_property
    def _template(self) -> nn.Module:
        """The global generator is left as it was."""
        with torch.random.fork_rng(devices=[]):
            return self.net().eval()

    @property
    def bytes_a_model(self) -> int:
        return sum(t.numel() * t.element_size() for t in self._template.state_dict().values())

    def chunks(self, kind: Kind, models: int) -> list[Chunk]:
        """Whole chunks that hold so many models: what is trained never depends on how many were asked for."""
        return [self.chunk(kind, row) for row in range(0, models, rows_at_once(self.recipe))]

    def chunk(self, kind: Kind, row: int) -> Chunk:
        """The chunk that holds this row."""
        size = rows_at_once(self.recipe)
        start = row - row % size
        return Chunk(kind, row // size, range(start, start + size))

    def member(self, kind: Kind, models: int) -> Bool[Tensor, "{models} n"]:
        """Membership rows over the pool."""
        if kind == "target":
            return target_rows(models, len(self.pool), self.split.seed)
        return shadow_rows(models + models % 2, len(self.pool), self.split.seed)[:models]

    def seeds(self, chunk: Chunk) -> list[int]:
        return [subseed(self.split.seed, chunk.kind, "weights", row) for row in chunk.rows]

    @cached_property
    def _scale(self) -> tuple[Tensor, Tensor] | None:
        """Mean and spread over aux."""
        return nets.statistics(self.aux.x) if self.recipe.scale == "standard" else None

    @cached_property
    def _own_net(self) -> str | None:
        """Digest of a net of the user's: its layers with their settings, names and shapes of all it holds."""
        if isinstance(self.recipe.net, str):
            return None
        modules = self._template.named_modules()
        layers = [f"{name} {type(module).__qualname__}({module.extra_repr()})" for name, module in modules]
        held = [f"{name} {tuple(t.shape)} {t.dtype}" for name, t in self._template.state_dict().items()]
        lines = re.sub(r" at 0x\w+", "", "\n".join(layers + held))
        return hashlib.sha256(lines.encode()).hexdigest()


def design(data: Data, recipe: Recipe, *, seed: int, records: int | None, device: str) -> Design:
    """Cuts the data and resolves the recipe. A cap that the pool does not reach is no cap.

    Raises ValueError for a class without a record.
    """
    all_classes(data)
    parts = split(data, seed, records=records)
    if records is not None and len(parts.pool) < records:
        parts = split(data, seed)
    return Design(data, resolve(recipe, data, device), parts)


def reopen(head: Plain, data: Data, net: Factory | None) -> Design:
    """The design that a manifest describes.

    Raises ValueError, saying which, where data or net are not those that the zoo was made with.
    """
    if data.digest != head["data"]["digest"]:
        name, digest = head["data"]["name"], head["data"]["digest"]
        raise ValueError(
            f"data must be {name} of digest {digest[:16]}, got {data.name} of {data.digest[:16]}"
        )
    fields: Plain = {k: tuple(v) if isinstance(v, list) else v for k, v in head["recipe"].items()}
    if head["own_net"] and net is None:
        raise ValueError(f"net must be given for this zoo, it is the user's own {fields['net']}, got None")
    if head["own_net"]:
        fields["net"] = net
    recipe = Recipe(**fields)
    again = Design(data, recipe, split(data, head["seed"], records=head["split"]["records"]))
    if recipe.key()["net"] != head["recipe"]["net"] or again._own_net != head["own_net"]:
        raise ValueError(
            f"net must be {head['recipe']['net']} with the same layers, got {recipe.key()['net']}"
        )
    changed = [name for name in SHARES if again.head["split"][name] != head["split"][name]]
    if changed:
        raise ValueError(f"split must come out as it was written, got another {', '.join(changed)}")
    return again


def rows_digest(member: Bool[Tensor, "m n"]) -> str:
    """Says whether membership rows are the same."""
    return hashlib.sha256(f"{tuple(member.shape)}".encode() + member.numpy().tobytes()).hexdigest()


def _ids(ids: Tensor) -> Plain:
    return {"records": len(ids), "digest": hashlib.sha256(ids.numpy().tobytes()).hexdigest()}


def check_asked(asked: Asked) -> None:
    """Raises ValueError for a number of models below 0, and for an odd number of shadows."""
    for kind, models in asked.items():
        if models < 0 or (kind == "shadow" and models % 2):
            need = "even, and 0 or more" if kind == "shadow" else "0 or more"
            raise ValueError(f"{kind}s must be {need}, got {models}")
