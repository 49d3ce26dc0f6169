from dataclasses import replace

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.colors import rgb_to_hsv

from workbench import plots


def steps(figure):
    return {line.get_label().split()[-1]: line for line in figure.axes[0].lines if "%" in line.get_label()}


def test_pictures_are_drawn_from_files_and_no_figure_is_left_open(held, tmp_path):
    paths = plots.save(held, tmp_path)
    assert [path.name for path in paths] == ["roc.png", "records.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    assert pyplot.get_fignums() == []


def test_eight_curves_at_most_the_best_ones_and_none_twice(held):
    drawn = list(steps(plots.roc(held)))
    assert len(drawn) == 8
    assert "confidence" not in drawn or "loss" not in drawn  # the same curve
    rank = {row["attack"]: row["tpr_at_0.1pct"] for row in held.summary}
    assert [rank[name] for name in drawn] == sorted((rank[name] for name in drawn), reverse=True)
    assert list(steps(plots.roc(held, ["loss", "confidence"]))) == ["loss", "confidence"]  # if asked for
    with pytest.raises(ValueError, match="attacks must be some of .*, got 'lyra'"):
        plots.roc(held, ["lyra"])


def test_curves_are_steps_on_two_log_axes(held):
    """Read at a rate, the picture says what the table says."""
    figure = plots.roc(held, ["lira"])
    axes, line = figure.axes[0], steps(figure)["lira"]
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert line.get_drawstyle() == "steps-post"
    x, y = line.get_data()
    lira = next(row for row in held.summary if row["attack"] == "lira")
    assert y[np.searchsorted(x, 0.01 + 1e-12, side="right") - 1] == pytest.approx(lira["tpr_at_1pct"])
    assert (np.diff(x) >= 0).all()
    assert x.min() == axes.get_xlim()[0] == pytest.approx(0.5 / lira["n_neg"])
    assert y.min() >= axes.get_ylim()[0]  # a TPR of 0 lies on the floor


def test_readable_in_grey(held):
    """A family has one hue, and each of its curves another lightness."""
    colours = [line.get_color() for line in steps(plots.roc(held)).values()]
    grey = [np.dot(colour, (0.299, 0.587, 0.114)) for colour in colours]
    assert (np.diff(grey) > 0.03).all()
    assert np.ptp([rgb_to_hsv(colour)[0] for colour in colours]) < 0.01


def test_pictures_carry_where_they_come_from(held):
    for figure in (plots.roc(held), plots.records(held)):
        small = " ".join(text.get_text() for text in figure.texts)
        for word in ("glasslab compare", "seed 0", "m = 16", "t = 5", "n_neg", held.manifest["commit"]):
            assert word in small


def test_four_records(held):
    figure = plots.records(held)
    assert len(figure.axes) == 4
    phi = held.curves.query("curve == 'phi'")
    for axes, (quantile, points) in zip(figure.axes, phi.groupby("x"), strict=True):
        assert f"record {points['record'].iloc[0]}: quantile {quantile:.2f}" in axes.get_title()
        marks = [line for line in axes.lines if line.get_marker() in "^v"]
        values = sorted(float(v) for line in marks for v in line.get_xdata())
        assert values == sorted(points.loc[points["side"].str.startswith("target"), "y"])


def test_nothing_to_draw(held, tmp_path):
    failed = [{**row, "error": "all"} for row in held.summary]
    empty = replace(held, summary=failed, curves=held.curves[held.curves["curve"] == "null"])
    assert plots.save(empty, tmp_path) == []
