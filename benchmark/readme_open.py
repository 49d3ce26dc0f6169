"""Tables of docs/open-problem.md: from rows of results to Markdown. Rates: TPR at 0.1 % FPR in percent."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Result = Mapping[str, Any]
Row = Mapping[str, Any]
OURS = ("decode", "dual", "lira")  # columns of a table in which one thing is changed
NAMES = {"lira": "LiRA"}
FREE = ("dual", "dual-shaped", "decode")
ON_SHADOWS = ("dual-ratio", "dual-shaped-ratio", "lira", "rmia", "bavaria")


def ratios(result: Result) -> str:
    """A zoo a line: TPR of W and its rivals, and how many times theirs it is."""
    at = {(row["zoo"], row["attack"]): row for row in result["rows"] if row["seed"] == "all"}
    head = ["TPR % at 0.1 % FPR", "W", "decode", "B", "LiRA", "W over LiRA", "W over B", "decode over LiRA"]
    lines = []
    for zoo in _seen(row["zoo"] for row in result["rows"]):
        w, free = at[zoo, "W"], at[zoo, "decode"]
        tpr = [_percent(at[zoo, name]) for name in ("W", "decode", "B", "lira")]
        over = [_times(w), _times(w, "ratio_to_blackbox_stack", "_bb"), _times(free)]
        lines.append([_zoo(zoo), *tpr, *over])
    return _table(head, lines)


def every_attack(result: Result) -> str:
    """All attacks and controls: TPR at 0.1 % and 1 % FPR in percent, AUC, ratio to LiRA, a zoo a column."""
    rows = [row for row in result["rows"] if row["seed"] == "all"]
    at = {(row["zoo"], row["attack"]): row for row in rows}
    zoos = _seen(row["zoo"] for row in rows)

    def cell(row: Row) -> str:
        return f"{_percent(row)}, {100 * row['tpr_at_1pct']:.1f}, {row['auc']:.3f}; {_times(row)}"

    names = _seen(
        row["attack"] for row in rows if row["zoo"] == zoos[0] and row["attack"] != "permuted-truth"
    )
    return _table(
        ["attack", *map(_zoo, zoos)], [[name, *(cell(at[zoo, name]) for zoo in zoos)] for name in names]
    )


def each_seed(result: Result) -> str:
    """W over LiRA and over B, seed by seed."""
    lines = []
    for zoo in _seen(row["zoo"] for row in result["rows"]):
        w = next(r for r in result["rows"] if (r["zoo"], r["attack"], r["seed"]) == (zoo, "W", "all"))
        keys = "ratio_to_lira_seeds", "ratio_to_blackbox_stack_seeds"
        lines.append([_zoo(zoo), *(", ".join(f"{x:.2f}" for x in w[key]) for key in keys)])
    return _table(["seeds 0, 1, 2", "W over LiRA", "W over B"], lines)


def controls(result: Result) -> str:
    """What W reads over B with signals that cannot know, and with truth that is permuted."""
    rows = [row for row in result["rows"] if row["seed"] == "all"]
    at = {(row["zoo"], row["attack"]): row for row in rows}
    zoos = _seen(row["zoo"] for row in rows)
    lines = [
        [
            f"{name}, over B",
            *(_times(at[zoo, f"control-{name}"], "ratio_to_blackbox_stack", "_bb") for zoo in zoos),
        ]
        for name in ("noise", "target", "record")
    ]
    null = [at[zoo, "permuted-truth"] for zoo in zoos]
    lines.append(["permuted truth: TPR %, AUC", *(f"{_percent(row)}, {row['auc']:.3f}" for row in null)])
    return _table(["control", *map(_zoo, zoos)], lines)


def coverage(result: Result) -> str:
    rows = _of(result, "coverage")
    shares = _seen(row["coverage"] for row in rows if "coverage" in row)
    anywhere = next(row for row in rows if row["attack"] == "lira" and "coverage" not in row)
    at = {(row["attack"], row.get("noise"), row.get("coverage")): row for row in rows}

    def line(label: str, attack: str, noise: float | None = None) -> list[str]:
        cells = [at.get((attack, noise, share), anywhere if attack == "lira" else None) for share in shares]
        return [label, *(_percent(row, 1) for row in cells)]

    wide = max(row["noise"] for row in rows if "noise" in row)
    head = [f"{100 * share:g} %" if isinstance(share, float) else "one record + aux" for share in shares]
    body = [line("decode", "decode"), line(f"decode, noise {wide:g}", "decode", wide)]
    return _table(["candidates", *head], [*body, line("dual", "dual"), line("LiRA, 16 shadows", "lira")])


def decay(result: Result) -> str:
    rows = _of(result, "decay")
    epochs = _seen(row["epochs"] for row in rows)

    def cell(weight_decay: float, n: int) -> str:
        own = [row for row in rows if (row["weight_decay"], row["epochs"]) == (weight_decay, n)]
        return " / ".join(_percent(row, 1) for row in _in_order(own))

    lines = [[f"{d:g}", *(cell(d, n) for n in epochs)] for d in _seen(row["weight_decay"] for row in rows)]
    return _table(["decode / dual / LiRA", *(f"{n} epochs" for n in epochs)], lines)


def settings(result: Result) -> str:
    rows = _of(result, "settings")
    tables = []
    for attack, name in (("dual", "ridge"), ("decode", "noise")):
        own = [row for row in rows if row["attack"] == attack]
        tables.append(
            _table([f"{name} of {attack}", *(f"{row[name]:g}" for row in own)], [["", *(_each(own))]])
        )
    return "\n\n".join(tables)


def shadows(result: Result) -> str:
    rows = _of(result, "shadows")
    at = {(row["attack"], row["shadows"]): row for row in rows}
    counts = _seen(row["shadows"] for row in rows)
    lines = [[name, *(_percent(at.get((name, q)), 1) for q in counts)] for name in (*FREE, *ON_SHADOWS)]
    return _table(["shadows", *map(str, counts)], lines)


def sweep(names: Sequence[str], *keys: str) -> Callable[[Result], str]:
    """A table in which one thing is changed: what it costs in accuracy, and what the three attacks read."""

    def table(result: Result) -> str:
        rows = [row for row in _of(result, *names) if row.get("layers", "dense") == "dense"]
        lines = []
        for case in _seen(tuple(row.get(key) for key in keys) for row in rows):
            own = [row for row in rows if tuple(row.get(key) for key in keys) == case]
            label = " ".join(str(part).replace("_", " ") for part in case)
            lines.append(
                [label, f"{100 * own[0]['test']:.1f}", *(_percent(row, 1) for row in _in_order(own))]
            )
        return _table([" ".join(keys).replace("_", " "), "test accuracy %", "decode", "dual", "LiRA"], lines)

    return table


def layers(result: Result) -> str:
    rows = [row for row in _of(result, "layers") if "layers" in row]
    at = {(row["layers"], row["attack"]): row for row in rows}
    lines = [
        [name, *(_percent(at[name, attack], 1) for attack in ("decode", "dual"))]
        for name in _seen(row["layers"] for row in rows)
    ]
    return _table(["layers", "decode", "dual"], lines)


def tuned(result: Result) -> str:
    """Fine-tuning: every attack, all seeds together."""
    rows = [row for row in result["rows"] if row["part"] == "finetuning" and row["seed"] == "all"]
    lines = [
        [
            NAMES.get(row["attack"], row["attack"]),
            _percent(row),
            f"{100 * row['tpr_at_1pct']:.1f}",
            f"{row['auc']:.3f}",
            _times(row),
        ]
        for row in rows
    ]
    return _table(["attack", "TPR % at 0.1 % FPR", "at 1 %", "AUC", "over LiRA"], lines)


def budget(result: Result) -> str:
    """Little time: a zoo after another."""
    rows = [row for row in result["rows"] if row["part"] == "budget"]
    lines = [
        [
            _zoo(row["zoo"]),
            NAMES.get(row["attack"], row["attack"]),
            str(row["shadows"]),
            f"{row['seconds']:.2f}",
            f"{row['seconds_further']:.2f}",
            _percent(row),
            _times(row, "ratio_to_lira-q"),
        ]
        for row in rows
    ]
    head = ["zoo", "attack", "shadows", "seconds, one target", "each further", "TPR % at 0.1 % FPR"]
    return _table([*head, "over LiRA-q"], lines)


def bought(result: Result) -> str:
    """LiRA with the shadows that W's seconds train."""
    rows = [row for row in result["rows"] if row["part"] == "bought"]
    at = {(row["zoo"], row["attack"]): row for row in rows}
    lines = []
    for zoo in _seen(row["zoo"] for row in rows):
        own = next(row for row in rows if row["zoo"] == zoo)
        q = own["bought"]
        few, many = at[zoo, "lira-64"], at[zoo, f"lira-{q}"]
        cells = (
            f"{own['seconds_of_W']:.0f}",
            str(q - 64),
            _percent(few),
            _percent(many),
            _times(many, "ratio_to_lira-64"),
        )
        lines.append([_zoo(zoo), *cells, f"{100 * own['W']:.2f}"])
    head = ["seed 0", "seconds of W", "further shadows for them", "LiRA, 64", "LiRA, with them", "over 64"]
    return _table([*head, "W"], lines)


def positive(result: Result) -> str:
    """The simulated world."""
    rows = [row for row in result["rows"] if row["part"] == "positive"]
    lines = [[f"{row['rho']:.2f}", _percent(row), f"{100 * row['lira']:.2f}", _times(row)] for row in rows]
    return _table(["rho", "best direction", "LiRA", "ratio"], lines)


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(
        f"|{'|'.join(cells)}|" if cells[0] == "---" else f"| {' | '.join(cells)} |" for cells in rows
    )


def _seen(values: Iterable[Any]) -> list[Any]:
    """Each once, in order of appearance."""
    return list(dict.fromkeys(values))


def _of(result: Result, *names: str) -> list[Row]:
    return [row for row in result["rows"] if row["table"] in names]


def _in_order(rows: Sequence[Row]) -> list[Row | None]:
    """decode, dual, LiRA."""
    at = {row["attack"]: row for row in rows}
    return [at.get(name) for name in OURS]


def _each(rows: Sequence[Row]) -> list[str]:
    return [_percent(row, 1) for row in rows]


def _percent(row: Row | None, digits: int = 2) -> str:
    if row is None or row["tpr_at_0.1pct"] is None:
        return "-"
    return f"{100 * row['tpr_at_0.1pct']:.{digits}f}"


def _times(row: Row, value: str = "ratio_to_lira", end: str = "") -> str:
    low, high = row[f"low{end}"], row[f"high{end}"]
    if row[value] is None or low is None or high is None:
        return "-"
    return f"{row[value]:.2f} ({low:.2f} to {high:.2f})"


def _zoo(name: str) -> str:
    return name.replace("_", ", ")
