"""The commands `glasslab zoo ls | verify | extend | gc`, as the command line fills them in."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from workbench.options import DataRoot, Root

By = tyro.conf.arg

Folder = Annotated[Path, By(metavar="DIR")]
Folders = Annotated[
    tuple[Path, ...], Positional, By(metavar="[DIR ...]", help_behavior_hint="(default: all)")
]
More = Annotated[int | None, By(metavar="N", help_behavior_hint="(default: as many as there are)")]


def ls(*, root: Root = None) -> int:
    """List the zoos of a folder.

    Args:
        root: Folder of zoos.
    """
    from workbench import shelf

    return shelf.ls(root)


def verify(zoos: Folders = (), *, root: Root = None) -> int:
    """Check every file of a zoo against its checksum; name those that were changed. Exit 1 if there are any.

    Args:
        zoos: Folders of zoos; all of --root if none is named.
        root: Folder of zoos.
    """
    from workbench import shelf

    return shelf.verify(zoos, root)


def extend(
    zoo: Annotated[Folder, Positional],
    *,
    shadows: More = None,
    targets: More = None,
    data_root: DataRoot = None,
    device: str = "auto",
) -> int:
    """Train more models for a zoo; it then equals one that was trained with so many at once.

    Args:
        zoo: Folder of the zoo.
        shadows: Shadows in all; an even number.
        targets: Targets in all.
        data_root: Folder of data files.
        device: auto, cpu, cuda, cuda:1 or mps.
    """
    from workbench import shelf

    return shelf.extend(zoo, shadows, targets, data_root, device)


def gc(*, root: Root = None, yes: bool = False) -> int:
    """List what no zoo needs any more: leftovers of interruptions, arrays whose weights are gone.

    Args:
        root: Folder of zoos.
        yes: Delete what is listed.
    """
    from workbench import shelf

    return shelf.gc(root, yes=yes)


ZOO: Mapping[str, Callable[..., int]] = {"ls": ls, "verify": verify, "extend": extend, "gc": gc}
