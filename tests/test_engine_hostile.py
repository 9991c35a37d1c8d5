"""Hostile files, names, settings and machines: one line each, nothing changed, no code run."""
import csv
import errno
import io
import json
import math
import os
import secrets
import shlex
import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import train_eval
import train_search
from engine import data, flags, folders, loop, texts
from genotypes import PRIMITIVES, Edge, Genotype
from spaces import s2
from study import many_runs, reproduce, visualize
from tests.common import (CLAIMS, TINY_EVAL, TINY_SEARCH, call, content, deep, ended, fork, leaves,
                          new_run, recorded_run, refused, sealed)
from use import classifier

DIGITS = ["--dataset", "digits"]


# ---- 1: links and pipes

@pytest.mark.parametrize("name, kind", [
    ("log.txt", "link"), ("log.txt", "dangling"), ("checkpoint.pt.part", "link"),
    ("config.json", "link"), ("checkpoint.pt", "link"), ("metrics.csv", "link"),
    ("gates.npz", "link"), ("figures", "folder"), ("genotype.json", "link"),
    ("new", "fifo"), ("log.txt", "fifo"), ("checkpoint.pt", "fifo"), ("x.part", "fifo")])
def test_links_and_pipes_in_a_run_are_refused(name, kind, finished, tmp_path, monkeypatch, capsys):
    for run, script, commands in (("a", train_search, [["--resume"], []]),
                                  ("d", train_eval, [["--resume"], ["--evaluate"]])):
        folder, outside = tmp_path / run, tmp_path / f"outside_{run}"
        shutil.copytree(finished / run, folder)
        outside.mkdir()
        if (folder / name).is_file():
            shutil.move(folder / name, outside / "file")
        elif kind == "link":
            (outside / "file").write_text("kept")
        if kind == "fifo":
            os.mkfifo(folder / name)
        else:
            (folder / name).symlink_to({"link": outside / "file", "folder": outside,
                                        "dangling": outside / "nothing"}[kind])
        before = content(folder), content(outside)
        for command in commands:
            caller, more = (script, ["--epochs", 2]) if command else (visualize, [])
            error = refused(capsys, monkeypatch, caller, *command, folder, *more)
            assert "is a link, or not a file" in error
            assert (content(folder), content(outside)) == before


def test_write_whole_follows_no_link(tmp_path, monkeypatch):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("kept")
    link.symlink_to(target)
    folders.write_whole(link, "new")
    assert not link.is_symlink() and link.read_text() == "new"
    monkeypatch.setattr(secrets, "token_hex", lambda _: "00")  # even if the name is guessed
    (tmp_path / "file.00.part").symlink_to(target)
    with pytest.raises(FileExistsError):
        folders.write_whole(tmp_path / "file", "new")
    assert target.read_text() == "kept" and not (tmp_path / "file").exists()


def test_links_among_figures_are_replaced(tmp_path, monkeypatch):
    folder, outside = recorded_run(tmp_path / "run", epochs=1), tmp_path / "outside"
    outside.write_text("kept")
    (folder / "figures").mkdir()
    (folder / "figures" / "gates.png").symlink_to(outside)
    os.mkfifo(folder / "figures" / "dominant.png")
    assert call(visualize, monkeypatch, folder) == 0
    assert outside.read_text() == "kept"
    for name in ("gates", "dominant"):
        assert (folder / "figures" / f"{name}.png").is_file()
        assert not (folder / "figures" / f"{name}.png").is_symlink()


# ---- 2: names

def test_names_that_end_in_part_and_names_of_one_second(tmp_path, monkeypatch):
    first = loop.Run.create("train_search", {
        **train_search.SCRIPT.parser().defaults(), "dataset": "digits", "runs": str(tmp_path),
        "name": "exp.part"}, fingerprint="", classes=[], shape=[1, 8, 8])
    assert call(train_search, monkeypatch, *TINY_SEARCH, "--runs", tmp_path, "--name", "exp") == 0
    assert os.listdir(first.folder) == ["config.json"] and (tmp_path / "exp").is_dir()
    with ThreadPoolExecutor(3) as pool:
        folders = list(pool.map(lambda _: new_run(tmp_path / "many", name=None).folder, range(3)))
    assert len(set(folders)) == 3 == len(os.listdir(tmp_path / "many"))


# ---- 3: a run that is moved away

@pytest.mark.parametrize("replaced, command", [
    (True, train_search), (False, train_search), (True, train_eval)])
def test_a_run_that_was_moved_stops(replaced, command, tmp_path, monkeypatch, capsys):
    folder, moved, add = tmp_path / "a", tmp_path / "moved", loop.Run.add

    def move(self, *others, **figures):
        if not moved.exists():
            folder.rename(moved)
            if replaced:
                folder.mkdir()
        add(self, *others, **figures)

    monkeypatch.setattr(loop.Run, "add", move)
    tiny = TINY_SEARCH if command is train_search else TINY_EVAL
    refused(capsys, monkeypatch, command, *tiny, "--runs", tmp_path, "--name", "a")
    assert not replaced or list(folder.iterdir()) == []
    assert sorted(content(moved)) == ["config.json", "log.txt"]
    monkeypatch.setattr(loop.Run, "add", add)
    assert call(command, monkeypatch, "--resume", moved) == 0  # it goes on where it is


@pytest.mark.parametrize("script, run, name, other, command, message", [
    (train_search, "a", "checkpoint.pt", "b", "--resume", "another run"),
    (train_search, "a", "checkpoint.pt", "c", "--resume", "another run"),
    (train_eval, "d", "checkpoint.pt", "e", "--resume", "another run"),
    (train_eval, "d", "best.pt", "e", "--evaluate", "another run"),
    (train_eval, "d", "best.pt", "a/checkpoint.pt", "--evaluate", "lacks epoch"),
    (train_search, "a", "checkpoint.pt", {"seed": 1}, "--resume", "--seed 1"),
    (train_eval, "d", "checkpoint.pt", {"layers": 4}, "--resume", "--layers 4"),
    (train_eval, "d", "best.pt", {"seed": 1}, "--evaluate", "--seed 1")])
def test_files_of_another_run_are_refused(script, run, name, other, command, message, finished,
                                          tmp_path, monkeypatch, capsys):
    folder = tmp_path / run
    shutil.copytree(finished / run, folder)
    if isinstance(other, dict):  # the same id, other settings
        state = torch.load(folder / name, weights_only=True)
        (folder / name).write_bytes(sealed({**state, "settings": {**state["settings"], **other}}))
    else:
        shutil.copy(finished / (other if "/" in other else f"{other}/{name}"), folder / name)
    before = content(folder)
    error = refused(capsys, monkeypatch, script, command, folder, "--epochs", 2)
    assert message in error and content(folder) == before


# ---- 5: a full disk from the start

@pytest.mark.parametrize("owner, name", [(os, "replace"), (os, "fsync"), (folders, "open"),
                                         (folders, "write_whole"), (os, "mkdir")])
def test_a_failed_creation_leaves_no_folder(owner, name, tmp_path, monkeypatch, capsys):
    def full(*arguments, **more):
        raise OSError(errno.ENOSPC, "No space left on device", "config.json")

    (tmp_path / "runs").mkdir()
    for script, tiny in (train_search, TINY_SEARCH), (train_eval, TINY_EVAL):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, full, raising=False)
            error = refused(capsys, patch, script, *tiny, "--runs", tmp_path / "runs",
                            "--name", "a")
        assert "No space left" in error and list((tmp_path / "runs").iterdir()) == []


def test_a_log_of_other_bytes(finished, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "a"
    shutil.copytree(finished / "a", folder)
    (folder / "log.txt").write_bytes(b"\xff\xfe\x00 \xe9\n")
    assert call(train_search, monkeypatch, "--resume", folder, "--epochs", 2) == 0
    assert capsys.readouterr().err == "" and "epoch 2/2" in (folder / "log.txt").read_text()


# ---- 7: what visualize.py reads

def npz(folder, **changes):
    """The gates.npz in `folder` with members changed; None: left out."""
    with np.load(folder / "gates.npz") as file:
        arrays = {**{name: file[name] for name in file}, **changes}
    buffer = io.BytesIO()
    np.savez(buffer, **{name: array for name, array in arrays.items() if array is not None})
    return buffer.getvalue()


def zipped(run, member, size=None):
    """gates.npz whose normal.npy is `member`, and claims to unpack to `size` bytes."""
    buffer = io.BytesIO()
    with (zipfile.ZipFile(run / "gates.npz") as old,
          zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new):
        for name in old.namelist():
            new.writestr(name, member if name == "normal.npy" else old.read(name))
        if size:
            new.filelist[0].file_size = size
    return buffer.getvalue()


def npy(shape, data=b""):
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


BAD_RECORDS = [
    *[("gates.npz", lambda run, cut=cut: (run / "gates.npz").read_bytes()[:cut])
      for cut in (0, 1, 30, 200, 500, -1)],
    ("gates.npz", lambda run: bytes(b ^ (i % 97 == 60) for i, b in
                                    enumerate((run / "gates.npz").read_bytes()))),
    ("gates.npz", lambda run: npz(run, normal=None)),
    ("gates.npz", lambda run: npz(run, normal=np.zeros((1, 14, 7), np.float32))),
    ("gates.npz", lambda run: npz(run, normal=np.zeros((2, 13, 7), np.float32))),
    ("gates.npz", lambda run: npz(run, normal=np.zeros((2, 14, 7), np.float64))),
    ("gates.npz", lambda run: npz(run, normal=np.zeros((2, 14, 7), np.int32))),
    ("gates.npz", lambda run: npz(run, normal=np.full((2, 14, 7), 1.5, np.float32))),
    ("gates.npz", lambda run: npz(run, normal=np.full((2, 14, 7), -.1, np.float32))),
    ("gates.npz", lambda run: npz(run, normal=np.full((2, 14, 7), np.nan, np.float32))),
    ("gates.npz", lambda run: npz(run, normal=np.full((2, 14, 7), np.inf, np.float32))),
    ("gates.npz", lambda run: npz(run, normal=np.array([{}, []], object))),
    ("gates.npz", lambda run: npz(run, primitives=np.array(PRIMITIVES, object))),
    ("gates.npz", lambda run: npz(run, primitives=np.array(PRIMITIVES[::-1]))),
    ("gates.npz", lambda run: npz(run, primitives=np.float32(1))),
    ("gates.npz", lambda run: npz(run, run=np.array("2"))),
    ("gates.npz", lambda run: npz(run, run=np.array(["1", "1"]))),
    ("gates.npz", lambda run: npz(run, run=None)),
    ("gates.npz", lambda run: zipped(run, npy((2, 14, 7), bytes(784)), 8 << 30)),
    ("gates.npz", lambda run: zipped(run, npy((2, 14, 1 << 26), bytes(784)))),
    ("gates.npz", lambda run: zipped(run, npy((2, 14, 1 << 60), bytes(784)))),
    ("gates.npz", lambda run: zipped(run, npy((2, 14, -7), bytes(784)))),
    ("gates.npz", lambda run: zipped(run, npy((1 << 25,), bytes(1 << 27)))),
    ("gates.npz", lambda run: zipped(run, b"\x93NUMPY\x03\x00\xff\xff\xff\xff{")),
    ("config.json", lambda run: (run / "config.json").read_bytes().replace(
        b'"ops_per_edge": 1', b'"ops_per_edge": 1' + b"0" * 400)),
    ("gates.npz", lambda run: zipped(run, b"\x80\x04cos\nmkdir\n(S'owned'\ntR.")),
    ("metrics.csv", lambda run: b""),
    ("metrics.csv", lambda run: b"epoch,train_loss\n"),
    ("metrics.csv", lambda run: (run / "metrics.csv").read_bytes()[:90]),
    ("metrics.csv", lambda run: b"epoch,train_loss\n1," + b"1" * (csv.field_size_limit() + 1)),
    ("metrics.csv", lambda run: b"epoch,soft_accuracy\n1,2\n2,3\n"),
    ("metrics.csv", lambda run: b"\xff\xfe"),
    ("metrics.csv", lambda run: (run / "metrics.csv").read_bytes().replace(b"90", b"9\0")),
    ("metrics.csv", lambda run: (run / "metrics.csv").read_bytes().replace(b"90", b"nan")),
    ("metrics.csv", lambda run: (run / "metrics.csv").read_bytes().replace(b"90", b"1e999")),
    ("metrics.csv", lambda run: (run / "metrics.csv").read_bytes().replace(b"90", b'"')),
    ("metrics.csv", lambda run: (run / "metrics.csv").read_bytes() * 2),
    ("genotype.json", lambda run: texts.to_json(s2.FairNAS_A).encode()),
    ("genotype.json", lambda run: texts.to_json(
        Genotype([Edge("skip_connect", 6, 0)], [Edge("skip_connect", 2, 0)])).encode()),
    ("genotype.json", lambda run: json.dumps(
        dict.fromkeys(("normal", "reduce"), [["skip_connect", 2, 0]] * 10000)).encode()),
    ("genotype.json", lambda run: b"[" * 100000), ("genotype.json", lambda run: b""),
    ("genotype.json", lambda run: b'{"normal": [["skip_connect", 1e999, 0]], "reduce": []}'),
    ("genotype.json", lambda run: b'{"normal": [["skip_connect", 2, ' + b"9" * 5000 + b"]]}"),
    ("genotype.json", lambda run: b"\xff"), ("genotype.json", lambda run: None)]


@pytest.mark.parametrize("row", range(len(BAD_RECORDS)))
def test_bad_records_are_refused(row, tmp_path, monkeypatch, capsys):
    name, damage = BAD_RECORDS[row]
    folder = recorded_run(tmp_path / "run", epochs=2, threshold=0.0)
    damaged = damage(folder)
    (folder / name).unlink()
    if damaged is None:
        (folder / name).mkdir()
    else:
        (folder / name).write_bytes(damaged)
    before = content(tmp_path)
    monkeypatch.chdir(tmp_path)
    error = refused(capsys, monkeypatch, visualize, folder)
    assert str(folder) in error
    assert name in error or name == "gates.npz" and "cannot be read as a search" in error
    assert content(tmp_path) == before  # no code ran, nothing was drawn


EDITED = [  # of config.json: ({setting: value} or a whole text, the message)
    ({"batch_size": 9999}, "--batch_size"), ({"train_portion": 1e-5}, ""),
    ({"space": "s2"}, ""), ({"primitives": "skip_connect,max_pool_3x3"}, ""),
    ({"data": "a\0b"}, "--data: expected a path"), ({"data": "\ud800"}, "expected a path"),
    ({"runs": "a\0b"}, "expected a path"), ({"name": "\ud800"}, "expected a path"),
    ({"dataset": "\ud800"}, "unknown"), ({"w01": 10**400}, ""), ({"epochs": 10**400}, ""),
    ({"layers": 10**9}, ""), ({"init_channels": 10**9}, ""),
    ({"nodes": 10**9}, "from 1 to 4"), ({"seed": 2**63}, "--seed"),
    ({"device": "x"}, "--device"), ({"device": "cpu:9999999999"}, "--device"),
    ({"device": "meta"}, "--device"), ({"threads": 2**31}, "--threads"),
    ({"threads": True}, "--threads"), ({"primitives": "x," * 10000}, "unknown"),
    ({"w01": deep(900)}, "expected a number"), ({"name": "a\nb"}, ""),
    ({"dataset": "folder", "data": "no\nwhere"}, "")]


@pytest.mark.parametrize("started", [True, False])
def test_edited_configs_are_refused(started, finished, tmp_path, monkeypatch, capsys):
    """Also before there is a checkpoint, with which a setting can be compared."""
    folder, wrong = tmp_path / "a", []
    shutil.copytree(finished / "a", folder)
    if not started:
        for name in set(os.listdir(folder)) - {"config.json"}:
            (folder / name).unlink()
    config = (folder / "config.json").read_text()
    monkeypatch.chdir(tmp_path)
    texts = [(json.dumps(leaves(json.loads(config), *((("settings", key), value)
                                                      for key, value in values.items()))), message)
             for values, message in EDITED
             if started or not {"space", "primitives", "epochs", "layers", "init_channels",
                                "name"} & values.keys()]
    texts += [(config.replace('"w01": 10.0', '"w01": ' + value), "")
              for value in ("1e999", "-Infinity", "NaN", "9" * 5000, "[" * 9999, '"\\ud800"')]
    texts += [(config.replace('"threads": ', '"threads": ' + value), "") for value in ("9" * 5000,)]
    texts += [(json.dumps({**json.loads(config), key: value}), "") for key, value in (
        ("id", "x"), ("id", ["x"]), ("commands", {}), ("fingerprint", "\ud800"), ("version", 1e999),
        ("version", True), ("version", [2]), ("script", []), ("script", "\ud800"), ("threads", "x"),
        ("commands", [1]), ("commands", [["x", 1]]), ("shape", []), ("shape", [1, 8]),
        ("shape", [1, 8, 8.5]), ("shape", [1, -8, 8]), ("shape", ["1", "8", "8"]), ("torch", None),
        ("machine", 1), ("memory_format", "x"), ("memory_format", ["x"]))
        if started or key != "id" or value == ["x"]]
    for text, message in texts:
        (folder / "config.json").write_text(text)
        before = content(folder)
        try:
            error = refused(capsys, monkeypatch, train_search, "--resume", folder,
                            *(["--epochs", 2] if started else []))
            assert message in error and content(folder) == before, error
        except BaseException as error:
            changed = set(json.dumps(json.loads(config))[1:-1].split(", "))
            changed = [part for part in text[1:-1].split(", ") if part not in changed]
            wrong.append(f"{str(changed)[:90]}: {type(error).__name__} {str(error)[:200]}")
    assert not wrong, "\n".join(wrong)


# ---- 9: the command line

HOSTILE_ARGUMENTS = [
    (train_search, ["--epochs=--"], "--epochs"),
    (train_search, ["--epochs", "1" * 401], "--epochs"),
    (train_search, ["--seed", "9" * 9999], "--seed"), (train_search, ["--name=--"], "--name"),
    (train_search, ["--resume=--"], "--resume"), (train_search, ["--primitives=--"], ""),
    (train_search, ["--amp=--"], ""), (train_search, ["--resume", "a\0b"], ""),
    (train_search, ["--data", "a\0b"], "a path"), (train_search, ["--runs", "a\0b"], "a path"),
    (train_search, ["--name", "x" * 300], ""), (train_search, ["--name", "\n/x"], ""),
    (train_search, ["--device", "cuda:99999999999999999999"], "--device"),
    (train_search, ["--device", "\n"], "--device"),
    (train_search, ["--threads", "-1"], "--threads"),
    (train_search, ["--threads", "1" * 401], "--threads"),
    (train_search, ["--device", "meta"], "--device"),
    (train_search, ["--dataset", "folder", "--data", "x\ny"], ""),
    (train_search, ["--image_size", "1" * 401], ""), (train_search, ["--x\ny"], "unknown"),
    (train_search, ["x\ny"], "unexpected"), (train_search, ["--", "x"], ""),
    (train_search, ["--epochs", "1__0"], "--epochs"),
    (train_search, [*DIGITS, "--runs", "x/" * 3000], ""),
    (train_search, [*DIGITS, "--train_portion", "1e-5"], "at least 2 are needed"),
    (train_search, ["--learning_rate", "1e308"], "--learning_rate"),
    (train_search, ["--weight_decay", "1e308"], "--weight_decay"),
    (train_search, ["--gate", "x" * 100000], "--gate"), (train_search, ["--resume", "."], ""),
    (train_eval, ["--arch", "Genotype(normal=[('skip_connect', 0x" + "f" * 6000 + ", 0)], "
                  "reduce=[])"], "normal cell, edge"),
    (train_eval, ["--arch", "Genotype(normal=[('skip_connect', " + "9" * 6000
                  + ", 0)], reduce=[])"], "cannot read"),
    (train_eval, ["--arch", "Genotype(normal=[('skip_connect', 2, 0)] * 10**9, reduce=[])"], ""),
    (train_eval, ["--arch", "Genotype(normal=range(1000000000), reduce=[])"], "normal cell"),
    (train_eval, ["--arch", "Genotype(normal=[('skip_connect', 2, 0)], reduce=[('skip_connect', 2,"
                  " 0)], reduce_concat=range(0, 1000000000000000, 7))"], "reduce_concat"),
    (train_eval, ["--arch", "Genotype(" + "(" * 9999], "cannot read"),
    (train_eval, ["--arch", "Genotype(" + "-" * 99999 + "1)"], "cannot read"),
    (train_eval, ["--arch", "Genotype(\n"], "cannot read"), (train_eval, ["--arch", "a\0b"], ""),
    (train_eval, ["--arch", "Genotype(a\0b"], "cannot read"),
    (train_eval, ["--arch", "/"], "unknown architecture"), (train_eval, ["--arch", "x\ny"], ""),
    (train_eval, ["--arch", "\ud800"], "unknown"), (train_eval, ["--arch", "x/" * 3000], ""),
    (train_eval, ["--arch=--"], "--arch"), (train_eval, ["--evaluate=--"], "--evaluate"),
    (train_eval, ["--evaluate", "A", "--resume", "B"], "two things"),
    (train_eval, ["--evaluate", "\ud800"], ""), (train_eval, ["--resume", "x" * 5000], ""),
    (visualize, ["x\ny"], "no folder of a run"), (visualize, ["a\0b"], ""), (visualize, [""], ""),
    (visualize, ["--output=--", "FairDARTS_a"], "--output"),
    (visualize, ["a", "b"], "not the folder"),
    (visualize, ["FairDARTS_a", "--output", "a\0b"], ""), (visualize, ["--output", "x"], ""),
    (visualize, ["FairDARTS_a", "--output", "/dev/null"], "/dev/null"),
    (reproduce, ["--jobs", "9" * 5000], "--jobs"), (reproduce, ["--jobs=--"], "--jobs"),
    (reproduce, ["--scale", "x\ny"], "--scale"), (reproduce, ["--runs=--"], "--runs"),
    (reproduce, ["--runs", "a\0b"], ""), (reproduce, ["--output", "a\0b"], "")]


@pytest.mark.parametrize("row", range(len(HOSTILE_ARGUMENTS)))
def test_hostile_arguments_are_refused(row, tmp_path, monkeypatch, capsys):
    script, arguments, message = HOSTILE_ARGUMENTS[row]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(many_runs.subprocess, "run", None)
    assert message in refused(capsys, monkeypatch, script, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_the_largest_rates_end_in_one_line(tmp_path, monkeypatch, capsys):
    for name in ("learning_rate", "weight_decay", "w01", "arch_learning_rate", "momentum",
                 "arch_weight_decay"):
        capsys.readouterr()
        code = call(train_search, monkeypatch, *TINY_SEARCH, "--batch_size", 100, "--epochs", 3,
                    "--runs", tmp_path, "--name", name, f"--{name}", "1e30")
        error = capsys.readouterr().err
        assert (code, error) == (0, "") or code == 2 and error.count("\n") == 1
        assert code == 0 or "not finite" in error


def picture_folder(root, size=8, count=1):
    for part in ("train", "test"):
        for name in "ab":
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (size, size), (90 * i, 8, 8)).save(root / part / name / f"{i}.png")
    return root


def test_two_pictures(tmp_path, monkeypatch, capsys):
    root = picture_folder(tmp_path / "two")
    folder = ["--dataset", "folder", "--data", root, "--image_size", 8, "--runs", tmp_path / "runs"]
    for size in 2, 3:
        refused(capsys, monkeypatch, train_search, *TINY_SEARCH, *folder, "--batch_size", size)
    assert not (tmp_path / "runs").exists()
    assert call(train_eval, monkeypatch, *TINY_EVAL, *folder, "--batch_size", 2) == 0


# ---- 11: pictures

def test_hostile_picture_folders(tmp_path, monkeypatch, capsys):
    def load(root):
        return data.load("folder", str(root), 8)

    root = picture_folder(tmp_path / "fifo", count=2)
    os.mkfifo(root / "train" / "a" / "x.png")  # would be waited for, for ever
    (root / "train" / "b" / "y.png").symlink_to("/dev/zero")
    (root / "train" / "b" / "z.png").symlink_to(root / "nothing")
    (root / "train" / "b" / "w.png").mkdir()
    assert len(load(root).labels) == 4
    root = picture_folder(tmp_path / "up", count=2)
    (root / "train" / "a" / "up").symlink_to(root / "train")
    error = refused(capsys, monkeypatch, train_search, *TINY_SEARCH, "--dataset", "folder",
                    "--data", root, "--runs", tmp_path / "runs")
    assert "is a link to a folder" in error and not (tmp_path / "runs").exists()
    root = picture_folder(tmp_path / "class", count=2)
    (root / "train" / "c").symlink_to(root / "train" / "a")
    with pytest.raises(flags.UserError, match="is a link to a folder"):
        load(root)
    root = picture_folder(tmp_path / "file", count=2)
    Image.new("RGB", (8, 8)).save(tmp_path / "outside.png")
    (root / "train" / "a" / "outside.png").symlink_to(tmp_path / "outside.png")
    assert len(load(root).labels) == 5
    (root / "train" / "b" / "again.png").symlink_to(tmp_path / "outside.png")
    with pytest.raises(flags.UserError, match="twice"):
        load(root)


# ---- 12: damaged downloads

def idx(values, *shape, kind=8):
    return (bytes([0, 0, kind, len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape)
            + bytes(values))


def test_damaged_fashionmnist(tmp_path, monkeypatch, capsys):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    files = {f"{part}-{kind}": idx([i % 10 for i in range(math.prod(shape))], *shape)
             for part in ("train", "t10k")
             for kind, shape in (("images-idx3-ubyte", (20, 28, 28)), ("labels-idx1-ubyte", (20,)))}
    for name, whole in files.items():
        (raw / name).write_bytes(whole)
    from torchvision.datasets import FashionMNIST

    def offline(*_):
        raise RuntimeError("no\nnetwork")

    monkeypatch.setattr(FashionMNIST, "download", offline)
    assert len(data.load("fashionmnist", str(tmp_path)).labels) == 20
    images, labels = files["train-images-idx3-ubyte"], files["train-labels-idx1-ubyte"]
    for name, damaged in [
            *[("train-images-idx3-ubyte", images[:cut]) for cut in (0, 3, 15, 16, 900, -1)],
            *[("train-labels-idx1-ubyte", labels[:cut]) for cut in (0, 3, 7, 8, -1)],
            ("train-images-idx3-ubyte", idx(range(0), 0, 28, 28)),
            ("train-images-idx3-ubyte", idx([1] * 280, 10, 28)),
            ("train-images-idx3-ubyte", idx([1] * 20, 20)),
            ("train-images-idx3-ubyte", idx([1] * 19 * 784, 19, 28, 28)),
            ("train-images-idx3-ubyte", idx([1] * 784, 2**31, 28, 28)),
            ("train-images-idx3-ubyte", idx([1] * 20 * 784 * 4, 20, 28, 28, kind=13)),
            ("train-images-idx3-ubyte", idx([1] * 20 * 784, 20, 28, 28, kind=99)),
            ("t10k-images-idx3-ubyte", idx([1] * 20 * 14 * 14, 20, 14, 14)),  # other than train's
            ("train-images-idx3-ubyte", idx([], 20, 0, 28)),
            ("train-labels-idx1-ubyte", idx([10] * 20, 20)),
            ("t10k-labels-idx1-ubyte", idx([255] * 20, 20)),
            ("train-labels-idx1-ubyte", idx([1] * 40, 20, 2)),
            ("train-labels-idx1-ubyte", idx([255] * 20, 20, kind=9)),
            ("train-labels-idx1-ubyte", idx([0x7f, 0xc0, 0, 0] * 20, 20, kind=13))]:
        (raw / name).write_bytes(damaged)
        error = refused(capsys, monkeypatch, train_search, *TINY_SEARCH, "--batch_size", 9,
                        "--dataset", "fashionmnist", "--data", tmp_path,
                        "--runs", tmp_path / "runs")
        assert "fashionmnist" in error and "damaged" in error, (name, len(damaged), error)
        (raw / name).write_bytes(files[name])
    assert not (tmp_path / "runs").exists()


U8 = np.uint8


@pytest.mark.parametrize("pixels, labels", [
    (np.zeros((4, 32, 32), U8), [0] * 4), (np.zeros((4, 32, 32, 4), U8), [0] * 4),
    (np.zeros((4, 3), U8), [0] * 4), (np.zeros((), U8), [0] * 4),
    (np.zeros((4, 0, 0, 3), U8), [0] * 4),
    (np.zeros((0, 32, 32, 3), U8), []), (np.zeros((4, 32, 32, 3), U8), [0] * 5),
    (np.zeros((4, 32, 32, 3)), [0] * 4), (np.zeros((4, 32, 32, 3), np.int8), [0] * 4),
    (np.zeros((4, 32, 32, 3), U8), [0, 0, 0, 10]), (np.zeros((4, 32, 32, 3), U8), [0, 0, 0, -1]),
    (np.zeros((4, 32, 32, 3), U8), [0.5] * 4), (np.zeros((4, 32, 32, 3), U8), [math.nan] * 4),
    (np.zeros((4, 32, 32, 3), U8), [[0], [0], [0], [0]]), (np.zeros((4, 32, 32, 3), U8), 0),
    (np.zeros((4, 32, 32, 3), U8), None), (np.zeros((4, 32, 32, 3), U8), ["a"] * 4),
    (np.zeros((4, 32, 32, 3), U8), [10**30] * 4), ([[1], [1, 2]], [0] * 4), (None, [0] * 4)])
def test_damaged_downloads(pixels, labels, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data, "_quietly", lambda *_: SimpleNamespace(
        data=pixels, targets=labels, classes=list("0123456789")))
    error = refused(capsys, monkeypatch, train_search, *TINY_SEARCH, "--batch_size", 2, "--dataset",
                    "cifar10", "--data", tmp_path, "--runs", tmp_path / "runs")
    assert "cifar10" in error and "damaged" in error and not (tmp_path / "runs").exists()


# ---- 13: the grid

def test_a_bad_run_among_those_of_the_grid(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(many_runs.subprocess, "run", None)  # nothing may start
    tasks = reproduce.searches(CLAIMS, "laptop", str(tmp_path), 5)
    last = [*tasks.values()][-1], [*reproduce.trainings(CLAIMS, "laptop", tasks).values()][-1]
    for number, make in enumerate((
            lambda folder: folder.mkdir(),
            lambda folder: folder.write_text("no folder"),
            lambda folder: folder.symlink_to("nothing"),
            lambda folder: os.mkfifo(folder),
            lambda folder: shutil.copytree(finished / "a", folder),  # other flags
            lambda folder: shutil.copytree(finished / "d", folder),
            lambda folder: (folder.mkdir(), (folder / "config.json").write_text("[")))):
        for task in last:
            folder = tmp_path / os.path.basename(task.folder)
            make(folder)
            error = refused(capsys, monkeypatch, reproduce, "--runs", tmp_path, "--output",
                            tmp_path / "out")
            assert folder.name in error, number
            assert not (tmp_path / "out").exists() and os.listdir(tmp_path) == [folder.name]
            (shutil.rmtree if folder.is_dir() and not folder.is_symlink() else os.unlink)(folder)


# ---- 14: names of several lines

def test_names_of_several_lines(finished, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "two\nlines"
    shutil.copytree(finished / "a", folder)
    (folder / "ba\nd").symlink_to("x")
    refused(capsys, monkeypatch, train_search, "--resume", folder)
    (folder / "ba\nd").unlink()
    for name in ("gates.npz", "metrics.csv", "genotype.json"):
        (folder / name).write_text("x")
        refused(capsys, monkeypatch, visualize, folder)
    for name in ("checkpoint.pt", "config.json"):
        (folder / name).write_text("x")
        refused(capsys, monkeypatch, train_search, "--resume", folder)
    root = picture_folder(tmp_path / "pict\nures", count=2)
    search = [*TINY_SEARCH, "--dataset", "folder", "--runs", tmp_path / "runs", "--data"]
    (root / "train" / "a" / "x\ny.png").write_text("x")
    refused(capsys, monkeypatch, train_search, *search, root)
    (root / "train" / "a" / "x\ny.png").unlink()
    (root / "train" / "new\nclass").mkdir()
    refused(capsys, monkeypatch, train_search, *search, root)
    refused(capsys, monkeypatch, train_search, *search, root / "no\nwhere")


# ---- 15, 16: notes

def test_another_number_of_threads_is_noted(finished, tmp_path, monkeypatch, capsys):
    for run, script in ("a", train_search), ("d", train_eval):
        shutil.copytree(finished / run, tmp_path / run)
        config = json.loads((tmp_path / run / "config.json").read_text())
        config["threads"] += 3 + (run == "d")  # Python shows the same note only once
        (tmp_path / run / "config.json").write_text(json.dumps(config))
        capsys.readouterr()
        assert call(script, monkeypatch, "--resume", tmp_path / run, "--epochs", 2) == 0
        error = capsys.readouterr().err
        assert error.startswith("note: ") and error.count("\n") == 1
        assert f"{config['threads']} threads" in error


@pytest.mark.parametrize("kind", [ZeroDivisionError, RuntimeError, AttributeError])
@pytest.mark.parametrize("script, run, tiny", [(train_search, "a", TINY_SEARCH),
                                               (train_eval, "d", TINY_EVAL)])
def test_an_unexpected_error_says_how_to_go_on(script, run, tiny, kind, finished, tmp_path,
                                               monkeypatch, capsys):
    def fail(*_, **__):
        raise kind("of a test")

    shutil.copytree(finished / run, tmp_path / run)
    with monkeypatch.context() as patch:
        patch.setattr(loop.Run, "add", fail)
        capsys.readouterr()
        with pytest.raises(kind, match="of a test"):
            call(script, patch, "--resume", tmp_path / run, "--epochs", 2)
    first = capsys.readouterr().err.split("\n")[0]
    assert "the last checkpoint is whole" in first
    assert f"python {script.__name__}.py --resume {tmp_path / run}" in first
    assert call(script, monkeypatch, "--resume", tmp_path / run, "--epochs", 2) == 0


# ---- 6: streams that are closed, or of few characters

@pytest.mark.parametrize("redirect", [">&-", "2>&- >&-", "| head -1", ""])
def test_streams(redirect, finished, tmp_path):
    folder = tmp_path / "é\udcff"
    shutil.copytree(finished / "a", folder)
    command = shlex.join([sys.executable, "train_search.py", "--resume", os.fsdecode(folder)])
    child = subprocess.run(f"{command} {redirect}", shell=True, capture_output=True, timeout=60,
                           env={**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"})
    assert b"Traceback" not in child.stderr and b"Exception" not in child.stderr
    assert child.stderr.count(b"\n") <= 1 and child.returncode in (0, 2)
    assert (folder / "genotype.json").exists()


# ---- 7, 10: memory

def test_out_of_memory_is_one_line(tmp_path):
    for script, *tiny in (["train_search", *TINY_SEARCH], ["train_eval", *TINY_EVAL]):
        code, _, error = ended(*fork(tmp_path, script, *tiny, "--init_channels", 100000,
                                     "--runs", tmp_path, "--name", script))
        assert code == 2 and error.count("\n") == 1, error
        assert all(flag in error for flag in ("--batch_size", "--init_channels", "--recompute"))


# ---- 8: checkpoints with a checksum that is right

SGD, ADAM = ("sgd", "param_groups", 0), ("adam", "param_groups", 0)


MOMENTUM, MOMENTS = ("sgd", "state", 0), ("adam", "state", 0)


CRAFTED = [
    *[(run, (*SGD, key), value) for run in "ad" for key in ("momentum", "weight_decay", "lr")
      for value in ("x", None, [], ...)],
    ("a", (*SGD, "nesterov"), True), ("a", (*SGD, "momentum"), 0.5),
    ("a", (*SGD, "lr"), math.nan), ("a", (*SGD, "params"), [0]), ("a", ("sgd",), {}),
    ("a", MOMENTUM, None), ("a", (*MOMENTUM, "momentum_buffer"), "x"),
    ("a", (*MOMENTUM, "momentum_buffer"), torch.zeros(2)),
    ("a", ("sgd", "state", 10**6), {}), ("a", ("sgd", "state"), [1]),
    *[("a", (*ADAM, "betas"), value) for value in (None, 3, (1,), (2., 2.), ...)],
    *[("a", (*MOMENTS, "step"), value) for value in (torch.tensor(-1.), torch.ones(3), 3, ...)],
    *[("a", (*MOMENTS, "exp_avg"), value)
      for value in (None, "x", torch.zeros(3), torch.zeros(2, 2).to_sparse(), ...)],
    *[(run, ("rows", 0, key), value) for run in "ad" for key in ("epoch", "seconds", "train_loss")
      for value in ("x", math.nan, 10**400, ...)],
    ("d", ("rows", 0, "test_accuracy"), ...), ("a", ("rows",), "x"), ("a", ("rows",), [[]]),
    ("a", ("rows",), []),
    *[("a", ("done",), value) for value in (-1, 1, "x", None, True, 2**63)],
    *[("a", ("seconds",), value) for value in (-1.0, "x", math.nan, 10**400)],
    *[("a", ("sums",), value) for value in ("x", {"train_loss": "x"}, [1.0])],
    *[("a", ("gates", "epochs"), value) for value in
      (None, [], "x", [torch.zeros(2, 2, 2) - 1], [torch.full((2, 2, 2), math.nan)],
       [torch.zeros(2, 2, 3)], [torch.zeros(2, 2, 2)] * 2)],
    *[("a", ("train", "position"), value) for value in (-1, 10**9, "x", None, 0.5)],
    *[("a", ("train", "generator"), value) for value in ("x", torch.zeros(3).byte(), ...)],
    *[("a", ("random",), value) for value in ("x", torch.zeros(3).byte(), None, ...)],
    *[("a", ("version",), value) for value in ("x", None, 1, torch.zeros(2), True)],
    *[("a", ("settings",), value) for value in ("x", None, {})]]


def test_crafted_checkpoints_are_refused(finished, tmp_path, monkeypatch, capsys):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(data, "load", lambda *_, digits=data.load("digits"), **__: digits)
    for run, keys, value in CRAFTED:
        path = tmp_path / run / "checkpoint.pt"
        state = torch.load(finished / run / "checkpoint.pt", weights_only=True)
        path.write_bytes(sealed(leaves(state, (keys, value))))
        before = content(tmp_path / run)
        script = train_eval if run == "d" else train_search
        # rows of other columns are found when the next is added; all else before the first step
        error = refused(capsys, monkeypatch, script, "--resume", tmp_path / run, "--epochs", 2)
        assert str(tmp_path / run) in error
        assert not {name for name, kept in content(tmp_path / run).items()
                    if before.get(name) != kept} - {"log.txt", "config.json", "gates.npz",
                                                    "best.pt", "weights.pt"}


def test_crafted_weights_are_refused(finished, tmp_path, monkeypatch, capsys):
    shutil.copytree(finished / "d", tmp_path / "d")
    path = tmp_path / "d" / "best.pt"
    whole = torch.load(path, weights_only=True)
    first = next(iter(whole["network"]))
    for keys, value in ((("epoch",), "x"), (("epoch",), None), (("network",), 3),
                       (("network",), {}), (("network", first), "x"),
                       (("network", first), ...), (("network", first), torch.zeros(2)),
                       (("network", "more"), torch.zeros(2)), (("settings",), {})):
        path.write_bytes(sealed(leaves(whole, (keys, value))))
        assert str(tmp_path / "d") in refused(capsys, monkeypatch, train_eval, "--evaluate",
                                              tmp_path / "d")


def test_evaluate_compares_settings_before_it_builds(finished, tmp_path, monkeypatch, capsys):
    shutil.copytree(finished / "d", tmp_path / "d")
    path = tmp_path / "d" / "config.json"
    config = json.loads(path.read_text())
    config["settings"]["init_channels"] = 10**6  # would not fit into any memory
    path.write_text(json.dumps(config))
    monkeypatch.setattr(classifier, "build", None)
    assert "init_channels" in refused(capsys, monkeypatch, train_eval, "--evaluate", path.parent)
