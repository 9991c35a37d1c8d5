"""Hostile files, names, settings and machines: one line each, nothing changed, no code
run."""
import argparse
import errno
import io
import json
import math
import os
import random
import re
import secrets
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import train_eval
import train_search
from engine import data, flags, folders, loop
from study import reproduce, visualize
from tests.common import (Malicious, TINY_EVAL, TINY_SEARCH, call, content, deep, ended,
                          fork, leaves, new_run, refused, sealed)
from use import classifier

DIGITS = ["--dataset", "digits"]


# ---- 1: links and pipes

@pytest.mark.parametrize("name, kind", [
    ("log.txt", "link"), ("log.txt", "dangling"), ("checkpoint.pt.part", "link"),
    ("config.json", "link"), ("figures", "folder"), ("new", "fifo"), ("checkpoint.pt", "fifo")])
def test_links_and_pipes_in_a_run_are_refused(name, kind, finished, tmp_path, monkeypatch, capsys):
    outside = tmp_path / "outside"
    shutil.copytree(finished / "d", tmp_path / "d")
    outside.mkdir()
    if (tmp_path / "d" / name).is_file():
        shutil.move(tmp_path / "d" / name, outside / "file")
    elif kind == "link":
        (outside / "file").write_text("kept")
    if kind == "fifo":
        os.mkfifo(tmp_path / "d" / name)
    else:
        (tmp_path / "d" / name).symlink_to({"link": outside / "file", "folder": outside,
                                            "dangling": outside / "nothing"}[kind])
    before = content(tmp_path)
    with pytest.raises(flags.UserError, match="is a link, or not a file"):
        folders.read_config(str(tmp_path / "d"))
    if (name, kind) == ("log.txt", "link"):
        for script, *command in ((train_eval, "--resume"), (train_eval, "--evaluate"),
                                 (train_search, "--resume"), (visualize,)):
            assert "is a link, or not a file" in refused(capsys, monkeypatch, script, *command,
                                                         tmp_path / "d")
    assert content(tmp_path) == before


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


def test_links_among_figures_are_replaced(tmp_path):
    figure = SimpleNamespace(savefig=lambda content, format: content.write(b"new"))
    outside, folder = tmp_path / "outside", tmp_path / "figures"
    outside.write_text("kept")
    folder.mkdir()
    (folder / "gates.png").symlink_to(outside)
    os.mkfifo(folder / "dominant.png")
    visualize.save(dict.fromkeys(("gates", "dominant"), lambda: figure), str(folder))
    assert outside.read_text() == "kept"
    assert content(folder) == {"gates.png": b"new", "dominant.png": b"new"}


# ---- 2: names

def test_names_that_end_in_part_and_names_of_one_second(tmp_path):
    first = new_run(tmp_path, name="exp.part")
    assert new_run(tmp_path, name="exp").folder == str(tmp_path / "exp")
    assert os.listdir(first.folder) == ["config.json"] == os.listdir(tmp_path / "exp")
    with ThreadPoolExecutor(3) as pool:
        folders = list(pool.map(lambda _: new_run(tmp_path / "many", name=None).folder, range(3)))
    assert len(set(folders)) == 3 == len(os.listdir(tmp_path / "many"))


# ---- 3: a run that is moved away

@pytest.mark.parametrize("replaced", [True, False])
def test_a_run_that_was_moved_stops(replaced, tmp_path):
    run, moved = new_run(tmp_path), tmp_path / "moved"
    with pytest.raises(flags.UserError, match="was moved" if replaced else "No such file"), run:
        run.track()
        os.rename(run.folder, moved)
        if replaced:
            os.mkdir(run.folder)
        run.save_checkpoint()
    assert not replaced or os.listdir(run.folder) == []
    assert os.listdir(moved) == ["config.json"]


def test_a_search_that_was_moved_goes_on_where_it_is(tmp_path, monkeypatch, capsys):
    def move(*_, **__):
        (tmp_path / "a").rename(tmp_path / "moved")
        (tmp_path / "a").mkdir()

    with monkeypatch.context() as patch:
        patch.setattr(loop.Run, "add", move)
        refused(capsys, patch, train_search, *TINY_SEARCH, "--runs", tmp_path, "--name", "a")
    assert list((tmp_path / "a").iterdir()) == []
    assert sorted(content(tmp_path / "moved")) == ["config.json", "log.txt"]
    assert call(train_search, monkeypatch, "--resume", tmp_path / "moved") == 0


# ---- 4: files of another run

def refusal(script, folder, command="resume", **given):
    """Why `script` leaves the run in `folder` as it is; main makes one line of it."""
    before, parser = content(folder), script.PARSER
    with pytest.raises((flags.UserError, OSError)) as error:
        getattr(script.SCRIPT, {"resume": "resume", "evaluate": "test"}[command])(
            parser, {command: str(folder), **given})
    assert content(folder) == before
    return str(error.value)


@pytest.fixture
def digits_once(monkeypatch):
    """The digits are read once, and no other dataset."""
    monkeypatch.setattr(data, "load", lambda *_, digits=data.load("digits"), **__: digits)


@pytest.mark.parametrize("script, run, name, other, command, message", [
    (train_search, "a", "checkpoint.pt", "b", "resume", "another run"),
    (train_eval, "d", "checkpoint.pt", "e", "resume", "another run"),
    (train_eval, "d", "best.pt", "e", "evaluate", "another run"),
    (train_eval, "d", "best.pt", "a/checkpoint.pt", "evaluate", "lacks epoch"),
    (train_search, "a", "checkpoint.pt", {"seed": 1}, "resume", "--seed 1"),
    (train_eval, "d", "checkpoint.pt", {"layers": 4}, "resume", "--layers 4"),
    (train_eval, "d", "best.pt", {"seed": 1}, "evaluate", "--seed 1")])
def test_files_of_another_run_are_refused(script, run, name, other, command, message, finished,
                                          tmp_path, digits_once):
    folder = tmp_path / run
    shutil.copytree(finished / run, folder)
    if isinstance(other, dict):  # the same id, other settings
        state = torch.load(folder / name, weights_only=True)
        (folder / name).write_bytes(sealed({**state, "settings": {**state["settings"], **other}}))
    else:
        shutil.copy(finished / (other if "/" in other else f"{other}/{name}"), folder / name)
    assert message in refusal(script, folder, command, epochs=2)


# ---- 5: a full disk from the start

def test_a_failed_creation_leaves_no_folder(tmp_path, monkeypatch, capsys):
    def full(*arguments, **more):
        raise OSError(errno.ENOSPC, "No space left on device", "config.json")

    for owner, name in ((os, "replace"), (os, "fsync"), (folders, "open"),
                        (folders, "write_whole"), (os, "mkdir")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, full, raising=False)
            with pytest.raises(OSError, match="No space left"):
                new_run(tmp_path)
            if name == "fsync":
                assert "No space left" in refused(capsys, patch, train_eval, *TINY_EVAL, "--runs",
                                                  tmp_path, "--name", "a")
        assert list(tmp_path.iterdir()) == []


def test_a_log_of_other_bytes(finished, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "a"
    shutil.copytree(finished / "a", folder)
    (folder / "log.txt").write_bytes(b"\xff\xfe\x00 \xe9\n")
    assert call(train_search, monkeypatch, "--resume", folder) == 0  # derives again
    text = (folder / "log.txt").read_text()
    assert capsys.readouterr().err == "" and "Genotype(" in text and text.startswith("\\xff")


STARTED = [  # edited settings: where there is a checkpoint, with which they can be compared
    ({"space": "s2"}, ""), ({"primitives": "skip_connect,max_pool_3x3"}, ""),
    ({"layers": 10**9}, ""), ({"init_channels": 10**9}, ""), ({"epochs": 10**400}, "--epochs"),
    ({"name": "\ud800"}, "expected a path"), ({"name": "a\nb"}, "")]
EDITED = [  # and in any case
    ({"batch_size": 9999}, "--batch_size"), ({"train_portion": 1e-5}, ""),
    ({"data": "a\0b"}, "--data: expected a path"), ({"data": "\ud800"}, "expected a path"),
    ({"runs": "a\0b"}, "expected a path"), ({"dataset": "\ud800"}, "unknown"),
    ({"w01": 10**400}, ""), ({"nodes": 10**9}, "from 1 to 4"), ({"seed": 2**63}, "--seed"),
    ({"device": "x"}, "--device"), ({"device": "cpu:9999999999"}, "--device"),
    ({"device": "meta"}, "--device"), ({"threads": 2**31}, "--threads"),
    ({"threads": True}, "--threads"), ({"primitives": "x," * 10000}, "unknown"),
    ({"w01": deep(900)}, "expected a number"), ({"w01": "ten"}, "expected a number"),
    ({"epochs": None}, "epochs must have a value"), ({"epochs": -1}, "from 1 up"),
    ({"epochs": True}, "--epochs"), ({"dataset": "elsewhere"}, "unknown 'elsewhere'"),
    ({"help": True}, "it has help"), ({"seed": ...}, "it lacks seed"), ({"amp": "yes"}, "--amp"),
    ({"gate": ["sigmoid"]}, "--gate"), ({"name": "../b"}, "the name of a folder")]
FACTS = [  # (key, other value, message) of what config.json keeps beside the settings
    *[(key, value, "no readable config") for key, value in (
        ("settings", 3), ("id", ["x"]), ("commands", {}), ("threads", "x"), ("commands", [1]),
        ("commands", [["x", 1]]), ("shape", []), ("shape", [1, 8]), ("shape", [1, 8, 8.5]),
        ("shape", [1, -8, 8]), ("shape", ["1"] * 3), ("torch", None), ("machine", 1),
        ("memory_format", "x"), ("memory_format", ["x"]))],
    ("version", 99, "version 99"), ("version", 1e999, ""), ("version", True, ""),
    ("version", [2], ""), ("script", "train_eval", "a run of train_eval.py"), ("script", [], ""),
    ("script", "\ud800", ""), ("fingerprint", "0", "the dataset is not the one"),
    ("fingerprint", "\ud800", "the dataset is not the one")]


@pytest.mark.parametrize("started", [True, False])
def test_edited_configs_are_refused(started, finished, tmp_path, monkeypatch, capsys, digits_once):
    """Also before there is a checkpoint, with which a setting can be compared."""
    folder = tmp_path / "a"
    shutil.copytree(finished / "a", folder)
    if not started:
        for name in set(os.listdir(folder)) - {"config.json"}:
            (folder / name).unlink()
    path, config = folder / "config.json", json.loads((folder / "config.json").read_text())
    monkeypatch.chdir(tmp_path)
    cases = [(json.dumps(leaves(config, *((("settings", key), value)
                                          for key, value in values.items()))), message)
             for values, message in (EDITED + STARTED if started else EDITED)]
    cases += [(json.dumps({**config, key: value}), message)
              for key, value, message in FACTS + [("id", "x", "another run")] * started]
    cases += [(json.dumps(config).replace(f'"{name}": {config["settings"][name]}',
                                          f'"{name}": {value}'), "")
              for name, values in (("w01", ("1e999", "-Infinity", "NaN", "9" * 5000, "[" * 9999,
                                            '"\\ud800"')), ("threads", ("9" * 5000,)))
              for value in values]
    cases += [(text, "no readable config") for text in ("", "[]", "{}", "[" * 99999)]
    for number, (text, message) in enumerate(cases):
        path.write_text(text)
        assert message in refusal(train_search, folder, **({"epochs": 2} if started else {})), text
        if number % 20 == 0:
            refused(capsys, monkeypatch, train_search, "--resume", folder)
    if started:
        path.write_text(json.dumps(config))
        with loop.Run.open(str(folder), "train_search") as run:
            assert json.loads(path.read_text()) == run.config == config
            settings = flags.resumed_settings(run, train_search.PARSER, {
                "epochs": 2, "checkpoint_minutes": 1.0})
            run.resume(settings)
            run.track()
        kept = json.loads(path.read_text())  # what may change is kept
        assert kept["settings"] == {**config["settings"], "epochs": 2, "checkpoint_minutes": 1.0}
        assert len(kept["commands"]) == 2
        assert "--epochs 1: the run has 2, which can only be raised" in refusal(
            train_search, folder, epochs=1)


# ---- 9: the command line

SCRIPTS = {script.SCRIPT.name: script.SCRIPT for script in (train_search, train_eval)}


def test_kinds_of_flags():
    share = flags.number(float, 0, 1, open_ends=True)
    for kind, text, value in (
            (flags.number(int, 2, 5), "2", 2), (flags.number(int, 2, 5), " 5", 5),
            (flags.number(float, 0, 1), "0", 0), (flags.number(float, 0, 1), "1", 1),
            (share, "1e-5", 1e-5), (flags.number(float, -1), "1e30", 1e30),
            (flags.some_of(["a", "b", "c"]), "c,a", "a,c"), (flags.one_of(["a", "b"]), "a", "a"),
            (flags.path_name, "a/b c\n\udcff", "a/b c\n\udcff"),
            (flags.folder_name, "a b.part", "a b.part")):
        assert kind(text) == value and type(kind(text)) is type(value) or value in (0, 1)
    for kind, text, message in (
            (flags.number(int, 1), "-3", "expected a whole number from 1 up, got '-3'"),
            (flags.number(int, 2, 5), "6", "from 2 to 5"), (flags.number(float, 0), "1e31", "1e31"),
            (flags.number(float, 0, 1), "-0.1", "a number from 0 to 1, got '-0.1'"),
            (share, "0", "above 0 and below 1"), (share, "1", "above 0 and below 1"),
            (flags.number(float, 0, open_ends=True), "0", "a number above 0, got '0'"),
            (flags.number(int, 0), "1" * 401, "1..."),
            *[(flags.number(int, 0), text, "a whole number") for text in (
                "", "x", "1.5", "1__0", "9" * 9999, "0x1", "1e3")],
            *[(flags.number(float, 0), text, "a number from 0 up") for text in (
                "", "heavy", "nan", "inf", "-inf", "1e400", "1e308")],
            (flags.one_of(["sigmoid", "softmax"]), "sigmoyd", "did you mean 'sigmoid'?"),
            (flags.one_of(["digits"]), "DIGITS", "did you mean 'digits'?"),
            (flags.one_of(["l2", "l1"]), "", "unknown ''; choose from l2, l1"),
            (flags.one_of(["l2", "l1"]), "x" * 100000, "choose from"),
            (flags.some_of(["a", "b"]), "a,x", "unknown 'x'"),
            (flags.some_of(["a", "b"]), "", "unknown ''"),
            (flags.some_of(["a", "b"]), "a,b,a", "'a' is named twice"),
            *[(flags.path_name, text, "a path") for text in ("a\0b", "\ud800", "x/" * 3000)],
            *[(flags.folder_name, text, "expected the name of a folder, got") for text in (
                "", ".", "..", "a/b", "/", "x\n/y", "x" * 101)],
            (flags.folder_name, "a\0", "expected a path")):
        with pytest.raises(argparse.ArgumentTypeError, match=re.escape(message)) as error:
            kind(text)
        assert len(str(error.value)) < 250 or kind is flags.path_name


OUT_OF_BOUNDS = {  # flags, each with a value that it does not take
    "train_search": """epochs=0 epochs=1e3 threshold=-0.1 threshold=1.5 train_portion=1
        train_portion=0 gate= w01=-1 w01=inf nodes=5 nodes=0 zero_one_loss=l3 arch_beta1=1 space=s3
        width=0 primitives= primitives=skip_connect,skip_connect checkpoint_minutes=-1
        edges_per_node=0 ops_per_edge=0 ops_per_layer=0 threads=-1 threads=1025 seed=2147483649
        learning_rate=1e308 weight_decay=1e308 image_size=7 dataset=digit name=a/b log_every=0
        workers=257 gap_every=-1 figures_every=-1 train_fraction=1.1 valid_fraction=-1
        init_channels=1 layers=10001 batch_size=1 amp=-- name=-- epochs=-- resume=--""",
    "train_eval": """drop_path_prob=1 drop_path_prob=-0.1 layers=0 init_channels=x cutout_length=0
        init_channels=1000001 auxiliary=yes auxiliary_weight=heavy momentum=nan weight_decay=-1
        grad_clip=0 image_size=4 seed=-1 learning_rate=1e400 batch_size=1 dataset=cifar11 name=..
        gamma=1.1 label_smooth=1 dropout=1 accumulate=0 accumulate=1001 drop_path_on=cell width=0
        arch=-- evaluate=--"""}


@pytest.mark.parametrize("name", SCRIPTS)
def test_values_out_of_bounds_are_refused_by_their_flag(name):
    parser = SCRIPTS[name].parser()
    parser.add_argument("--resume")
    parser.add_argument("--evaluate")
    for word in OUT_OF_BOUNDS[name].split():
        with pytest.raises(flags.UserError, match="--" + word.split("=")[0]):
            parser.parse_args(["--" + word])
    for flag, (default, kind, _) in parser.flags.items():  # and all defaults are taken
        if default not in (None, "", True, False):
            assert kind(str(default)) == default, flag


EVAL = ["--arch", "FairDARTS_a"]
REFUSED = [  # (script, arguments, what its one line says)
    (train_eval, ["--arch", "FairDARTS_h"], "did you mean 'FairDARTS_"),
    (train_eval, [], "--arch is missing"), (train_eval, ["--arch"], "--arch"),
    (train_eval, ["--arch", "Genotype(\n"], "cannot read"),
    (train_eval, [*EVAL, *DIGITS, "--batch_size", "2000"], "--batch_size 1437 or less"),
    (train_eval, [*EVAL, "--auxilary"], "did you mean '--auxiliary'"),
    (train_eval, [*EVAL, "--w01", "10"], "unknown argument '--w01'"),
    (train_eval, [*EVAL, "--squeeze"], "--squeeze is for architectures of the space s2"),
    (train_eval, ["--arch", "FairNAS_A", "--layers", "5"],
     "--layers is for architectures of the space s1"),
    (train_eval, ["--evaluate", "\ud800"], "not the folder of a run"),
    (train_eval, ["--evaluate"], "expected one argument"),
    (train_eval, ["--evaluate", "A", "--resume", "B"], "two things"),
    *[(train_search, ["--resume", name], "not the folder") for name in (
        "", ".", "a\0b", "x" * 5000)],
    (train_search, ["--dataset", "folder", "--data", "x\ny"], "there is no folder"),
    (train_search, [*DIGITS, "--batch_size", "719"], "--batch_size 718 or less"),
    (train_search, [*DIGITS, "--train_portion", "1e-5"], "at least 2 are needed"),
    (train_search, [*DIGITS, "--runs", "/dev/null", "--name", "x"], "/dev/null"),
    (train_search, ["--runs", "x/" * 3000], "a path"), (train_search, ["--data", "a\0b"], "a path"),
    (train_search, ["--width", "0.5"], "--width is of --space s2"),
    (train_search, ["--space", "s2", "--layers", "5"], "--layers is of --space s1"),
    *[(train_search, ["--space", "nasbench201", *words], why) for words, why in (
        (["--nodes", "3"], "--nodes is of --space s1"),
        (["--edges_per_node", "1"], "--edges_per_node is of --space s1"),
        (["--ops_per_layer", "1"], "--ops_per_layer is of --space s2"),
        ([*DIGITS, "--primitives", "skip_connect,sep_conv_3x3"],
         "--primitives sep_conv_3x3 is no operation of --space nasbench201"),
        ([*DIGITS, "--shared_softmax", "sep_conv_3x3,skip_connect"], "two or more of avg_pool"))],
    (train_search, [*DIGITS, "--primitives", "skip_connect,nor_conv_3x3"],
     "--primitives nor_conv_3x3 is no operation of --space s1"),
    (train_search, ["--epoch", "3"], "did you mean '--epochs'"),
    *[(train_search, words, "unknown argument") for words in (
        ["--arch", "x"], ["--=3"], ["--x\ny"], ["--", "x"])],
    *[(train_search, words, "unexpected argument") for words in (
        ["x\ny"], ["--unrolled", "yes"])],
    *[(train_search, ["--device", name], "this machine has:") for name in (
        "gpu", "cuda:99", "cuda:99999999999999999999", "\n", "meta")],
    (visualize, ["x\ny"], "no folder of a run"), (visualize, ["a\0b"], ""), (visualize, [""], ""),
    (visualize, ["--output=--", "FairDARTS_a"], "--output"),
    (visualize, ["a", "b"], "not the folder"), (visualize, ["--output", "x"], ""),
    (visualize, ["FairDARTS_a", "--output", "a\0b"], ""),
    (visualize, ["FairDARTS_a", "--output", "/dev/null"], "/dev/null"),
    (reproduce, ["--jobs", "9" * 5000], "--jobs"), (reproduce, ["--jobs=--"], "--jobs"),
    (reproduce, ["x\ny"], "give an experiment, digits"), (reproduce, ["--runs=--"], "--runs"),
    (reproduce, ["digits", "--runs", "a\0b"], ""), (reproduce, ["--output", "a\0b"], "")]


@pytest.mark.parametrize("script", [train_eval, train_search, visualize, reproduce],
                         ids=lambda script: script.__name__)
def test_hostile_arguments_are_refused(script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reproduce, "subprocess", None)
    for caller, arguments, message in REFUSED:
        if caller is script:
            capsys.readouterr()
            assert message in refused(capsys, monkeypatch, script, *arguments), arguments
            assert list(tmp_path.iterdir()) == [], arguments  # nothing half-written


def test_the_largest_rates_end_in_one_line(tmp_path, monkeypatch, capsys):
    for name in ("learning_rate", "weight_decay", "w01", "arch_learning_rate", "momentum",
                 "arch_weight_decay"):
        capsys.readouterr()
        code = call(train_search, monkeypatch, *TINY_SEARCH, "--batch_size", 120, "--gap_every", 0,
                    "--runs", tmp_path, "--name", name, f"--{name}", "1e30")
        error = capsys.readouterr().err
        assert (code, error) == (0, "") or code == 2 and error.count("\n") == 1
        assert code == 0 or "not finite" in error
        assert name != "learning_rate" or code == 2 and "lower --learning_rate" in error
        assert (tmp_path / name / "checkpoint.pt").exists() == (code == 0)


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


def test_damaged_fashionmnist(tmp_path, monkeypatch):
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
            *[("train-images-idx3-ubyte", idx([1] * number, *shape, kind=kind))
              for number, shape, kind in (
                  (0, (0, 28, 28), 8), (280, (10, 28), 8), (20, (20,), 8),
                  (19 * 784, (19, 28, 28), 8), (784, (2**31, 28, 28), 8), (0, (20, 0, 28), 8),
                  (20 * 784 * 4, (20, 28, 28), 13), (20 * 784, (20, 28, 28), 99))],
            ("t10k-images-idx3-ubyte", idx([1] * 20 * 14 * 14, 20, 14, 14)),  # other than train's
            ("train-labels-idx1-ubyte", idx([10] * 20, 20)),
            ("t10k-labels-idx1-ubyte", idx([255] * 20, 20)),
            ("train-labels-idx1-ubyte", idx([1] * 40, 20, 2)),
            ("train-labels-idx1-ubyte", idx([255] * 20, 20, kind=9)),
            ("train-labels-idx1-ubyte", idx([0x7f, 0xc0, 0, 0] * 20, 20, kind=13))]:
        (raw / name).write_bytes(damaged)
        with pytest.raises(flags.UserError, match="^fashionmnist .*damaged"):
            data.load("fashionmnist", str(tmp_path))
        (raw / name).write_bytes(files[name])


U8 = np.zeros((4, 32, 32, 3), np.uint8)


@pytest.mark.parametrize("damaged", [
    [(np.zeros(shape, np.uint8), [0] * 4) for shape in (
        (4, 32, 32), (4, 32, 32, 4), (4, 3), (), (4, 0, 0, 3), (3, 32, 32, 3))],
    [(U8.astype(kind), [0] * 4) for kind in (float, np.int8)],
    [([[1], [1, 2]], [0] * 4), (None, [0] * 4), (U8, None), (U8, ["a"] * 4), (U8, [10**30] * 4)],
    [(U8, [0, 0, 0, 10]), (U8, [0, 0, 0, -1]), (U8, [0.5] * 4), (U8, [math.nan] * 4)],
    [(U8, [0] * 5), (U8, [[0]] * 4), (U8, 0), (U8[:0], [])]],
    ids=["shapes", "types", "no tensors", "labels", "other numbers"])
def test_damaged_downloads(damaged, tmp_path, monkeypatch, capsys):
    for number, (pixels, labels) in enumerate(damaged):
        monkeypatch.setattr(data, "_quietly", lambda *_: SimpleNamespace(
            data=pixels, targets=labels, classes=list("0123456789")))
        with pytest.raises(flags.UserError, match="^cifar10 .*damaged"):
            data.load("cifar10", str(tmp_path))
        if number == 0:
            refused(capsys, monkeypatch, train_search, "--dataset", "cifar10", "--data", tmp_path,
                    "--runs", tmp_path / "runs")
    assert list(tmp_path.iterdir()) == []


# ---- 14: names of several lines

def test_names_of_several_lines(finished, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "two\nlines"
    shutil.copytree(finished / "a", folder)
    (folder / "ba\nd").symlink_to("x")
    refused(capsys, monkeypatch, train_search, "--resume", folder)
    (folder / "ba\nd").unlink()
    for name, script, *command in (("gates.npz", visualize), ("metrics.csv", visualize),
                                   ("checkpoint.pt", train_search, "--resume")):
        (folder / name).write_text("x")
        refused(capsys, monkeypatch, script, *command, folder)
    root = picture_folder(tmp_path / "pict\nures", count=2)
    (root / "train" / "a" / "x\ny.png").write_text("x")
    search = [*TINY_SEARCH, "--dataset", "folder", "--runs", tmp_path / "runs", "--data"]
    refused(capsys, monkeypatch, train_search, *search, root)
    (root / "train" / "a" / "x\ny.png").unlink()
    (root / "train" / "new\nclass").mkdir()
    refused(capsys, monkeypatch, train_search, *search, root)


# ---- 15, 16: notes

def test_another_number_of_threads_is_noted(finished, tmp_path, monkeypatch, capsys):
    for run, script in ("a", train_search), ("d", train_eval):
        shutil.copytree(finished / run, tmp_path / run)
        config = json.loads((tmp_path / run / "config.json").read_text())
        config["threads"] += 3 + (run == "d")  # Python shows the same note only once
        (tmp_path / run / "config.json").write_text(json.dumps(config))
        capsys.readouterr()
        assert call(script, monkeypatch, "--resume", tmp_path / run) == 0
        error = capsys.readouterr().err
        assert error.startswith("note: ") and error.count("\n") == 1
        assert f"{config['threads']} threads" in error


def test_an_unexpected_error_says_how_to_go_on(finished, tmp_path, monkeypatch, capsys):
    for kind in ZeroDivisionError, RuntimeError, AttributeError:
        run = new_run(tmp_path, name=kind.__name__)
        with pytest.raises(kind, match="of a test"), run:
            run.track()
            raise kind("of a test")
        assert f"--resume {run.folder}" in capsys.readouterr().err
    for run, script in ("a", train_search), ("d", train_eval):
        shutil.copytree(finished / run, tmp_path / run)
        with monkeypatch.context() as patch:
            patch.setattr(loop.Run, "add", lambda *_, **__: {}["of a test"])
            with pytest.raises(KeyError, match="of a test"):
                call(script, patch, "--resume", tmp_path / run, "--epochs", 2)
        first = capsys.readouterr().err.split("\n")[0]
        assert "the last checkpoint is whole" in first
        assert f"python {script.__name__}.py --resume {tmp_path / run}" in first
    assert call(script, monkeypatch, "--resume", tmp_path / run, "--epochs", 2) == 0


# ---- 6: streams that are closed, or of few characters

class Streams:
    """In a child of `fork`, whose streams become as Python has them from its start."""

    def __init__(self, kind):
        self.kind = kind

    def __call__(self, entry):
        if self.kind == "ascii":
            sys.stdout, sys.stderr = (open(n, "w", encoding="ascii", closefd=False) for n in (1, 2))
        else:
            sys.stdout = None
            os.close(1)
        if self.kind == "both closed":
            sys.stderr = None
            os.close(2)
        return entry


@pytest.mark.parametrize("kind", ["closed", "both closed", "ascii"])
def test_streams(kind, finished, tmp_path):
    folder = tmp_path / "é\udcff"
    shutil.copytree(finished / "a", folder)
    (folder / "genotype.json").unlink()
    code, _, error = ended(*fork(tmp_path, "train_search", "--resume", folder,
                                 setup=Streams(kind)))
    assert code == 0 and error == "" and (folder / "genotype.json").exists()


def test_a_reader_that_has_gone(finished, tmp_path):
    """In a process of its own, at whose end Python could complain once more."""
    folder = tmp_path / "é\udcff"
    shutil.copytree(finished / "d", folder)
    command = shlex.join([sys.executable, "train_eval.py", "--evaluate", os.fsdecode(folder)])
    child = subprocess.run(f"{command} | true", shell=True, capture_output=True, timeout=120,
                           env={**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"})
    assert child.stderr.count(b"\n") == 1 and b"train_eval.py: error: Broken pipe" in child.stderr


# ---- 7, 10: memory

def test_out_of_memory_is_one_line(tmp_path):
    for script, *tiny in (["train_search", *TINY_SEARCH], ["train_eval", *TINY_EVAL]):
        code, _, error = ended(*fork(tmp_path, script, *tiny, "--init_channels", 100000,
                                     "--runs", tmp_path, "--name", script, memory=400 << 20))
        assert code == 2 and error.count("\n") == 1, error
        assert all(flag in error for flag in ("--batch_size", "--init_channels", "--recompute"))


def test_what_is_out_of_memory():
    with pytest.raises(RuntimeError) as real:
        torch.empty(2**60)
    for error in (real.value, MemoryError(), torch.OutOfMemoryError("CUDA out of memory")):
        assert flags.is_out_of_memory(error)
    for text in ("CUDA error: an illegal memory access was encountered", "unsupported memory format"):
        assert not flags.is_out_of_memory(RuntimeError(text))

        def function():
            raise RuntimeError(text)

        with pytest.raises(RuntimeError, match=text):
            flags.main(function)


# ---- 8: checkpoints with a checksum that is right

SGD, ADAM = ("sgd", "param_groups", 0), ("adam", "param_groups", 0)


MOMENTUM, MOMENTS = ("sgd", "state", 0), ("adam", "state", 0)


CRAFTED = [
    *[("a", (*SGD, key), value) for key in ("momentum", "weight_decay", "lr")
      for value in ("x", None, [], ...)], ("d", (*SGD, "lr"), "x"), ("d", ("rows", 0, "epoch"), 2),
    ("a", (*SGD, "nesterov"), True), ("a", (*SGD, "momentum"), 0.5),
    ("a", (*SGD, "lr"), math.nan), ("a", (*SGD, "params"), [0]), ("a", ("sgd",), {}),
    ("a", MOMENTUM, None), ("a", (*MOMENTUM, "momentum_buffer"), "x"),
    ("a", (*MOMENTUM, "momentum_buffer"), torch.zeros(2)),
    ("a", ("sgd", "state", 10**6), {}), ("a", ("sgd", "state"), [1]),
    *[("a", (*ADAM, "betas"), value) for value in (None, 3, (1,), (2., 2.), ...)],
    *[("a", (*MOMENTS, "step"), value) for value in (torch.tensor(-1.), torch.ones(3), 3, ...)],
    *[("a", (*MOMENTS, "exp_avg"), value)
      for value in (None, "x", torch.zeros(3), torch.zeros(2, 2).to_sparse(), ...)],
    *[("a", ("rows", 0, key), value) for key in ("epoch", "seconds", "train_loss")
      for value in ("x", math.nan, 10**400, ...) if (key, value) != ("train_loss", ...)],
    ("a", ("rows",), "x"), ("a", ("rows",), [[]]),
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


def saved(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def test_crafted_checkpoints_are_refused(finished, tmp_path, monkeypatch, capsys, digits_once):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    states = {run: torch.load(finished / run / "checkpoint.pt", weights_only=True) for run in "ad"}
    for number, (run, keys, value) in enumerate(CRAFTED):
        path = tmp_path / run / "checkpoint.pt"
        path.write_bytes(sealed(leaves(states[run], (keys, value))))
        script = train_eval if run == "d" else train_search
        assert str(tmp_path / run) in refusal(script, tmp_path / run, epochs=2), (keys, value)
        if number % 30 == 0:
            refused(capsys, monkeypatch, script, "--resume", tmp_path / run, "--epochs", 2)
    # rows of other columns are found when the next is added; all else before the first step
    for script, run, column in ((train_search, "a", "train_loss"),
                                (train_eval, "d", "test_accuracy")):
        path = tmp_path / run / "checkpoint.pt"
        path.write_bytes(sealed(leaves(states[run], (("rows", 0, column), ...))))
        before = content(tmp_path / run)
        assert "column" in refused(capsys, monkeypatch, script, "--resume", tmp_path / run,
                                   "--epochs", 2)
        assert not {name for name, kept in content(tmp_path / run).items()
                    if before.get(name) != kept} - {"log.txt", "config.json", "gates.npz",
                                                    "best.pt", "weights.pt"}


def test_bad_checkpoints_are_refused(finished, tmp_path, monkeypatch, capsys):
    shutil.copytree(finished / "a", tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    path, dice = tmp_path / "a" / "checkpoint.pt", random.Random(0)
    whole = path.read_bytes()
    state = torch.load(path, weights_only=True)
    bad = [(whole[:len(whole) * cut // 20], "checksum") for cut in range(20)]
    for _ in range(10):
        flipped = bytearray(whole)
        flipped[dice.randrange(len(whole))] ^= 1 << dice.randrange(8)
        bad.append((bytes(flipped), "checksum"))
    bad += [(saved(Malicious()), "checksum"),
            (sealed(Malicious()), "cannot be read: Weights only load failed"),
            (sealed({**state, "rows": Malicious()}), "Weights only"),
            (sealed(b"junk"), "cannot be read"),
            (sealed([1, 2]), "expected a dictionary, found list"),
            (sealed({**state, "settings": "x"}), "expected a dictionary"),
            (sealed(leaves(state, (("rows",), ...))), "it lacks rows"),
            (sealed({**state, "version": 0}),
             "it is of train_search.py, version 0, not of train_search.py, version "
             f"{folders.VERSION}"),
            ((finished / "d" / "checkpoint.pt").read_bytes(), "it is of train_eval.py")]
    for number, (damaged, message) in enumerate(bad):
        path.write_bytes(damaged)
        with pytest.raises(flags.UserError, match=re.escape(message)):
            folders.read_sealed(str(path), "train_search", loop.LOOP)
        if number in (5, 31, 32):
            assert message in refused(capsys, monkeypatch, train_search, "--resume", path.parent)
    for changed, message in ((leaves(state, (("adam",), ...)), "it lacks 'adam'"),
                             ({**state, "network": {}}, "does not fit its settings"),
                             ({**state, "sgd": {"state": {}, "param_groups": []}},
                              "does not fit its settings")):
        path.write_bytes(sealed(changed))
        assert message in refusal(train_search, path.parent, epochs=2)
    assert os.listdir(tmp_path) == ["a"]  # no code ran
    path.write_bytes(whole)
    assert call(train_search, monkeypatch, "--resume", path.parent, "--epochs", 2) == 0


def test_crafted_weights_are_refused(finished, tmp_path, monkeypatch, capsys, digits_once):
    shutil.copytree(finished / "d", tmp_path / "d")
    path = tmp_path / "d" / "best.pt"
    whole = torch.load(path, weights_only=True)
    first = next(iter(whole["network"]))
    for keys, value in ((("epoch",), "x"), (("epoch",), None), (("network",), 3),
                        (("network",), {}), (("network", first), "x"),
                        (("network", first), ...), (("network", first), torch.zeros(2)),
                        (("network", "more"), torch.zeros(2)), (("settings",), {})):
        path.write_bytes(sealed(leaves(whole, (keys, value))))
        assert str(tmp_path / "d") in refusal(train_eval, tmp_path / "d", "evaluate")
    refused(capsys, monkeypatch, train_eval, "--evaluate", tmp_path / "d")
    path.write_bytes(b"junk")
    assert "best.pt cannot be read" in refusal(train_eval, tmp_path / "d", "evaluate")
    path.unlink()
    assert "has no best.pt" in refusal(train_eval, tmp_path / "d", "evaluate")


def test_evaluate_compares_settings_before_it_builds(finished, tmp_path, monkeypatch, capsys):
    shutil.copytree(finished / "d", tmp_path / "d")
    path = tmp_path / "d" / "config.json"
    config = json.loads(path.read_text())
    config["settings"]["init_channels"] = 10**6  # would not fit into any memory
    path.write_text(json.dumps(config))
    monkeypatch.setattr(classifier, "build", None)
    assert "init_channels" in refused(capsys, monkeypatch, train_eval, "--evaluate", path.parent)
