"""Follows a forward pass call by call: which stream of units runs along which axis of which tensor."""

import sys
from itertools import chain, pairwise
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from whitebox.streams import Label, Streams

RELU = {"relu", "leaky_relu", "dropout", "dropout1d", "dropout2d", "dropout3d"}
RELU |= {"contiguous", "clone", "detach", "to", "float", "double"}
OTHER = {"sigmoid", "tanh", "softmax", "log_softmax", "gelu", "silu", "mish", "elu", "selu", "celu"}
OTHER |= {"softplus", "softsign", "hardtanh", "relu6", "hardswish", "hardsigmoid", "logsigmoid"}
OTHER |= {"exp", "log", "sqrt", "rsqrt", "abs", "neg", "square", "clamp", "sin", "cos"}
SUMS = {"add", "iadd", "radd", "sub", "isub"}
PAIRS = {"mul", "imul", "rmul", "div", "truediv", "itruediv", "rtruediv", "rsub", "pow"}
PAIRS |= {"maximum", "minimum", "where"}
KINDS = ("max", "avg", "adaptive_max", "adaptive_avg", "lp")
POOLS = {f"{kind}_pool{d}d" for kind in KINDS for d in (1, 2, 3)}
REDUCTIONS = {"mean", "sum", "amax", "amin"}


class Place(NamedTuple):
    """Axis `axis` of the parameter or buffer `name` runs over units times blocks of neighbours."""

    name: str
    axis: int
    permutation: str
    block: int


class Used(NamedTuple):
    """What a layer reads: `tensor`, along whose axis `axis` the units of `permutation` run."""

    permutation: str
    axis: int
    tensor: Tensor


class Trace(TorchFunctionMode):
    """Follows every call of torch, and keeps the labels of the axes of every tensor it has seen."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.held = {id(t): (key, t) for key, t in chain(model.named_parameters(), model.named_buffers())}
        self.streams = Streams()
        self.seen: dict[int, tuple[Tensor, list[Label]]] = {}  # the tensor is kept: its id must stay its own
        self.reads: list[tuple[Label, int, Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        given = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)]
        tensors = [out] if isinstance(out, Tensor) else _inside(out)
        if not tensors or not any(
            id(t) in self.held or any(self.of(t)) for t in chain(given, *map(_inside, args))
        ):
            return out
        name = func.__name__.strip("_")
        labels = self.rule(name, given, args, kwargs, out) if isinstance(out, Tensor) else None
        if labels is None:
            raise ValueError(f"model must call what can be followed, got {name} in {self.where()}")
        self.seen[id(out)] = (out, labels)
        return out

    def of(self, t: Tensor) -> list[Label]:
        """The labels of its axes; those of a parameter or buffer seen for the first time are new streams."""
        if id(t) not in self.seen:
            key = self.held[id(t)][0] if id(t) in self.held else None
            fresh = [self.streams.fresh(s, f"{key}", axis) for axis, s in enumerate(t.shape)] if key else []
            self.seen[id(t)] = (t, fresh or [None] * t.ndim)
        return self.seen[id(t)][1]

    def rule(self, name: str, given: list[Tensor], args: Any, kwargs: Any, out: Tensor) -> list[Label] | None:
        """The labels of what a call gives; None for a call that is not known."""
        if not given:
            return None
        labels = self.of(given[0])
        if name == "linear" or name in ("conv1d", "conv2d", "conv3d"):
            return self.layer(name, given, args, kwargs)
        if name in ("batch_norm", "instance_norm", "group_norm", "layer_norm", "rms_norm"):
            return self.norm(name, given, args, kwargs)
        if name in (*SUMS, *PAIRS):
            return self.pair(given, out, name in SUMS and not any(isinstance(a, float | int) for a in args))
        if name in (*RELU, *OTHER):
            self.streams.mark(labels, name in RELU)
            return list(labels)
        if name in POOLS:
            return self.cleared(labels, len(labels) - int(name[-2]), len(labels))
        if name == "pad":
            return self.cleared(
                labels, len(labels) - len(_argument(args, kwargs, 1, "pad")) // 2, len(labels)
            )
        if name in REDUCTIONS:
            return self.reduced(given[0], args, kwargs)
        if name in ("flatten", "reshape", "view"):
            return self.merged(given[0], out)
        return None

    def layer(self, name: str, given: list[Tensor], args: Any, kwargs: Any) -> list[Label]:
        x, w, *bias = given
        labels, weight = self.of(x), self.of(w)
        axis = x.ndim - (1 if name == "linear" else w.ndim - 1)
        for label in (*weight[2:], *labels[axis + 1 :]):
            self.streams.fix(label)
        if x.shape[axis] == w.shape[1]:
            self.streams.join(labels[axis], weight[1])
            self.reads.append((labels[axis], axis, x))
        elif x.shape[axis] == w.shape[0] and w.shape[1] == 1:  # a window for each channel
            self.streams.join(labels[axis], weight[0])
            self.streams.mark([weight[0]], False)
        else:  # groups of channels: they stay as they are
            for label in (labels[axis], *weight):
                self.streams.fix(label)
        for b in bias:
            self.streams.join(weight[0], self.of(b)[0])
        return [*labels[:axis], weight[0], *labels[axis + 1 :]]

    def norm(self, name: str, given: list[Tensor], args: Any, kwargs: Any) -> list[Label]:
        x, *own = given
        labels = self.of(x)
        for t in own:
            over = labels[-t.ndim :] if name in ("layer_norm", "rms_norm") else [labels[1]]
            for a, b in zip(over, self.of(t), strict=True):
                self.streams.join(a, b)
        if name == "group_norm":
            self.streams.group(labels[1], _argument(args, kwargs, 1, "num_groups"))
        self.streams.mark(labels, False)
        return list(labels)

    def pair(self, given: list[Tensor], out: Tensor, scalable: bool) -> list[Label]:
        """Axes that meet carry one stream; an axis of length 1 takes the other's."""
        labels: list[Label] = [None] * out.ndim
        for axis in range(-out.ndim, 0):
            met = [self.of(t)[axis] for t in given if t.ndim >= -axis and t.shape[axis] > 1]
            for a, b in pairwise(met):
                self.streams.join(a, b)
            labels[axis] = met[0] if met else None
        self.streams.mark(labels, scalable and not any(id(t) in self.held for t in given))
        return labels

    def cleared(self, labels: list[Label], start: int, stop: int) -> list[Label]:
        for label in labels[start:stop]:
            self.streams.fix(label)
        return [*labels[:start], *[None] * (stop - start), *labels[stop:]]

    def reduced(self, x: Tensor, args: Any, kwargs: Any) -> list[Label]:
        labels, dims, keep = (
            self.of(x),
            _argument(args, kwargs, 1, "dim"),
            _argument(args, kwargs, 2, "keepdim"),
        )
        over = range(x.ndim) if dims is None else [dims] if isinstance(dims, int) else dims
        gone = {d % x.ndim for d in over}
        self.streams.mark([labels[d] for d in gone], False)  # a sum over units: any order, but not any factor
        return [None if d in gone else label for d, label in enumerate(labels) if keep or d not in gone]

    def merged(self, x: Tensor, out: Tensor) -> list[Label] | None:
        """Neighbouring axes that become one: the first one's units, in blocks of the others' length."""
        labels, start = self.of(x), 0
        while start < out.ndim - 1 and x.shape[start] == out.shape[start]:
            start += 1
        stop = x.ndim - (out.ndim - 1 - start)
        if out.ndim > x.ndim or x.shape[stop:] != out.shape[start + 1 :]:
            return None
        first = next((d for d in range(start, stop) if x.shape[d] > 1), start)
        for label in labels[first + 1 : stop]:
            self.streams.fix(label)
        one = self.streams.blocks(labels[first], out.shape[start] // x.shape[first])
        return [*labels[:start], one, *labels[stop:]]

    def where(self) -> str:
        """The module that is running: the nearest `self` up the stack that the model holds."""
        names = {id(m): f"module {name!r} ({type(m).__name__})" for name, m in self.model.named_modules()}
        frame = sys._getframe(1)
        while frame.f_back is not None and id(frame.f_locals.get("self")) not in names:
            frame = frame.f_back
        return names.get(id(frame.f_locals.get("self")), "the model")

    def places(self) -> tuple[Place, ...]:
        """Every axis of a parameter or buffer whose units may move."""
        return tuple(
            Place(self.held[key][0], axis, name, block)
            for key, (_, labels) in self.seen.items()
            if key in self.held
            for axis, label in enumerate(labels)
            for name, block in [self.streams.name(label)]
            if name
        )

    def read(self) -> list[Used]:
        named = ((self.streams.name(label)[0], axis, t) for label, axis, t in self.reads)
        return [Used(name, axis, t) for name, axis, t in named if name]


def _argument(args: Any, kwargs: Any, place: int, name: str) -> Any:
    return args[place] if len(args) > place else kwargs.get(name)


def _inside(t: Any) -> list[Tensor]:
    return [v for v in t if isinstance(v, Tensor)] if isinstance(t, list | tuple) else []
