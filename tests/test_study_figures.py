"""The figures of searches and what they show."""

import numpy as np
import pytest
import torch

import fair_darts
import genotypes
import train_search
from genotypes import PRIMITIVES, Edge, Genotype
from spaces import s1
from study import compare, draw_cells, figures, interval, records, visualize
from tests.common import FIGURES, Malicious, SMALL_SEARCH, assert_picture, call, recorded_run, table


@pytest.mark.parametrize("primitives, nodes, epochs", [
    (PRIMITIVES, 4, 50), (("skip_connect", "sep_conv_3x3"), 3, 1), (("dil_conv_5x5",), 1, 2),
    (PRIMITIVES, 3, 1)])
def test_figures_of_a_run(primitives, nodes, epochs, tmp_path, monkeypatch, capsys):
    folder = recorded_run(tmp_path / "run", primitives, nodes, epochs, threshold=0)
    assert call(visualize, monkeypatch, folder) == 0
    assert capsys.readouterr().out.split() == [
        str(folder / "figures" / f"{name}.png") for name in FIGURES]
    for name in FIGURES:
        assert_picture(folder / "figures" / f"{name}.png")


def test_figures_of_several_runs_and_of_architectures(tmp_path, monkeypatch, capsys):
    folders = [recorded_run(tmp_path / "all" / str(seed), epochs=4, seed=seed, gate=gate,
                            zero_one_loss=loss)
               for seed, gate, loss in ((0, "sigmoid", "l2"), (1, "sigmoid", "l1"),
                                        (2, "softmax", "l2"), (3, "softmax", "l2"))]
    assert call(visualize, monkeypatch, *folders) == 0
    for name in ("dominant", "heatmap", "gap"):
        assert_picture(tmp_path / "all" / "comparison" / f"{name}.png")
    found = [records.read(str(folder)) for folder in folders]
    assert [records.setting(record) for record in found] == [
        "sigmoid, w01 10, l2", "sigmoid, w01 10, l1", "softmax", "softmax"]
    assert records.names_of(found) == [records.setting(record) for record in found]
    for axes in compare.gap(found).axes:  # rounding, selection, both
        assert len(axes.lines) == len(axes.collections) == 3
        low, high = axes.get_ylim()
        assert low <= 0 and all(low <= y <= high for line in axes.lines for y in line.get_ydata())
    for axes in compare.dominant(found).axes:  # the mean of runs of one setting
        skip = PRIMITIVES.index("skip_connect")
        part = "normal" if "normal" in axes.get_title() else "reduce"
        counts = [records.dominant_counts(record, part)[:, skip] for record in found[2:]]
        assert np.array_equal(axes.lines[2].get_ydata(), np.mean(counts, 0))
        assert axes.get_ylim()[0] == 0
    other = [record._replace(settings={**record.settings, **more}) for record, more in zip(
        found[2:], ({"learning_rate": 0.1}, {"learning_rate": 0.2, "seed": 5}))]
    assert records.names_of(other) == ["softmax, learning_rate 0.1", "softmax, learning_rate 0.2"]
    assert records.names_of(found[2:]) == ["2", "3"]  # alike: by their folders
    del found[3].settings["learning_rate"]  # a config.json that was edited
    assert len(set(records.names_of(found[2:]))) == 2
    for name in ("FairDARTS_a", "FairNAS_A", folders[0] / "genotype.json"):
        assert call(visualize, monkeypatch, name, "--output", tmp_path / "cells") == 0
    for name in ("FairDARTS_a_normal", "FairDARTS_a_reduce", "FairNAS_A_chain", "cell_normal",
                 "cell_reduce"):
        assert_picture(tmp_path / "cells" / f"{name}.png")
    capsys.readouterr()
    (tmp_path / "empty").mkdir()
    (folders[0] / "gates.npz").write_bytes(b"junk")
    np.savez(folders[1] / "gates.npz", normal=np.array([Malicious()], dtype=object))
    for what, message in (
            (["FairDARTS_x"], "did you mean"),
            ([tmp_path / "empty"], "not the folder of a run"),
            ([folders[0]], "cannot be read as a search"),
            ([folders[1], folders[2]], "cannot be read as a search"),
            ([], "required")):
        assert call(visualize, monkeypatch, *what) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and message in error


def test_what_the_figures_show(tmp_path):
    gates = np.full((2, 2, 14, 7), 0.1, np.float32)
    skip, sep = PRIMITIVES.index("skip_connect"), PRIMITIVES.index("sep_conv_3x3")
    # first all skips, then all convolutions but for one, on the best edge of node 5
    gates[0, 0, :, skip] = 0.9
    gates[1, 0, :, sep] = 0.9
    gates[1, 0, -1, skip] = 0.95
    record = records.read(str(recorded_run(tmp_path / "run", gates=gates, threshold=0.85)))
    assert records.dominant_counts(record, "normal").tolist() == [
        [0, 0, 8, 0, 0, 0, 0], [0, 0, 1, 7, 0, 0, 0]]
    # the reduction cell has no edge
    assert (record.genotype is None
            and not records.kept_gates(record, "normal").any())
    histogram = records.gate_histogram(record, 10)
    assert (histogram.shape == (10, 2)
            and histogram[:, 0].sum() == pytest.approx(1) == histogram[:, 1].sum())
    assert (histogram[9, 0] == pytest.approx(14 / 196)
            and histogram[9, 1] == pytest.approx(15 / 196))
    gates[1, 1, 0, sep] = 0.9
    record = records.read(str(recorded_run(tmp_path / "other", gates=gates, threshold=0.85)))
    kept = records.kept_gates(record, "normal")
    assert (kept.sum() == 8 and kept[-1, skip] and kept[0, sep] and kept[1, sep]
            and not kept[-1, sep])
    assert records.kept_gates(record, "reduce").nonzero() == (np.array([0]), np.array([sep]))
    for axes, part in zip(figures.draw_heatmap(record).axes, record.gates):
        framed = [[round(frame.get_y()), round(frame.get_x())] for frame in axes.patches]
        assert sorted(framed) == np.argwhere(records.kept_gates(record, part)).tolist()
    # rounding makes 14 + 1 gates 1, of which the best edges of each node and operations are kept
    marks = records.reasons(record, "normal")
    best = s1.kept_edges(torch.from_numpy(gates[1, 0]), 2, PRIMITIVES).flatten().bool().tolist()
    assert [marks[row, sep] for row in range(14)] == [
        "" if kept[row, sep] else "o" if row == 13 else "e" for row in range(14)]
    assert all((marks[row] == "e").any() != keep for row, keep in enumerate(best))
    low = record._replace(settings={**record.settings, "threshold": 0.99}, genotype=None)
    assert set(records.reasons(low, "normal")[:, sep]) == {"e", "t", "o"}
    # a skip of the reduction cell that leaves a node which nothing enters
    gates = np.full((1, 2, 14, 2), 0.1, np.float32)
    gates[0, :, fair_darts.edge_row(3, 2), 0] = gates[0, :, fair_darts.edge_row(4, 0), 1] = 0.9
    record = records.read(str(recorded_run(
        tmp_path / "limited", ("skip_connect", "sep_conv_3x3"), gates=gates, keep_skips=0)))
    assert set(records.reasons(record, "reduce")[:, 0]) == {"", "p"}
    assert s1.row_names(5) == ["0 → 2", "1 → 2", "0 → 3", "1 → 3", "2 → 3"]


def test_cells_are_drawn_without_overlap():
    full = [Edge(op, node, source)
            for node in range(2, 6) for source in range(node) for op in PRIMITIVES[:2]]
    cells = [cell for genotype in genotypes.PUBLISHED.values() if isinstance(genotype, Genotype)
             for cell in genotype]
    for cell in cells + [full, full[:1]]:
        points, labels = draw_cells.cell_layout(cell)
        assert sorted(edge for edge, _, _ in labels) == sorted(cell)
        assert len({y for _, _, y in labels}) == len(labels)  # a lane each
        figure = draw_cells.draw_cell(cell, "Normal cell")
        figure.draw_without_rendering()
        boxes = [text.get_window_extent() for text in figure.axes[0].texts]
        assert len(boxes) == len(cell) + 7
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    grey = [c for c in draw_cells.draw_cell(genotypes.FairDARTS_a.normal, "").axes[0].patches
            if type(c).__name__ == "Circle" and c.get_facecolor()[0] < 0.9]
    assert len(grey) == 1  # nothing enters node 3


def test_search_draws_figures_and_survives_their_failure(tmp_path, monkeypatch, capsys):
    search = [*SMALL_SEARCH, "--threshold", 0, "--runs", tmp_path, "--figures_every", 1, "--name"]
    drawn, draw = [], visualize.draw_run
    monkeypatch.setattr(visualize, "draw_run", lambda folder: drawn.append(draw(folder)))
    assert call(train_search, monkeypatch, *search, "a", "--gap_every", 1) == 0
    assert ([len(paths) for paths in drawn] == [5, 7]
            and (tmp_path / "a" / "figures" / "cell_normal.png").exists())
    monkeypatch.setattr(visualize, "draw_run", lambda folder: 1 / 0)
    capsys.readouterr()
    assert call(train_search, monkeypatch, *search, "b") == 0
    assert ("note: no figures: ZeroDivisionError" in capsys.readouterr().err
            and len(table(tmp_path / "b")) == 2)


def test_one_picture_a_quantity():
    values = {"a": [1.0, 2.0, None], "b": [None], "c": [-3.0]}
    [axes] = compare.arms("something", values).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c"]
    dots = [line.get_xydata().tolist() for line in axes.lines if line.get_marker() == "o"]
    assert dots == [[[1, 0], [2, 0]], [], [[-3, 2]]]
    bars = [container.lines[2][0].get_segments() for container in axes.containers]
    mean, half = interval.interval([1.0, 2.0])
    assert np.allclose(bars[0], [[[mean - half, 0], [mean + half, 0]]])
    assert np.allclose(bars[2], [[[-3, 2], [-3, 2]]])
