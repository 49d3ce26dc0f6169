"""The quality report: plain numbers, the lines that print them, and the doubts that they raise."""

from dataclasses import asdict, dataclass, field
from typing import Any

from synthesis.learners import Told, Transfer

OFF = 0.95  # told from real this often: off the manifold
CONFIDENT = 0.5  # mean confidence
NEARER = 0.9  # distance to training over distance to held-out records
APART = 0.1  # accuracy of shadows against that on real records
HARD = 0.5  # share of a class's wanted records that were made


@dataclass(frozen=True)
class Marginal:
    """Total variation per feature: mean, the five worst (feature, distance), and the mean of real records."""

    mean: float
    worst: tuple[tuple[int, float], ...]
    real: float | None


@dataclass(frozen=True)
class Pairs:
    """Mean absolute difference of correlations on so many features, and that of real records."""

    value: float
    features: int
    real: float | None


@dataclass(frozen=True)
class Density:
    """Means of all values."""

    synthetic: float
    real: float


@dataclass(frozen=True)
class Nearest:
    """Median distance to the nearest of `each` training and of as many held-out records.

    `nearer`: share of synthetic records to which the training one is nearer, ties counting half; `copies`:
    synthetic records that are training records.
    """

    train: float
    held: float
    nearer: float
    each: int
    copies: int


@dataclass(frozen=True)
class Covered:
    """Share of a class's real records that are covered, None for a `reason`; records made of those wanted."""

    label: int
    share: float | None
    reason: str | None
    real: int
    made: int
    wanted: int | None


@dataclass(frozen=True)
class Confidence:
    """The target's probability of the label: mean and quartiles over n records."""

    mean: float
    lower: float
    median: float
    upper: float
    n: int


@dataclass(frozen=True)
class Quality:
    """What `quality` found. What is None stands in `refused` with its reason."""

    name: str
    synthetic: int
    real_train: int
    real_held: int
    marginal: Marginal | None
    pairs: Pairs | None
    density: Density | None
    nearest: Nearest | None
    two_sample: Told | None
    coverage: tuple[Covered, ...]
    transfer: Transfer | None
    confidence: Confidence | None
    refused: dict[str, str]
    evaluator_only: bool = field(default=True, init=False)  # it was made of private records

    def values(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """One line an item, then one a doubt."""
        held = {
            "density": self._density(),
            "marginal": self._marginal(),
            "pairs": self._pairs(),
            "nearest": self._nearest(),
            "two_sample": self._two_sample(),
            "coverage": self._coverage(),
            "transfer": self._transfer(),
            "confidence": self._confidence(),
        }
        names = {"pairs": "pair distance", "marginal": "marginal distance", "nearest": "nearest real record"}
        said = [
            f"{names.get(item, item.replace('_', '-')):<20} {text or 'None: ' + self.refused[item]}"
            for item, text in held.items()
        ]
        head = f"{self.name}: {self.synthetic} synthetic records, {self.real_train} of training, "
        head += f"{self.real_held} held out; for the evaluator only, it reads private data"
        return [head, *said, *(f"! {doubt}" for doubt in self.doubts())]

    def doubts(self) -> list[str]:
        """One line for each sign that these records will mislead shadow models."""
        out = []
        told, sure, near = self.two_sample, self.confidence, self.nearest
        if told and told.best.value >= OFF:
            what = f"told from real in {told.best.value:.1%}"
            if sure and sure.mean >= CONFIDENT:
                out.append(
                    f"off-manifold: confident ({sure.mean:.2f}) and {what}: resample from marginals, or "
                    "start from public records"
                )
            else:
                out.append(f"off-manifold: {what}: start from marginals or public records")
        if near and near.train < NEARER * near.held:
            out.append(
                f"nearer to training than to held-out records, {near.train:.3g} against {near.held:.3g}: the "
                "synthesis leaks by itself"
            )
        if near and near.copies:
            out.append(f"{near.copies} of {self.synthetic} are training records")
        return out + self._shadows() + self._hard()

    def _shadows(self) -> list[str]:
        if self.transfer is None:
            return []
        own, real = self.transfer.synthetic_on_synthetic, self.transfer.real_on_real
        said = f"a net has {own.value:.2f} on these records, {real.value:.2f} on real ones"
        if own.value > real.value + APART and own.low > real.high:
            return [f"shadows too good: {said}: membership recall will be low"]
        if own.value < real.value - APART and own.high < real.low:
            return [f"shadows too bad: {said}: membership precision will be low"]
        return []

    def _hard(self) -> list[str]:
        return [
            f"class {c.label}: {c.made} of {c.wanted} records made: lower conf_min, or start from marginals"
            for c in self.coverage
            if c.wanted and c.made < HARD * c.wanted
        ]

    def _density(self) -> str:
        return f"{self.density.synthetic:.3f}, real {self.density.real:.3f}" if self.density else ""

    def _marginal(self) -> str:
        if self.marginal is None:
            return ""
        worst = ", ".join(f"{j}: {value:.3f}" for j, value in self.marginal.worst)
        return f"{self.marginal.mean:.4f}{_real(self.marginal.real)}; worst features {worst}"

    def _pairs(self) -> str:
        if self.pairs is None:
            return ""
        return f"{self.pairs.value:.4f}{_real(self.pairs.real)}; {self.pairs.features} features"

    def _nearest(self) -> str:
        if (near := self.nearest) is None:
            return ""
        return (
            f"median {near.train:.4g} to training, {near.held:.4g} to held-out records, {near.each} of each; "
            f"{near.nearer:.1%} nearer to training, {near.copies} copies"
        )

    def _two_sample(self) -> str:
        if (told := self.two_sample) is None:
            return ""
        return f"logistic {told.logistic}, boosting {told.boosting}; {told.each} of each, 0.5 = alike"

    def _coverage(self) -> str:
        known = sorted((c.share, c.label) for c in self.coverage if c.share is not None)
        wanted = [c.wanted for c in self.coverage if c.wanted is not None]
        made = f"; {self.synthetic} of {sum(wanted)} records made" if wanted else ""
        if not known:
            return f"None: {self.coverage[0].reason}{made}"
        worst = ", ".join(f"{label}: {value:.3f}" for value, label in known[:5])
        mean = sum(value for value, _ in known) / len(known)
        return f"{mean:.3f}, mean of {len(known)} of {len(self.coverage)} classes; worst {worst}{made}"

    def _transfer(self) -> str:
        if (t := self.transfer) is None:
            return ""
        return (
            f"synthetic on real {t.synthetic_on_real}, on synthetic {t.synthetic_on_synthetic}; real on "
            f"synthetic {t.real_on_synthetic}, on real {t.real_on_real}; learned from {t.trained_on}"
        )

    def _confidence(self) -> str:
        if (c := self.confidence) is None:
            return ""
        return f"mean {c.mean:.3f}, quartiles {c.lower:.3f} / {c.median:.3f} / {c.upper:.3f}"


def _real(value: float | None) -> str:
    return "" if value is None else f", real {value:.4f}"
