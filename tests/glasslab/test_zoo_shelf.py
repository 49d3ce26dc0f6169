"""What lies in a root, and what can go."""

import json
from dataclasses import replace

import pytest
import torch
from zoos import RECIPE, made, tiny

from glasslab.shelf import remove, unused, zoos


@pytest.fixture
def root(tmp_path):
    tiny(tmp_path, shadows=2, targets=1).signal("phi")
    return tmp_path


def test_zoos_are_listed(root):
    tiny(root, replace(RECIPE, epochs=1), shadows=0, targets=3, seed=5)
    found = {zoo.seed: zoo for zoo in zoos(root)}
    assert found.keys() == {0, 5}
    assert (found[5].shadows, found[5].targets, found[5].models) == (0, 3, 16)
    assert (found[0].shadows, found[0].targets, found[0].models) == (2, 1, 32)
    assert (found[0].data, found[0].net, found[0].fault) == ("made", "mlp", None)
    for zoo in found.values():
        assert zoo.bytes == sum(path.stat().st_size for path in zoo.folder.rglob("*") if path.is_file())


def test_a_damaged_zoo_is_listed_with_its_fault(root):
    (folder,) = root.iterdir()
    (folder / "manifest.json").write_text("{}")
    (zoo,) = zoos(root)
    assert "manifest.json: changed" in zoo.fault
    assert unused(root) == []


def test_an_empty_or_absent_root(tmp_path):
    assert zoos(tmp_path / "none") == unused(tmp_path / "none") == []


def test_a_sound_zoo_has_nothing_to_spare(root):
    assert unused(root) == []


def leave(folder, what):
    """Leaves behind what an interruption or a change of weights would; the path that `unused` must name."""
    signals, chunks = folder / "signals", folder / "chunks"
    (array, *_), (about, *_) = sorted(signals.glob("*.npy")), sorted(signals.glob("*.json"))
    match what:
        case "temp chunk":
            path = chunks / ".shadow-0003.safetensors.tmp"
            path.write_bytes(b"half")
        case "temp manifest":
            path = folder / ".manifest.json.tmp"
            path.write_bytes(b"half")
        case "chunk without entry":
            path = chunks / "shadow-0007.safetensors"
            path.write_bytes(b"whole")
        case "array without description":
            about.unlink()
            path = array
        case "description without array":
            array.unlink()
            path = about
        case "damaged description":
            path = about
            about.write_text(json.dumps({"weights": []}))
    return path


@pytest.mark.parametrize(
    "what",
    [
        "temp chunk",
        "temp manifest",
        "chunk without entry",
        "array without description",
        "description without array",
        "damaged description",
    ],
)
def test_what_an_interruption_left_is_found_and_removed(root, what):
    (folder,) = root.iterdir()
    path = leave(folder, what)
    before, found = contents(folder), unused(root)
    assert path in {thing.path for thing in found}
    assert {thing.path for thing in found} <= {path, path.with_suffix(".npy"), path.with_suffix(".json")}
    assert remove(found) == sum(thing.bytes for thing in found) > 0
    assert contents(folder) == before - {thing.path for thing in found}
    assert unused(root) == []


def contents(folder):
    return {path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


def test_arrays_of_weights_that_are_no_more_are_found(root):
    zoo = tiny(root, shadows=20, targets=1)
    for of in ("shadow", "target"):
        zoo.signal("phi", of=of)
    before = set((zoo.folder / "signals").iterdir())
    state = {k: torch.stack([t + 1] * 16) for k, t in zoo.shadow(0).state_dict().items()}
    zoo.store.put("shadow-0000", state, zoo.store.manifest()["chunks"]["shadow-0000"])
    found = unused(root)
    assert {thing.reason for thing in found} == {"its weights are no more"}
    remove(found)
    left = set((zoo.folder / "signals").iterdir())
    assert len(before) == 12  # answers and phi, each with a description: of 2 shadows, 20 shadows, the target
    assert len(left) == 4  # the target's; 20 shadows lost one of their two chunks
    assert zoo.verify() == []


def test_arrays_of_fewer_models_stay(root):
    tiny(root, shadows=20, targets=1).signal("phi")
    assert unused(root) == []


def test_what_another_process_holds_is_left_alone(root):
    zoo = tiny(root, shadows=2, targets=1)
    leave(zoo.folder, "temp chunk")
    with zoo.store.lock("shadow-0003"):
        assert unused(root) == []
    assert len(unused(root)) == 1


def test_folders_without_manifest(root):
    ours, theirs, foreign = root / "0123456789abcdef", root / "fedcba9876543210", root / "notes"
    for folder in (ours, theirs, foreign):
        (folder / "chunks").mkdir(parents=True)
        (folder / "chunks" / "shadow-0000.safetensors").write_bytes(b"12345")
    (theirs / "letter.txt").write_text("dear")
    found = unused(root)
    assert [(thing.path, thing.bytes) for thing in found] == [(ours, 5)]
    (ours / "manifest.json").write_text("it came since")
    assert remove(found) == 0
    (ours / "manifest.json").unlink()
    assert remove(found) == 5
    assert not ours.exists()
    assert theirs.exists()


def test_what_is_removed_can_be_trained_again(root):
    zoo = tiny(root, shadows=2, targets=1)
    before = zoo.signal("phi").clone()
    for path in (zoo.folder / "signals").glob("*.json"):
        path.unlink()
    remove(unused(root))
    assert not list((zoo.folder / "signals").iterdir())
    assert torch.equal(zoo.signal("phi"), before)
    assert zoo.data.digest == made().digest
