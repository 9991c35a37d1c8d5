"""The loop of a run: killed, stopped, out of disk, damaged, resumed bit for bit; its data."""
import errno
import functools
import hashlib
import io
import itertools
import json
import os
import random
import resource
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import train_eval
import train_search
from engine import data, flags, folders, loop
from tests.common import (LONG, Launched, Malicious, SMALL_EVAL, SMALL_SEARCH, call, ended, fork,
                          new_run, same, side_by_side, table)


def assert_same(kind, folder, whole):
    assert table(folder) == table(whole) and len(table(folder)) in (4, 6)
    if kind == "search":
        assert (folder / "genotype.json").read_bytes() == (whole / "genotype.json").read_bytes()
        one, other = [np.load(f / "gates.npz") for f in (folder, whole)]
        assert all(np.array_equal(one[part], other[part]) for part in ("normal", "reduce"))
    for name in ("checkpoint.pt",) if kind == "search" else ("checkpoint.pt", "best.pt"):
        states = [torch.load(f / name, weights_only=True) for f in (folder, whole)]
        assert states[0].pop("id") != states[1].pop("id")
        for state in states:
            del state["settings"]
            for row in state.get("rows", []):
                del row["seconds"]
        assert str(states[0].keys()) == str(states[1].keys()) and same(*states)


def dies(place, name, call, entry):
    """In a child: `entry`, whose process is killed in that call of `name`."""
    owner = {"run": loop.Run, "os": os}[place]  # a module cannot be sent to a child
    former, calls = getattr(owner, name), itertools.count(1)

    def counted(*arguments, **options):
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return former(*arguments, **options)

    setattr(owner, name, counted)
    return entry


def test_killed_in_a_step_a_write_and_the_end_of_an_epoch(whole_runs, tmp_path):
    """Resumed each time, it ends bit for bit like a run that nothing interrupts."""
    kills = [("run", "add", 4), ("os", "replace", 7), ("run", "save_checkpoint", 9)]

    def run(kind):
        script, folder = LONG[kind][0], tmp_path / kind
        start = [*LONG[kind][1:], "--runs", tmp_path, "--name", kind, "--checkpoint_minutes", 0]
        for place in kills:
            code, _, err = ended(*fork(tmp_path, script, *start,
                                       setup=functools.partial(dies, *place)))
            assert code == -signal.SIGKILL, err
            start = ["--resume", folder]
        code, _, err = ended(*fork(tmp_path, script, *start))
        assert code == 0 and err == ""
        assert_same(kind, folder, whole_runs / kind)

    side_by_side(run)


@pytest.mark.slow
def test_killed_at_ten_random_moments(whole_runs, tmp_path):
    def run(kind):
        dice, folder, script = random.Random(kind), tmp_path / kind, LONG[kind][0]
        process = Launched(tmp_path, *LONG[kind], "--runs", tmp_path, "--name", kind,
                           "--checkpoint_minutes", 0)
        for _ in range(10):
            process.wait_for("run: ")
            time.sleep(dice.uniform(0, 0.5))
            assert process.poll() is None
            process.kill()
            process.wait()
            process = Launched(tmp_path, script, "--resume", folder)
        out, err = process.communicate()
        assert process.poll() == 0 and err == ""
        assert_same(kind, folder, whole_runs / kind)

    side_by_side(run)


def test_one_run_has_one_writer(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "a"
    process = Launched(tmp_path, "train_search", *SMALL_SEARCH, "--epochs", 50, "--runs", tmp_path,
                       "--name", "a", "--checkpoint_minutes", 0)
    process.wait_for("epoch 1/")
    assert call(train_search, monkeypatch, "--resume", folder) == 2
    assert "another process is writing the run" in capsys.readouterr().err
    process.kill()
    process.wait()
    # a third may
    monkeypatch.setattr(train_search.SCRIPT, "work", lambda run, s, dataset: len(run.rows))
    assert call(train_search, monkeypatch, "--resume", folder) >= 1
    assert capsys.readouterr().err == ""


SIGNALS = {"search": (signal.SIGINT, 130), "eval": (signal.SIGTERM, 143)}


def test_signals_end_a_run_that_goes_on(whole_runs, tmp_path):
    def run(kind):
        folder, (number, code) = tmp_path / f"a {kind}", SIGNALS[kind]
        process = Launched(tmp_path, *LONG[kind], "--runs", tmp_path, "--name", folder.name)
        process.wait_for("epoch 2/")
        time.sleep(0.2)
        os.kill(process.pid, number)
        out, err = process.communicate()
        stopped, command = out.strip().split("\n")[-2:]
        assert process.poll() == code and err == "" and stopped.startswith("stopped in epoch ")
        assert command == f"python {LONG[kind][0]}.py --resume '{folder}'"
        process = Launched(tmp_path, LONG[kind][0], "--resume", folder)
        process.wait()
        assert process.poll() == 0
        assert_same(kind, folder, whole_runs / kind)

    side_by_side(run)


def test_signals_wait_for_the_end_of_a_step_or_a_batch(tmp_path, capsys):
    former = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    run, done = new_run(tmp_path), []
    with pytest.raises(SystemExit, match="143"), run:
        run.track()
        for _ in run.epochs():
            for step in run.steps(3):
                os.kill(os.getpid(), signal.SIGTERM)  # one or two: the step is done
                os.kill(os.getpid(), signal.SIGTERM)
                run.add(torch.tensor(1.0), loss=torch.tensor(2.0 + step))
                done.append(step)
    assert done == [0] and "stopped in epoch 1 after step 1 of 3" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="130"), loop.Run.open(run.folder, "train_search") as run:
        run.resume(run.config["settings"])
        run.track()
        for _ in run.epochs():
            for step in run.steps(3):
                run.add(torch.tensor(1.0), loss=torch.tensor(2.0 + step))
            assert run.means() == {"loss": 3.0}  # what the first process did is counted
            for batch in run.watched(range(5)):
                os.kill(os.getpid(), signal.SIGINT)
                done.append(batch)
    assert done == [0, 0] and "after step 3 of 3" in capsys.readouterr().out
    with pytest.raises(KeyboardInterrupt), loop.Run.open(run.folder, "train_search") as run:
        run.track()
        os.kill(os.getpid(), signal.SIGINT)
        assert run.signal == signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)  # the second time: at once
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == former


def test_two_new_runs_of_one_name(tmp_path):
    def create(seed):
        try:
            return new_run(tmp_path, seed=seed).config["settings"]["seed"]
        except flags.UserError as error:
            assert "exists already" in str(error)

    with ThreadPoolExecutor(8) as pool:
        seeds = [seed for seed in pool.map(create, range(8)) if seed is not None]
    assert json.loads((tmp_path / "a" / "config.json").read_text())["settings"]["seed"] == seeds[0]
    assert len(seeds) == 1


class FullDisk(io.FileIO):
    def write(self, content):
        super().write(content[:len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device", self.name)


@pytest.mark.parametrize("stage", ["open", "write", "fsync", "rename", "limit"])
def test_failed_write_leaves_the_former_checkpoint(stage, tmp_path, monkeypatch, capsys):
    search = [*SMALL_SEARCH, "--nodes", 1, "--batch_size", 300, "--threshold", 0,
              "--runs", tmp_path]
    folder = tmp_path / "a"
    assert call(train_search, monkeypatch, *search, "--name", "whole") == 0
    full = OSError(errno.ENOSPC, "No space left on device", "checkpoint.pt")
    with monkeypatch.context() as patch:
        steps = loop.Run.steps

        def second_epoch_fails(self, count):
            if len(self.rows) == 1:
                def fail(*arguments):
                    raise full
                if stage == "open":
                    patch.setattr(folders, "open", fail, raising=False)
                elif stage == "write":
                    patch.setattr(
                        folders, "open",
                        lambda path, mode="r": FullDisk(path, "x") if "x" in mode else open(path),
                        raising=False)
                elif stage == "fsync":
                    patch.setattr(os, "fsync", fail)
                elif stage == "rename":
                    patch.setattr(os, "replace", fail)
                else:  # the kernel itself refuses, in the middle of the file
                    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, resource.RLIM_INFINITY))
            return steps(self, count)

        patch.setattr(loop.Run, "steps", second_epoch_fails)
        capsys.readouterr()
        try:
            assert call(train_search, monkeypatch, *search, "--name", "a") == 2
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE,
                               (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    error = capsys.readouterr().err
    assert (error.count("\n") == 1
            and f"go on with: python train_search.py --resume {folder}" in error)
    assert ("File too large" if stage == "limit" else "No space left on device") in error
    assert not list(folder.glob("*.part"))
    with loop.Run.open(str(folder), "train_search") as run:
        run.resume(run.config["settings"])
        assert len(run.rows) == 1
    assert call(train_search, monkeypatch, "--resume", folder) == 0
    assert table(folder) == table(tmp_path / "whole")


def test_what_is_not_finite_is_never_saved(tmp_path, monkeypatch, capsys):
    search = [*SMALL_SEARCH, "--runs", tmp_path]
    assert call(train_search, monkeypatch, *search, "--name", "wild",
                "--learning_rate", "1e30") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "not finite" in error and "lower --learning_rate" in error
    assert not (tmp_path / "wild" / "checkpoint.pt").exists()
    for name, script, command in (
            ("loss", train_search, search), ("alpha", train_search, search),
            ("gradient", train_eval, [*SMALL_EVAL, "--arch", "FairDARTS_a", "--runs", tmp_path])):
        with monkeypatch.context() as patch:
            cross_entropy = F.cross_entropy

            def poisoned(logits, labels, **options):
                loss = cross_entropy(logits, labels, **options)
                if not (tmp_path / name / "checkpoint.pt").exists():
                    return loss
                if name == "loss":
                    return loss * float("nan")
                return (logits * 0).sum().sqrt() + loss  # a finite loss whose gradient is not

            patch.setattr(F, "cross_entropy", poisoned)
            assert call(script, patch, *command, "--name", name) == 2
        error = capsys.readouterr().err
        assert "not finite" in error and "in epoch 2, step 7 or before;" in error
        state = torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)
        assert (len(state["rows"]) == 1
                and all(w.isfinite().all() for w in state["network"].values()))


def test_bad_checkpoints_are_refused(tmp_path, monkeypatch, capsys):
    assert call(train_search, monkeypatch, *SMALL_SEARCH, "--threshold", 0, "--runs", tmp_path,
                "--name", "a") == 0
    assert call(train_eval, monkeypatch, *SMALL_EVAL, "--arch", "FairDARTS_a", "--epochs", 1,
                "--runs", tmp_path, "--name", "b") == 0
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a" / "checkpoint.pt"
    whole = path.read_bytes()
    state = torch.load(io.BytesIO(whole), weights_only=True)

    def sealed(content):
        return content + hashlib.sha256(content).digest()

    def saved(content):
        buffer = io.BytesIO()
        torch.save(content, buffer)
        return buffer.getvalue()

    dice, bad = random.Random(0), []
    bad += [(whole[:len(whole) * cut // 20], "checksum") for cut in range(20)]
    for _ in range(10):
        flipped = bytearray(whole)
        flipped[dice.randrange(len(whole))] ^= 1 << dice.randrange(8)
        bad.append((bytes(flipped), "checksum"))
    bad += [(saved(Malicious()), "checksum"),
            (sealed(saved(Malicious())), "cannot be read: Weights only load failed"),
            (sealed(saved({**state, "rows": Malicious()})), "Weights only"),
            (sealed(b"junk"), "cannot be read"),
            (sealed(saved([1, 2])), "expected a dictionary, found list"),
            (sealed(saved({key: value for key, value in state.items() if key != "rows"})),
             "it lacks rows"),
            (sealed(saved({key: value for key, value in state.items() if key != "adam"})),
             "it lacks 'adam'"),
            (sealed(saved({**state, "version": 0})),
             "it is of train_search.py, version 0, not of train_search.py, version 4"),
            (sealed(saved({**state, "network": {}})), "does not fit its settings"),
            (sealed(saved({**state, "sgd": {"state": {}, "param_groups": []}})),
             "does not fit its settings"),
            ((tmp_path / "b" / "checkpoint.pt").read_bytes(), "it is of train_eval.py")]
    capsys.readouterr()
    for content, message in bad:
        path.write_bytes(content)
        assert call(train_search, monkeypatch, "--resume", tmp_path / "a", "--epochs", 3) == 2
        captured = capsys.readouterr()
        assert captured.err.count("\n") == 1 and message in captured.err and captured.out == ""
    assert sorted(f.name for f in tmp_path.iterdir()) == ["a", "b"]  # no code ran
    path.write_bytes(whole)
    assert call(train_search, monkeypatch, "--resume", tmp_path / "a", "--epochs", 3) == 0
    assert len(table(tmp_path / "a")) == 3


def test_bad_configs_are_refused(tmp_path, monkeypatch, capsys):
    search = [*SMALL_SEARCH, "--threshold", 0, "--runs", tmp_path, "--name", "a", "--epochs", 1]
    assert call(train_search, monkeypatch, *search) == 0
    path = tmp_path / "a" / "config.json"
    config = json.loads(path.read_text())
    settings = config["settings"]

    def changed(**values):
        return json.dumps({**config, "settings": {**settings, **values}})

    capsys.readouterr()
    for content, message in (
            ("", "no readable config"), ("[]", "no readable config"), ("{}", "no readable config"),
            ("[" * 99999, "no readable"),
            (json.dumps({**config, "settings": 3}), "no readable config"),
            (json.dumps({**config, "version": 99}), "version 99"),
            (json.dumps({**config, "script": "train_eval"}), "a run of train_eval.py"),
            (json.dumps({**config, "fingerprint": "0"}), "the dataset is not the one"),
            (changed(epochs=None), "epochs must have a value"),
            (changed(epochs=-1), "from 1 up"), (changed(epochs=True), "--epochs"),
            (changed(dataset="elsewhere"), "unknown 'elsewhere'"),
            (changed(help=True), "it has help"), (changed(w01="ten"), "expected a number"),
            (changed(amp="yes"), "--amp"), (changed(gate=["sigmoid"]), "--gate"),
            (changed(name="../b"), "the name of a folder"),
            (json.dumps({**config, "settings": {k: v for k, v in settings.items()
                                                if k != "seed"}}), "it lacks seed")):
        path.write_text(content)
        assert call(train_search, monkeypatch, "--resume", tmp_path / "a", "--epochs", 2) == 2
        captured = capsys.readouterr()
        assert (captured.err.count("\n") == 1 and message in captured.err
                and captured.out == ""), content[:300]
    path.write_text(json.dumps(config))
    assert call(train_search, monkeypatch, "--resume", tmp_path / "a", "--epochs", 2,
                "--checkpoint_minutes", 1) == 0
    capsys.readouterr()
    config = json.loads(path.read_text())  # what may change is kept
    assert (config["settings"] == {**settings, "epochs": 2, "checkpoint_minutes": 1.0}
            and len(config["commands"]) == 2)
    assert call(train_search, monkeypatch, "--resume", tmp_path / "a", "--epochs", 1) == 2
    assert "--epochs 1: the run has 2, which can only be raised" in capsys.readouterr().err


@pytest.mark.parametrize("name, shape, channels", [
    ("cifar10", (50, 32, 32, 3), 3), ("cifar100", (50, 32, 32, 3), 3), ("svhn", (50, 3, 32, 32), 3),
    ("fashionmnist", (50, 28, 28), 1)])
def test_downloaded_sets_as_torchvision_holds_them(name, shape, channels, monkeypatch):
    pixels, labels = (np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8),
                      np.arange(50) % 10)

    def read(make, root, train):
        values = labels if name == "svhn" else labels.tolist()
        kind = torch.from_numpy(pixels) if name == "fashionmnist" else pixels
        return SimpleNamespace(data=kind, **{"labels" if name == "svhn" else "targets": values})

    monkeypatch.setattr(data, "_quietly", read)
    d = data.load(name)
    assert d.images.shape == (50, channels, shape[2], shape[2]) and d.images.dtype == torch.uint8
    assert d.labels.dtype == torch.int64 and torch.equal(d.test_labels, torch.from_numpy(labels))
    expected = (pixels[7] if name == "svhn"
                else pixels[7].transpose(2, 0, 1) if channels == 3 else pixels[7][None])
    assert np.array_equal(d.images[7].numpy(), expected)


def test_default_dataset_and_missing_downloads(tmp_path, monkeypatch):
    dataset, why = data.load_asked({}, torch.device("cpu"))
    assert dataset.name == "digits" and "no GPU" in why and "--dataset cifar10" in why

    def offline(make, root, train):
        raise OSError("no network")

    monkeypatch.setattr(data, "_quietly", offline)
    dataset, why = data.load_asked({"data": str(tmp_path)}, torch.device("cuda"))
    assert dataset.name == "digits" and "cannot be downloaded (no network)" in why
    # an explicit dataset is never replaced
    with pytest.raises(flags.UserError, match="cannot be downloaded"):
        data.load_asked({"dataset": "cifar10", "data": str(tmp_path)}, torch.device("cuda"))
