"""Train once, keep on disk, find again by content: the models that every attack is run on."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor, nn

from glasslab.answers import Signal, logits, masked, values
from glasslab.cache import cached, content, is_frozen
from glasslab.data import Data
from glasslab.datasets import load
from glasslab.design import Asked, Design, Kind, check_asked, design, reopen
from glasslab.growth import check_rows, grow, missing
from glasslab.masks import Mask
from glasslab.recipe import Factory, Recipe
from glasslab.signals import SIGNALS
from glasslab.split import Split
from glasslab.store import Plain, Store, root_of
from glasslab.train import pick_device


@dataclass(frozen=True, eq=False)
class Zoo:
    """m shadows of a balanced design and t targets outside it, on disk; knows who trained on what.

    `memo` keeps what was made of this zoo in this process, for who would otherwise make it again.
    """

    design: Design = field(repr=False)
    store: Store
    device: str
    shadow_member: Bool[Tensor, "m n"] = field(repr=False)
    target_member: Bool[Tensor, "t n"] = field(repr=False)
    memo: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def train(
        cls,
        data: Data,
        recipe: Recipe,
        *,
        shadows: int = 64,
        targets: int = 8,
        seed: int = 0,
        records: int | None = None,
        root: str | Path | None = None,
        device: str = "auto",
        progress: bool = True,
    ) -> "Zoo":
        """The zoo of these settings: trains what is not on disk, resumes what was interrupted.

        `root` is a folder of zoos (else GLASSLAB_ZOO, else ./zoo), `records` a cap on the pool. Raises
        ValueError for an odd number of shadows, OSError where the disk is full (finished chunks are kept).
        """
        device = pick_device(device)
        plan = design(data, recipe, seed=seed, records=records, device=device)
        store = Store(root_of(root) / plan.key[:16])
        return cls._grown(plan, store, {"shadow": shadows, "target": targets}, device, progress)

    @classmethod
    def open(
        cls, folder: str | Path, data: Data | None = None, net: Factory | None = None, *, device: str = "auto"
    ) -> "Zoo":
        """A zoo from its folder, with the most models that were asked for and trained.

        `data` may be left out where `load` knows it by its name; `net` is for a net of the user's own.
        Raises ValueError where either is not what made the zoo, for a damaged manifest, and for lost models.
        """
        store = Store(Path(folder))
        head = store.manifest()
        plan = reopen(head, load(head["data"]["name"]) if data is None else data, net)
        asked: Asked = {"shadow": 0, "target": 0} | head["asked"]
        lost = [chunk.name for chunk in missing(plan, store, asked)]
        if lost or not any(asked.values()):
            which = f"no {lost[0]}" if lost else "none that was ever finished"
            raise ValueError(f"folder must hold a finished zoo, got {which} in {folder}: train again")
        return cls._of(plan, store, asked, pick_device(device))

    def extend(
        self, shadows: int | None = None, targets: int | None = None, *, progress: bool = True
    ) -> "Zoo":
        """The same zoo with more models; equals one that was trained with so many at once.

        Raises ValueError for fewer than there are.
        """
        held: Asked = {"shadow": len(self.shadow_member), "target": len(self.target_member)}
        wanted: dict[Kind, int | None] = {"shadow": shadows, "target": targets}
        asked = {kind: held[kind] if more is None else more for kind, more in wanted.items()}
        for kind in held:
            if asked[kind] < held[kind]:
                raise ValueError(f"{kind}s must be {held[kind]} or more to extend, got {asked[kind]}")
        return self._grown(self.design, self.store, asked, self.device, progress)

    @property
    def folder(self) -> Path:
        return self.store.folder

    @property
    def key(self) -> str:
        return self.design.key

    @property
    def data(self) -> Data:
        return self.design.data

    @property
    def recipe(self) -> Recipe:
        """Resolved: without "auto"."""
        return self.design.recipe

    @property
    def split(self) -> Split:
        return self.design.split

    @property
    def seed(self) -> int:
        return self.design.split.seed

    @property
    def pool(self) -> Data:
        """The candidates."""
        return self.design.pool

    @property
    def aux(self) -> Data:
        """The attacker's own records, in no model."""
        return self.design.aux

    @property
    def test(self) -> Data:
        return self.design.test

    def member(self, of: Kind) -> Bool[Tensor, "_ n"]:
        return self.shadow_member if of == "shadow" else self.target_member

    def shadow(self, i: int) -> nn.Module:
        """In eval mode, on the zoo's device."""
        return self._model("shadow", i)

    def target(self, a: int) -> nn.Module:
        return self._model("target", a)

    def answers(
        self, of: Kind = "shadow", *, on: str | Data = "pool", queries: int = 1, mask: Sequence[Mask] = ()
    ) -> Float[Tensor, "_ n {queries} c"]:
        """Logits, float32, about "pool", "aux", "test" or records of the caller's own; memory-mapped.

        Behind masks: log-probabilities, float64, as an attacker reads them; not kept where a mask is a plain
        function.
        """
        records = self.design.part(on)
        if not len(self.member(of)):
            return torch.zeros(0, len(records), queries, records.classes)
        if mask:
            z = self.answers(of, on=records, queries=queries)
            return self._kept(of, records, _about("masked", queries, mask), lambda i: masked(z[i], mask))
        x = records.x.to(self.device)
        return self._kept(
            of, records, _about("logits", queries), lambda i: logits(self._model(of, i), x, queries)
        )

    def signal(
        self,
        what: str | Signal,
        *,
        of: Kind = "shadow",
        on: str | Data = "pool",
        queries: int = 1,
        mask: Sequence[Mask] = (),
        key: str | None = None,
    ) -> Float64[Tensor, "_ L n"]:
        """A named signal [m, k, n], or [m, L, n] of a function (model, x, y) -> [n] or [n, L]; memory-mapped.

        A function's values are kept if it is a frozen dataclass, by its content, or if it is given a `key`.
        Raises ValueError for an unknown name, and for queries or masks with a function.
        """
        records = self.design.part(on)
        if not len(self.member(of)):
            return torch.zeros(0, queries, len(records), dtype=torch.float64)
        if isinstance(what, str):
            if what not in SIGNALS:
                raise ValueError(f"what must be one of {', '.join(SIGNALS)}, or a function, got {what!r}")
            z = self.answers(of, on=records, queries=queries, mask=mask).transpose(1, 2)
            named = SIGNALS[what]
            return self._kept(of, records, _about(what, queries, mask), lambda i: named(z[i], records.y))
        if queries != 1 or mask:
            raise ValueError(f"queries and mask must be left out for a function, got {queries} and {mask}")
        near = records.to(self.device)
        how = {"key": key} if key is not None else content(what) if is_frozen(what) else None
        about = None if how is None else {"what": how}
        return self._kept(of, records, about, lambda i: values(what, self._model(of, i), near.x, near.y))

    def accuracy(self, of: Kind = "target") -> dict[str, float]:
        """Means over the targets: `train` (on each one's members), `test`, and two gaps.

        `gap` is members less non-members among the candidates, `gap_test` train less test. Raises ValueError
        where there is no target.
        """
        member = self.member(of)
        if not len(member):
            raise ValueError(f"zoo must hold a {of} to have an accuracy, got none")
        right = self.signal("correct", of=of)[:, 0]
        inside, outside = (float((right * side).sum(1).div(side.sum(1)).mean()) for side in (member, ~member))
        test = float(self.signal("correct", of=of, on="test").mean())
        return {"train": inside, "test": test, "gap": inside - outside, "gap_test": inside - test}

    def verify(self) -> list[str]:
        """One line for each file that is missing or was changed; it begins with the file's name."""
        return self.store.faults()

    @classmethod
    def _grown(cls, plan: Design, store: Store, asked: Asked, device: str, progress: bool) -> "Zoo":
        check_asked(asked)
        store.begin(plan.head)
        grow(plan, store, asked, device, progress)
        store.end(asked)
        return cls._of(plan, store, asked, device)

    @classmethod
    def _of(cls, plan: Design, store: Store, asked: Asked, device: str) -> "Zoo":
        check_rows(plan, store, asked)
        member = {kind: plan.member(kind, models) for kind, models in asked.items()}
        return cls(plan, store, device, member["shadow"], member["target"])

    def _model(self, of: Kind, i: int) -> nn.Module:
        if not 0 <= i < len(self.member(of)):
            raise ValueError(f"{of} must lie in 0 .. {len(self.member(of)) - 1}, got {i}")
        chunk = self.design.chunk(of, i)
        return self.design.model(self.store.row(chunk.name, i - chunk.rows.start)).to(self.device)

    def _kept(self, of: Kind, records: Data, about: Plain | None, row: Callable[[int], Tensor]) -> Tensor:
        """One row a model, from disk if it is there. `about` None: not kept."""
        models = len(self.member(of))
        if about is None:
            return torch.stack([row(i) for i in range(models)])
        entries = self.store.manifest()["chunks"]
        weights = [entries[chunk.name]["sha256"] for chunk in self.design.chunks(of, models)]
        whose = {"weights": weights, "of": of, "models": models, "records": records.digest}
        return cached(self.store, about | whose, models, lambda: map(row, range(models)))


def _about(what: str, queries: int, mask: Sequence[Mask] = ()) -> Plain | None:
    """What a cached array holds; None where a mask is a plain function, which content cannot tell."""
    if not all(map(is_frozen, mask)):
        return None
    return {"what": what, "queries": queries, "mask": [content(m) for m in mask]}
