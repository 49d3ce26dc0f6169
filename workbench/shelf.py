"""The commands that look after zoos on disk."""

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from glasslab import shelf
from glasslab.store import Store, root_of
from workbench.steps import opened, say


def ls(root: Path | None) -> int:
    found = shelf.zoos(root)
    if not found:
        say(f"no zoo in {root_of(root)}")
        return 0
    drawn = Table(box=box.SIMPLE_HEAD)
    drawn.add_column("folder", no_wrap=True)
    for name in ("data", "net", "seed", "shadows", "targets", "MB"):
        drawn.add_column(name)
    for held in found:
        numbers = (held.seed, held.shadows, held.targets, f"{held.bytes / 1e6:.1f}")
        drawn.add_row(str(held.folder), held.data, held.net, *map(str, numbers))
    page = Console()
    page.width = max(
        page.width, 60 + max(len(str(held.folder)) for held in found)
    )  # folders are to be copied
    page.print(drawn)
    for held in found:
        if held.fault:
            say(held.fault)
    return 0


def verify(zoos: Sequence[Path], root: Path | None) -> int:
    folders = list(zoos) or [held.folder for held in shelf.zoos(root)]
    faults = [fault for folder in folders for fault in Store(folder).faults()]
    for fault in faults:
        say(fault)
    say(f"{len(folders)} zoos, {len(faults)} files that are not what they were")
    return int(bool(faults))


def extend(
    folder: Path, shadows: int | None, targets: int | None, data_root: Path | None, device: str
) -> int:
    held = opened(folder, data_root, device).extend(shadows, targets)
    say(f"{len(held.shadow_member)} shadows and {len(held.target_member)} targets in {held.folder}")
    return 0


def gc(root: Path | None, *, yes: bool) -> int:
    things = shelf.unused(root)
    for path, size, reason in things:
        say(f"{path}: {size / 1e6:.1f} MB, {reason}")
    total = sum(size for _, size, _ in things) / 1e6
    if not things:
        say(f"nothing to delete in {root_of(root)}")
    elif yes:
        say(f"deleted: {shelf.remove(things) / 1e6:.1f} MB")
    else:
        say(f"{total:.1f} MB could be deleted; --yes deletes them")
    return 0
