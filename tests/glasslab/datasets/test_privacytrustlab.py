"""Tables out of small archives made here; what climbs out, links, is cut or damaged is refused."""

import gzip
import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from glasslab.datasets import archive, load, privacytrustlab


def tgz(path: Path, *members: tuple[str, str] | tarfile.TarInfo) -> Path:
    """An archive of (name, text) files and of members without content."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for member in members:
            info = tarfile.TarInfo(member[0]) if isinstance(member, tuple) else member
            content = member[1].encode() if isinstance(member, tuple) else b""
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    path.write_bytes(gzip.compress(raw.getvalue(), mtime=0))
    return path


def text(rows: np.ndarray) -> str:
    return "".join(",".join(map(str, row)) + "\n" for row in rows)


bits = np.random.default_rng(0).integers(0, 2, (150, 7))
hundred = np.random.default_rng(1).permutation(np.arange(150) % 100)  # labels, from 0
thirty = hundred % 30


def with_labels(labels: np.ndarray) -> str:
    return text(np.column_stack([labels + 1, bits]))


def place(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Puts a small archive of that name where it belongs, with its checksum as the known one; its labels."""
    labels = thirty if name == "location30" else hundred
    source = privacytrustlab.SOURCES[name]
    texts = [text(bits), text(labels[:, None] + 1)] if name == "texas100" else [with_labels(labels)]
    path = tgz(root / source.archive, *zip(source.members, texts, strict=True))
    known = source.sha256 and hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(privacytrustlab.SOURCES, name, source._replace(sha256=known))
    return labels


@pytest.mark.parametrize("name", ["purchase100", "texas100", "location30"])
def test_tables_out_of_their_archive(name, tmp_path, monkeypatch):
    labels = place(name, tmp_path, monkeypatch)
    data = load(name, tmp_path)
    assert data.x.tolist() == bits.tolist()
    assert data.y.tolist() == labels.tolist()
    assert (data.classes, data.name) == (labels.max() + 1, name)
    with (
        gzip.open(tmp_path / privacytrustlab.SOURCES[name].archive) as stream,
        tarfile.open(fileobj=stream) as tar,
    ):
        tar.extractall(tmp_path / "unpacked", filter="data")
    assert load(name, tmp_path / "unpacked").digest == data.digest
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        ["unpacked", privacytrustlab.SOURCES[name].archive]
    ), "reading an archive writes nothing"


@pytest.mark.parametrize(("x", "y"), [("x", "y"), ("features", "labels"), ("data", "labels")])
@pytest.mark.parametrize("form", ["from zero", "from one", "one-hot"])
def test_tables_out_of_the_usual_npz(x, y, form, tmp_path):
    labels = {"from zero": hundred, "from one": hundred + 1, "one-hot": np.eye(100)[hundred]}[form]
    np.savez(tmp_path / "texas100.npz", **{x: bits.astype(np.uint8), y: labels})
    data = load("texas100", tmp_path)
    assert data.x.tolist() == bits.tolist()
    assert data.y.tolist() == hundred.tolist()


def test_a_table_in_quotes_is_a_table(tmp_path, monkeypatch):
    rows = [f'"{label + 1}",' + ",".join(map(str, row)) for label, row in zip(hundred, bits, strict=True)]
    tgz(tmp_path / "dataset_purchase.tgz", ("./dataset_purchase", "\r\n".join(rows)))
    assert load("purchase100", tmp_path).y.tolist() == hundred.tolist()


def test_an_archive_of_another_checksum_is_refused_before_it_is_opened(tmp_path, refused):
    path = tgz(tmp_path / "dataset_location.tgz", ("bangkok", with_labels(thirty)))
    known = "927203f85a868f8ee17a0ded1dc61699efe602167beabe34fbf45b4b1de94b33"
    came = hashlib.sha256(path.read_bytes()).hexdigest()
    assert refused("location30", tmp_path) == f"{path} must have SHA-256 {known}, got {came}"


def special(name: str, kind: bytes, to: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, to
    return info


good = ("dataset_purchase", with_labels(hundred))
evil = {
    "climbs": ("../evil", "x"),
    "climbs later": ("a/../../evil", "x"),
    "absolute": ("/tmp/evil", "x"),
    "symbolic link": special("evil", tarfile.SYMTYPE, "/etc/passwd"),
    "the table as a link": special("dataset_purchase", tarfile.SYMTYPE, "/etc/passwd"),
    "hard link": special("evil", tarfile.LNKTYPE, "dataset_purchase"),
    "device": special("evil", tarfile.CHRTYPE),
    "pipe": special("evil", tarfile.FIFOTYPE),
}


@pytest.mark.parametrize("member", evil.values(), ids=evil.keys())
@pytest.mark.parametrize("first", [True, False])
def test_an_archive_that_climbs_out_or_links_is_refused(member, first, tmp_path, refused):
    tgz(tmp_path / "dataset_purchase.tgz", *((member, good) if first else (good, member)))
    said = refused("purchase100", tmp_path)
    assert "must stay in its folder" in said or "must hold plain files only" in said
    assert repr(getattr(member, "name", member[0] if isinstance(member, tuple) else "")) in said
    assert [p.name for p in tmp_path.iterdir()] == ["dataset_purchase.tgz"]


def test_an_archive_cut_anywhere_or_damaged_is_refused(tmp_path, refused):
    path = tgz(tmp_path / "dataset_purchase.tgz", good, ("readme", "hello"))
    whole = path.read_bytes()
    load("purchase100", tmp_path)
    for length in [*range(0, len(whole), 23), *range(len(whole) - 9, len(whole))]:
        path.write_bytes(whole[:length])
        assert str(path) in refused("purchase100", tmp_path)
    for place in [*range(10, len(whole) - 4, 23), len(whole) - 5]:  # behind gzip's header
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        refused("purchase100", tmp_path)
    path.write_text("no archive at all")
    assert "must be a whole tgz archive" in refused("purchase100", tmp_path)


tables = {
    "short row": ("1,0,1\n2,0\n", "number of columns changed from 3 to 2"),
    "a word": ("1,0,1\n2,zero,1\n", "could not convert string 'zero'"),
    "too big": ("1,0,1\n2,0,300\n", "could not convert string '300'"),
    "negative": ("1,0,1\n2,0,-1\n", "could not convert string '-1'"),
    "empty": ("", "got an empty file"),
    "blank": ("\n\n", "got an empty file"),
    "few classes": ("1,0,1\n2,0,1\n", "every class 0 .. 99, got 2 records"),
}


@pytest.mark.parametrize(("content", "says"), tables.values(), ids=tables.keys())
def test_a_bad_table_gets_one_line(content, says, tmp_path, refused):
    tgz(tmp_path / "dataset_purchase.tgz", ("dataset_purchase", content))
    assert says in refused("purchase100", tmp_path)
    (tmp_path / "dataset_purchase.tgz").rename(tmp_path / "old.tgz")
    (tmp_path / "dataset_purchase").write_text(content)
    assert says in refused("purchase100", tmp_path)


def test_tables_that_do_not_fit(tmp_path, refused):
    tgz(tmp_path / "dataset_texas.tgz", ("texas/100/feats", text(bits)))
    assert "found no texas/100/labels" in refused("texas100", tmp_path)
    labels = ("texas/100/labels", text(hundred[:140, None] + 1))
    tgz(tmp_path / "dataset_texas.tgz", ("texas/100/feats", text(bits)), labels)
    assert "got 150 records and 140 labels" in refused("texas100", tmp_path)
    skipped = np.where(hundred == 41, 0, hundred)
    tgz(tmp_path / "dataset_purchase.tgz", ("dataset_purchase", with_labels(skipped)))
    assert "every class 0 .. 99, got none of 41" in refused("purchase100", tmp_path)


def test_read_gives_members_in_the_order_asked(tmp_path):
    path = tgz(tmp_path / "a.tgz", ("b", "2"), ("other", "?"), ("a", "1"))
    seen = archive.read(path, ["a", "b"], lambda stream, name: np.array([int(stream.read())]))
    assert [int(table[0]) for table in seen] == [1, 2]
