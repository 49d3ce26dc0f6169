"""What all tests of the data sets stand on: no network, no root, and one line when something is refused."""

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import jaxtyping
import pytest

from glasslab.datasets import load, vision

SHARED = Path(os.environ.get("GLASSLAB_DATA") or Path(__file__).parents[4] / "shared" / "data")


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No network, no root set, no package of the system's; shapes unchecked at the door, as for a user."""

    def no_network(*where: object) -> None:
        raise OSError(f"no network\nin the tests, not even for {where[0]}")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(vision, "DEBIAN", Path("nowhere"))
    monkeypatch.delenv("GLASSLAB_DATA", raising=False)
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def refused() -> Callable[..., str]:
    """(name, root, download) -> the one line that `load` says instead of loading."""

    def said(name: str, root: Path | None = None, *, download: bool = False) -> str:
        with pytest.raises(ValueError, match=".") as error:
            load(name, root, download=download)
        assert "\n" not in str(error.value)
        return str(error.value)

    return said


@pytest.fixture
def shared() -> Callable[[str], Path]:
    """File -> the folder with the real data that has it; skips where it is not."""

    def folder(file: str) -> Path:
        if not (SHARED / file).is_file():
            pytest.skip(f"needs {file} in GLASSLAB_DATA or in ../shared/data")
        return SHARED

    return folder
