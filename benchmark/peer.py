"""Published packages to be measured against, in a venv of their own: build/peers-venv.

It is made when first asked for, and made anew when peers/requirements.txt or the environment changes. Large
packages that they share with us (torch, numpy, scipy, scikit-learn) are found in our own environment, through
a .pth file: both sides run on the same versions. Nothing of ours depends on these packages.
A script peers/NAME.py reads the arrays from .npy files, times its scoring call alone, writes its scores to
NAME.npy beside them, and prints one line of JSON.
"""

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmark.record import ROOT

VENV = ROOT / "build" / "peers-venv"
PINNED = ROOT / "benchmark" / "peers" / "requirements.txt"
THREADS = ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "VECLIB_MAXIMUM")
ONE_CORE = {f"{name}_NUM_THREADS": "1" for name in THREADS} | {
    "NPROC": "1",  # the pool of XLA, on which JAX runs
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "JAX_PLATFORMS": "cpu",
}


def interpreter() -> Path:
    """Python of the venv, which is made where it is missing or stale. CalledProcessError where pip fails."""
    python, stamp = VENV / "bin" / "python", VENV / "made-from"
    ours = sysconfig.get_path("purelib")
    wanted = f"{sys.version}\n{ours}\n{PINNED.read_text(encoding='utf-8')}"
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], check=True)
        where = subprocess.run(
            [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            check=True,
            capture_output=True,
            text=True,
        )
        (Path(where.stdout.strip()) / "shared.pth").write_text(ours + "\n", encoding="utf-8")
        install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", str(PINNED)]
        subprocess.run([str(python), *install], check=True)
        stamp.write_text(wanted, encoding="utf-8")
    return python


def ask(name: str, folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the script benchmark/peers/`name`.py reports on the arrays in `folder`, on one core.

    RuntimeError with the end of its errors where it fails.
    """
    command = [str(interpreter()), "-m", f"benchmark.peers.{name}", str(folder), json.dumps(settings)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | ONE_CORE
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"benchmark.peers.{name} failed: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))
