import errno
import hashlib
import json
from multiprocessing.pool import ThreadPool

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from glasslab import store
from glasslab.store import FORMAT, Store, fault, root_of, sealed, text, unsealed, write

HEAD = {"format": FORMAT, "key": "k" * 64}
STATE = {
    "w": torch.arange(12.0).view(3, 2, 2),
    "n": torch.tensor([4, 5, 6]),
    "half": torch.ones(3, 1).bfloat16(),
}


@pytest.fixture
def shelf(tmp_path):
    held = Store(tmp_path / "zoo")
    held.begin(HEAD)
    held.put("shadow-0000", STATE, {"threads": 1})
    return held


def full_disk(monkeypatch, after=0):
    """From now on the disk takes `after` bytes more of each file."""

    class Full:
        def __init__(self, *arguments, **keywords):
            self.file = open(*arguments, **keywords)  # noqa: SIM115

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def write(self, part):
            self.file.write(part[:after])
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, "open", Full, raising=False)


def test_a_written_file_is_whole_and_summed(tmp_path):
    sha = write(tmp_path / "new" / "file", [b"ab", memoryview(b"c")])
    assert (tmp_path / "new" / "file").read_bytes() == b"abc"
    assert sha == hashlib.sha256(b"abc").hexdigest()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    def parts():
        yield b"new"
        raise KeyboardInterrupt

    write(tmp_path / "file", [b"old"])
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "file", parts())
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_is_one_clear_line(tmp_path, monkeypatch):
    full_disk(monkeypatch, after=1)
    with pytest.raises(OSError, match=r"disk full.*run again.*file") as caught:
        write(tmp_path / "file", [b"abc"])
    assert caught.value.errno == errno.ENOSPC
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_under_the_log_too(shelf, monkeypatch):
    full_disk(monkeypatch)
    with pytest.raises(OSError, match=r"disk full.*log\.jsonl"):
        shelf.log({"event": "start"})


def test_other_errors_are_not_called_a_full_disk(tmp_path):
    (tmp_path / "file").mkdir()
    with pytest.raises(IsADirectoryError):
        write(tmp_path / "file", [b"abc"])


def test_json_is_strict_and_sorted():
    assert text({"b": 1, "a": [1.5, None]}) == '{\n "a": [\n  1.5,\n  null\n ],\n "b": 1\n}\n'
    with pytest.raises(ValueError, match="JSON"):
        text({"a": float("nan")})


def test_a_sealed_file_shows_every_changed_byte(tmp_path):
    path, value = tmp_path / "file.json", {"a": 1, "b": ["x", 2.5]}
    whole = sealed(value)
    path.write_bytes(whole)
    assert unsealed(path) == value
    for i in range(len(whole)):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
        with pytest.raises(ValueError, match=r"file\.json: changed or cut short"):
            unsealed(path)
    for broken in (whole[:-1], b"", b"[]", b"\xff"):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="changed or cut short"):
            unsealed(path)


def test_what_is_put_comes_back_row_by_row(shelf):
    for i in range(3):
        row = shelf.row("shadow-0000", i)
        assert row.keys() == STATE.keys()
        assert all(torch.equal(row[name], STATE[name][i]) for name in STATE)
        assert all(row[name].dtype == STATE[name].dtype for name in STATE)


def test_chunks_are_plain_safetensors_without_metadata(shelf):
    path = shelf.folder / "chunks" / "shadow-0000.safetensors"
    assert load_file(path).keys() == STATE.keys()
    with safe_open(path, framework="pt") as file:
        assert file.metadata() is None


def test_the_manifest_holds_the_checksum_and_no_clock(shelf):
    entry = shelf.manifest()["chunks"]["shadow-0000"]
    data = shelf.chunk("shadow-0000").read_bytes()
    assert entry == {"threads": 1, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    lines = json.loads((shelf.folder / "manifest.json").read_bytes())
    assert lines.keys() == {"format", "key", "asked", "chunks", "checksum"}


def test_entries_that_come_at_once_are_all_kept(shelf):
    names = [f"target-{i:04}" for i in range(24)]
    with ThreadPool(8) as pool:
        pool.map(lambda name: shelf.put(name, STATE, {}), names)
    assert shelf.manifest()["chunks"].keys() == {"shadow-0000", *names}
    assert shelf.faults() == []


def test_asked_grows_and_never_shrinks(shelf):
    for asked, most in (({"shadow": 4, "target": 2}, [4, 2]), ({"shadow": 2, "target": 3}, [4, 3])):
        shelf.end(asked)
        assert list(shelf.manifest()["asked"].values()) == most


def test_begin_refuses_another_zoo(shelf):
    with pytest.raises(ValueError, match="must hold zoo jjjj.* got kkkk"):
        shelf.begin(HEAD | {"key": "j" * 64})


def test_another_format_is_refused(shelf):
    (shelf.folder / "manifest.json").write_bytes(sealed(shelf.manifest() | {"format": FORMAT + 1}))
    with pytest.raises(ValueError, match=f"need format {FORMAT}, got {FORMAT + 1}"):
        shelf.manifest()


def test_no_manifest_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"must hold a manifest\.json, got none"):
        Store(tmp_path).manifest()


def flip(path, place=-1):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[:-5])


@pytest.mark.parametrize(
    ("harm", "line"), [(flip, "changed"), (cut, "cut short"), (lambda path: path.unlink(), "missing")]
)
def test_a_damaged_chunk_is_named(shelf, harm, line):
    path = shelf.chunk("shadow-0000")
    assert shelf.faults() == []
    harm(path)
    (found,) = shelf.faults()
    assert found.startswith(f"{path}: {line}")
    with pytest.raises(ValueError, match=rf"shadow-0000\.safetensors: {line}.*train again") as caught:
        Store(shelf.folder).row("shadow-0000", 0)
    assert "\n" not in str(caught.value)
    assert ("shadow-0000" in shelf.finished()) == (harm is flip)


def test_a_flipped_byte_is_found_wherever_it_is(shelf):
    path = shelf.chunk("shadow-0000")
    for place in range(0, path.stat().st_size, 3):
        flip(path, place)
        assert len(shelf.faults()) == 1
        flip(path, place)
    assert shelf.faults() == []


def test_a_damaged_manifest_is_named(shelf):
    flip(shelf.folder / "manifest.json", 20)
    (found,) = shelf.faults()
    assert found.startswith(f"{shelf.folder / 'manifest.json'}: changed")


def test_a_chunk_is_summed_once_a_store(shelf, monkeypatch):
    summed = []
    monkeypatch.setattr(store, "fault", lambda path, entry: summed.append(path.name) or fault(path, entry))
    for i in range(3):
        shelf.row("shadow-0000", i)
    assert summed == ["shadow-0000.safetensors"]
    shelf.put("shadow-0000", STATE, {})
    shelf.row("shadow-0000", 0)
    assert len(summed) == 2


def test_a_full_disk_keeps_what_was_finished(shelf, monkeypatch):
    before = (shelf.folder / "manifest.json").read_bytes()
    full_disk(monkeypatch, after=10)
    with pytest.raises(OSError, match="disk full"):
        shelf.put("shadow-0001", STATE, {})
    monkeypatch.undo()
    assert (shelf.folder / "manifest.json").read_bytes() == before
    assert [path.name for path in (shelf.folder / "chunks").iterdir()] == ["shadow-0000.safetensors"]
    shelf.put("shadow-0001", STATE, {})
    assert shelf.faults() == []


def test_the_root(monkeypatch):
    monkeypatch.delenv("GLASSLAB_ZOO", raising=False)
    assert str(root_of()) == "zoo"
    monkeypatch.setenv("GLASSLAB_ZOO", "/elsewhere")
    assert str(root_of()) == "/elsewhere"
    assert str(root_of("here")) == "here"
