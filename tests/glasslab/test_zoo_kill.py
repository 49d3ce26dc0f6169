"""Processes that die, and processes that meet. What a moment is: see zoos.Moments."""

import json
import random
import signal

import pytest
from zoos import Server, files, starts

KILLED = -signal.SIGKILL


@pytest.fixture(scope="module")
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture(scope="module")
def whole(server, tmp_path_factory):
    """The files of a zoo that was never interrupted, and the moments that it went through."""
    root = tmp_path_factory.mktemp("whole")
    notes = root / "moments.json"
    assert server.run({"root": str(root / "zoo"), "notes": str(notes)}) == [0]
    folder = only(root / "zoo")
    assert starts(folder) == sorted(starts(folder))
    return files(folder), starts(folder), json.loads(notes.read_text())


def only(root):
    (folder,) = root.iterdir()
    return folder


@pytest.mark.parametrize(
    "during", ["tick", "half chunk", "os.rename chunk", "half manifest", "os.rename manifest"]
)
def test_a_killed_training_resumes_to_the_same_bytes(during, server, whole, tmp_path):
    complete, chunks, moments = whole
    places = [i + 1 for i, what in enumerate(moments) if what == during]
    last = random.Random(f"seed 0 {during}").choice(places[1:])  # the first manifest knows no chunk yet
    assert server.run({"root": str(tmp_path), "last": last}) == [KILLED]
    folder = only(tmp_path)
    held = json.loads((folder / "manifest.json").read_text())["chunks"]
    before = starts(folder)
    assert server.run({"root": str(tmp_path)}) == [0]
    assert files(folder) == complete
    after = starts(folder)[len(before) :]
    assert not set(after) & held.keys()  # what was finished is not trained again
    assert len(before) + len(after) - len(chunks) <= 1  # one chunk lost at most
    assert sorted({*before, *after}) == chunks


def test_kills_in_a_row(server, whole, tmp_path):
    complete, chunks, moments = whole
    draw = random.Random(1)
    kills = [server.run({"root": str(tmp_path), "last": draw.randrange(1, len(moments))}) for _ in range(5)]
    kills = kills.count([KILLED])
    assert kills > 1
    assert server.run({"root": str(tmp_path)}) == [0]
    assert files(only(tmp_path)) == complete
    assert len(starts(only(tmp_path))) <= len(chunks) + kills


def test_two_processes_share_the_chunks(server, whole, tmp_path):
    complete, chunks, _ = whole
    job = {"root": str(tmp_path), "meet": 2}
    assert server.run(job, job) == [0, 0]
    folder = only(tmp_path)
    assert files(folder) == complete
    assert sorted(starts(folder)) == chunks  # nothing was trained twice
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert len({line["process"] for line in lines}) == 2


def test_the_chunk_of_a_killed_process_is_taken_over_by_one_that_waits(server, tmp_path):
    root, notes, mark = (str(tmp_path / name) for name in ("zoo", "notes", "mark"))
    one = {"root": root, "shadows": 2, "targets": 0}
    assert server.run(one | {"root": str(tmp_path / "whole"), "notes": notes}) == [0]
    with open(notes) as file:
        last = json.load(file).index("tick") + 2
    assert server.run(one | {"hold": mark, "last": last}, one | {"mark": mark}) == [KILLED, 0]
    assert starts(only(tmp_path / "zoo")) == ["shadow-0000"] * 2
    assert files(only(tmp_path / "zoo")) == files(only(tmp_path / "whole"))
