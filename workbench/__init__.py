"""The families side by side: `compare`, and the command line."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.run import compare

__all__ = ["compare"]


def __getattr__(name: str) -> Any:
    if name == "compare":  # on demand: `glasslab --help` should not wait for torch
        from workbench.run import compare

        return compare
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
