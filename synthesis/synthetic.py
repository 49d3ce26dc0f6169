"""What every synthesis returns: the records that were made, and what became of each that was wanted."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from glasslab.data import Data

REASONS = ("sampled", "exhausted", "budget", "invalid", "interrupted")  # how a wanted record may end


@dataclass(frozen=True, eq=False)
class Synthetic:
    """s records that were made for w that were wanted, in the order of the wanted ones.

    x, y, confidence (the target's probability of y; NaN where it was not asked) are of the s; wanted (the
    label), success, queries, reason of the w. method is the name and a digest of all settings.
    """

    x: Float[Tensor, "s *d"]
    y: Int[Tensor, "s"]
    confidence: Float64[Tensor, "s"]
    wanted: Int[Tensor, "w"]
    success: Bool[Tensor, "w"]
    queries: Int[Tensor, "w"]
    reason: tuple[str, ...]
    method: str

    def __post_init__(self) -> None:
        if int(self.success.sum()) != len(self.x) or len(self.reason) != len(self.wanted):
            raise ValueError(
                f"x must hold a record a success, reason one a wanted record, got {len(self.x)} records of "
                f"{int(self.success.sum())} successes and {len(self.reason)} of {len(self.wanted)} reasons"
            )

    def per_class(self) -> list[dict[str, int | float]]:
        """A row a wanted label: wanted, made, success (share), mean and total queries, mean confidence.

        The queries count those of records that failed; the mean confidence is NaN where none was made.
        """
        rows = []
        for label in self.wanted.unique().tolist():
            asked, made = self.wanted == label, self.y == label
            count, own = int(asked.sum()), int((asked & self.success).sum())
            total = int(self.queries[asked].sum())
            rows.append(
                {
                    "label": label,
                    "wanted": count,
                    "made": own,
                    "success": own / count,
                    "mean_queries": total / count,
                    "queries": total,
                    "confidence": float(self.confidence[made].mean()),
                }
            )
        return rows

    def reasons(self) -> dict[str, int]:
        """How many wanted records ended for each reason."""
        return {reason: self.reason.count(reason) for reason in sorted(set(self.reason))}

    def hard(self, below: float = 0.5) -> list[str]:
        """One line for each class whose share of successes is under `below`."""
        return [
            f"class {row['label']:g}: {row['made']:g} of {row['wanted']:g} records made: "
            "lower conf_min, or start from marginals or public records"
            for row in self.per_class()
            if row["success"] < below
        ]

    def data(self, classes: int) -> Data:
        """The records as a data set; their labels are the wanted ones. ValueError where none was made."""
        return Data(self.x, self.y, classes, f"synthetic:{self.method}")


def labels(n: int, classes: int, *, prior: Sequence[float | int] | None = None) -> Int[Tensor, "{n}"]:
    """The labels of n wanted records, sorted: as equal numbers as may be, or in the shares of `prior`.

    The largest remainders get what rounding leaves. Raises ValueError unless prior holds `classes` shares.
    """
    share = torch.ones(classes) if prior is None else torch.as_tensor(prior)
    if len(share) != classes or bool((share < 0).any()) or not share.sum() > 0:
        raise ValueError(f"prior must hold {classes} shares of 0 or more, got {share.tolist()}")
    exact = share.double() / share.double().sum() * n
    count = exact.floor().long()
    rest = n - int(count.sum())
    count[(exact - count).argsort(descending=True, stable=True)[:rest]] += 1
    return torch.arange(classes).repeat_interleave(count)


def named(method: str, settings: Mapping[str, object]) -> str:
    """The method's name with ten digits of a digest of its settings; tensors count by their content."""
    text = json.dumps({name: _text(value) for name, value in settings.items()}, sort_keys=True)
    return f"{method}:{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def _text(value: object) -> str:
    if isinstance(value, Tensor):
        shown = value.detach().cpu().contiguous()
        content = hashlib.sha256(shown.reshape(-1).numpy().tobytes()).hexdigest()
        return f"{shown.dtype} {tuple(shown.shape)} {content}"
    if isinstance(value, list | tuple):
        return str([_text(v) for v in value])
    fields = getattr(value, "__dataclass_fields__", None)
    if fields is not None:
        return f"{type(value).__name__} {[(name, _text(getattr(value, name))) for name in fields]}"
    return repr(value)
