"""What decides a trained model, besides its data and its seed."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from torch import nn

Factory = Callable[[tuple[int, ...], int], nn.Module]  # (shape of one record, classes) -> a fresh net


@dataclass(frozen=True)
class Recipe:
    """Plain values only (but for a net factory of the user's own), so that it goes to disk as JSON.

    A field with an `off` value is left out of the key while it has that value: a field added later
    orphans no zoo.
    """

    net: str | Factory = "mlp"  # a name in nets.NETS, or (shape, classes) -> nn.Module
    hidden: tuple[int, ...] = field(default=(), metadata={"off": ()})  # dense nets; (): the net's own
    width: int = field(
        default=0, metadata={"off": 0}
    )  # conv nets, channels of the first layer; 0: the net's own
    norm: Literal["batch", "group", "none"] = "batch"  # conv nets
    dropout: float = field(default=0.0, metadata={"off": 0.0})
    scale: Literal["auto", "none", "standard"] = "auto"  # standard: by mean and spread of aux, inside the net

    epochs: int = 100
    batch: int = 32
    optimiser: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9  # sgd only
    weight_decay: float = field(default=0.0, metadata={"off": 0.0})
    schedule: Literal["constant", "cosine", "step"] = (
        "cosine"  # step: a tenth at 1/2 and again at 3/4 of the steps
    )
    augment: tuple[Literal["mirror", "crop", "cutout"], ...] = field(default=(), metadata={"off": ()})
    patience: int = field(
        default=0, metadata={"off": 0}
    )  # epochs without a lower val loss; 0: never stop early
    label_smoothing: float = field(default=0.0, metadata={"off": 0.0})

    engine: Literal["auto", "stacked", "serial"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"

    def __post_init__(self) -> None:
        if not isinstance(self.net, str) and not hasattr(self.net, "__qualname__"):
            raise ValueError(f"net must be a name, a function or a class, got a {type(self.net).__name__}")
        for name in ("epochs", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if not self.lr > 0:
            raise ValueError(f"lr must be above 0, got {self.lr}")
        for name in ("dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")

    def key(self) -> dict[str, Any]:
        """What enters the zoo's key: plain values, without the fields at their off value.

        Raises ValueError while `engine`, `precision` or `scale` is still "auto".
        """
        held = {f.name: getattr(self, f.name) for f in fields(self)}
        open_ = [name for name in ("engine", "precision", "scale") if held[name] == "auto"]
        if open_:
            raise ValueError(
                f"engine, precision and scale must be resolved before keying, got auto for {open_}"
            )
        off = {f.name: f.metadata["off"] for f in fields(self) if "off" in f.metadata}
        plain = {name: value for name, value in held.items() if name not in off or value != off[name]}
        return plain | (
            {} if isinstance(self.net, str) else {"net": f"{self.net.__module__}.{self.net.__qualname__}"}
        )
