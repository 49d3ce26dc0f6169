"""Streams of units that turn out to be one: union-find, in which a stream may be cut into blocks."""

from collections.abc import Iterable

# (stream, block): index = unit * block + offset. None: the order is given
Label = tuple[int, int] | None


class Streams:
    """Starts with none; `fresh` makes one, `join` says that two are one, `fix` that its order is given."""

    def __init__(self) -> None:
        self.up: list[tuple[int, int]] = []  # of each stream: the one it is part of, in blocks of this length
        self.size: list[int] = []
        self.names: list[str] = []
        self.fixed: list[bool] = []
        self.groups: list[int] = []
        self.scalable: list[bool] = []

    def fresh(self, size: int, key: str, axis: int) -> Label:
        """A stream along an axis of a parameter; none where there is a single unit."""
        if size == 1:
            return None
        self.up.append((len(self.up), 1))
        self.size.append(size)
        self.names.append(key.removesuffix(".weight") + (f":{axis}" if axis else ""))
        self.fixed.append(False)
        self.groups.append(1)
        self.scalable.append(True)
        return len(self.up) - 1, 1

    def find(self, stream: int, block: int) -> tuple[int, int]:
        while self.up[stream][0] != stream:
            stream, block = self.up[stream][0], self.up[stream][1] * block
        return stream, block

    def join(self, a: Label, b: Label) -> None:
        if a is None or b is None:
            self.fix(a)
            self.fix(b)
            return
        (r, k), (q, j) = sorted((self.find(*a), self.find(*b)), key=lambda s: (-s[1], s[0]))
        if r == q or k % j:  # one stream against itself or another one in unlike blocks: left in its order
            if k != j:
                self.fix(a)
                self.fix(b)
            return
        self.up[q] = (r, k // j)
        self.fixed[r] |= self.fixed[q]
        self.scalable[r] &= self.scalable[q]
        self.group((r, 1), self.groups[q])

    def fix(self, label: Label) -> None:
        if label is not None:
            self.fixed[self.find(*label)[0]] = True

    def mark(self, labels: Iterable[Label], scalable: bool) -> None:
        """A factor does not pass what comes next, unless `scalable`."""
        for label in labels:
            if label is not None and not scalable:
                self.scalable[self.find(*label)[0]] = False

    def group(self, label: Label, groups: int) -> None:
        """Units stay in their group; where two norm layers cut one stream differently, in their place."""
        if label is None or groups == 1:
            return
        r, _ = self.find(*label)
        if self.size[r] % groups or self.groups[r] not in (1, groups):
            self.fixed[r] = True
        self.groups[r] = groups

    def blocks(self, label: Label, length: int) -> Label:
        return label and (label[0], label[1] * length)

    def name(self, label: Label) -> tuple[str, int]:
        """Of the stream it is part of, and the length of its blocks; no name where the order is given."""
        r, block = self.find(*label) if label else (-1, 1)
        return ("", 1) if label is None or self.fixed[r] else (self.names[r], block)

    def table(self, names: set[str]) -> tuple[dict[str, int], dict[str, int], frozenset[str]]:
        """Sizes, groups and which are scalable, of the streams of these names, oldest first."""
        roots = [r for r, name in enumerate(self.names) if self.up[r][0] == r and name in names]
        return (
            {self.names[r]: self.size[r] for r in roots},
            {self.names[r]: self.groups[r] for r in roots},
            frozenset(self.names[r] for r in roots if self.scalable[r]),
        )
