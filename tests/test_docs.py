"""The README and the guide run as they are printed, on fewer models."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SMALL = {
    "shadows=64": "shadows=8",
    "targets=8": "targets=2",
    "epochs=100": "epochs=3",
    "epochs=20": "epochs=2",
}


def blocks(name):
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.S)


@pytest.mark.parametrize("name", ["README.md", "docs/guide.md"])
def test_the_code_runs(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GLASSLAB_ZOO", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    code = "\n".join(blocks(name))
    for large, small in SMALL.items():
        code = code.replace(large, small)
    names: dict[str, object] = {"__name__": "readme"}
    exec(compile(code, name, "exec"), names)
    assert len(names["table"]) in (6, 8)
    assert name != "README.md" or (
        names["score"].shape == names["phi"].shape[1:] and "lira" in capsys.readouterr().out
    )


def test_every_page_of_attacks_has_its_file():
    pages = {path.stem for path in (ROOT / "docs" / "attacks").glob("*.md")} - {"README"}
    files = {path.stem for path in (ROOT / "blackbox").glob("*.py")} - {"__init__", "mlps"}
    assert pages == files
