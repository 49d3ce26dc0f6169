"""What goes wrong, and what is kept."""

import errno
import re
import warnings

import pytest
from zoos import RECIPE, files, interrupted, made, starts, tiny

from glasslab import Zoo, growth, store


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """20 shadows and 3 targets in chunks of 16; nobody writes to it."""
    return tiny(tmp_path_factory.mktemp("zoo"), shadows=20, targets=3)


def test_ctrl_c_keeps_the_finished_chunks(zoo, tmp_path, monkeypatch):
    monkeypatch.setattr(growth, "train", interrupted(chunk=1))
    with pytest.raises(KeyboardInterrupt):
        tiny(tmp_path, shadows=20, targets=3)
    monkeypatch.undo()
    resumed = tiny(tmp_path, shadows=20, targets=3)
    assert starts(resumed.folder) == ["shadow-0000", "shadow-0001", "shadow-0001", "target-0000"]
    assert files(resumed.folder) == files(zoo.folder)


def test_a_full_disk_keeps_the_finished_chunks(zoo, tmp_path, monkeypatch):
    def small(path, mode, **keywords):
        file = open(path, mode, **keywords)  # noqa: SIM115
        return Full(file) if "shadow-0001.safetensors" in str(path) else file

    monkeypatch.setattr(store, "open", small, raising=False)
    with pytest.raises(OSError, match="disk full; what was finished is kept") as caught:
        tiny(tmp_path, shadows=20, targets=3)
    assert caught.value.errno == errno.ENOSPC
    (folder,) = tmp_path.iterdir()
    assert sorted(files(folder)) == ["manifest.json", "shadow-0000.safetensors"]
    monkeypatch.undo()
    assert files(tiny(tmp_path, shadows=20, targets=3).folder) == files(zoo.folder)
    assert starts(folder).count("shadow-0000") == 1


class Full:
    """A file on a disk that takes half of what is written."""

    def __init__(self, file):
        self.file = file

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def write(self, part):
        self.file.write(part[: len(part) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("harm", ["flip", "cut", "lose"])
def test_damage_is_named_and_healed_by_training_that_chunk_again(tmp_path, harm):
    zoo = tiny(tmp_path, shadows=20, targets=1)
    whole, path = files(zoo.folder), zoo.store.chunk("shadow-0001")
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]) if harm == "flip" else data[:-1])
    if harm == "lose":
        path.unlink()
    again = Zoo.train(made(), RECIPE, shadows=16, targets=1, root=tmp_path, progress=False)
    (line,) = again.verify()
    assert str(path) in line
    again.shadow(0)  # the other chunk is sound
    fresh = Zoo(zoo.design, store.Store(zoo.folder), "cpu", zoo.shadow_member, zoo.target_member)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        fresh.shadow(19)
    if harm == "flip":
        path.unlink()
    healed = tiny(tmp_path, shadows=20, targets=1)
    assert files(healed.folder) == whole
    assert healed.verify() == []
    assert starts(healed.folder) == ["shadow-0000", "shadow-0001", "target-0000", "shadow-0001"]


@pytest.mark.parametrize(
    "changed", [{"threads": 7}, {"torch": "2.0"}, {"machine": "abacus"}, {"device": "cuda"}]
)
def test_training_on_elsewhere_warns(tmp_path, monkeypatch, changed):
    zoo, here = tiny(tmp_path, shadows=2, targets=0), growth.here
    monkeypatch.setattr(growth, "here", lambda device: here(device) | changed)
    ((name, now),) = changed.items()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny(tmp_path, shadows=4, targets=0)  # the same chunk: nothing to train
    with pytest.warns(
        UserWarning, match=rf"shadow-0000 was made with {name} .*now {now}.*bits may differ"
    ) as seen:
        zoo.extend(targets=1, progress=False)
    assert len(seen) == 1
    assert zoo.store.manifest()["chunks"]["target-0000"][name] == now
