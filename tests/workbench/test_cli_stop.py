"""Ctrl-C at any moment: one line, code 130, and what was finished is kept."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from zoos import starts

from workbench import steps
from workbench.attacks import ATTACKS
from workbench.cli import main

ROOT = Path(__file__).parents[2]
SMALL = ["--shadows", "8", "--targets", "2", "--records", "100", "--recipe", "epochs=2"]


def test_ctrl_c_loses_nothing(tmp_path):
    """Stopped while the second chunk is trained: one line, code 130; the same command goes on from there."""
    words = ["train", "--shadows", "32", "--targets", "0", "--records", "200", "--recipe", "epochs=400"]
    command = [sys.executable, "-m", "workbench.cli", *words, "--root", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 120
    while time.monotonic() < end and not list(tmp_path.glob("*/chunks/shadow-0000.safetensors")):
        time.sleep(0.01)
    time.sleep(0.2)  # the manifest's entry follows its chunk
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "Traceback" not in said
    assert "stopped: 16 of 32 models are kept in" in said.splitlines()[-1]
    (zoo,) = tmp_path.iterdir()
    first = (zoo / "chunks" / "shadow-0000.safetensors").read_bytes()

    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "16 models to train" in done.stderr
    assert starts(zoo) == ["shadow-0000", "shadow-0001", "shadow-0001"]
    assert (zoo / "chunks" / "shadow-0000.safetensors").read_bytes() == first


def test_ctrl_c_before_anything(capsys, monkeypatch):
    def stopped(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(steps, "ordered", stopped)
    assert main(["compare"]) == 130
    assert capsys.readouterr().err == "glasslab: stopped: nothing was begun\n"


def test_ctrl_c_in_an_attack(tmp_path, capsys, monkeypatch):
    def stops(game, generator):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(ATTACKS, "entropy", replace(ATTACKS["entropy"], run=stops))
    assert main(["compare", *SMALL, "--attacks", "loss,entropy", "--out", "run"]) == 130
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("glasslab: stopped: run keeps what was finished, all models are kept in zoo/")
    summary = json.loads(Path("run/results.json").read_text())["summary"]
    assert [row["error"] is None for row in summary] == [True, False]
