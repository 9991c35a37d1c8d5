"""The loop of a run: killed, stopped, out of disk, damaged, resumed bit for bit; its
data."""
import errno
import functools
import io
import itertools
import json
import os
import random
import resource
import shutil
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
from tests.common import (LONG, Launched, SMALL_EVAL, SMALL_SEARCH, TINY_EVAL, TINY_SEARCH, call,
                          content, ended, fork, new_run, refused, same, side_by_side, table)


def assert_same(kind, folder, whole):
    assert table(folder) == table(whole)
    if kind == "search":
        assert (folder / "genotype.json").read_bytes() == (whole / "genotype.json").read_bytes()
        one, other = [np.load(f / "gates.npz") for f in (folder, whole)]
        assert all(np.array_equal(one[part], other[part]) for part in set(one.files) - {"run"})
    for name in ("checkpoint.pt",) if kind == "search" else ("checkpoint.pt", "best.pt"):
        states = [torch.load(f / name, weights_only=True) for f in (folder, whole)]
        assert states[0].pop("id") != states[1].pop("id")
        for state in states:
            del state["settings"]
            for row in state.get("rows", []):
                del row["seconds"]
        assert str(states[0].keys()) == str(states[1].keys()) and same(*states)


def ended_whole(kind, command, root):
    """The folder of a search or a training that nothing interrupts."""
    code, _, err = ended(*fork(root, *command, "--runs", root, "--name", f"whole {kind}"))
    assert code == 0 and err == ""
    return root / f"whole {kind}"


def interrupted(owner, name, call, number, entry):
    """In a child: `entry`, whose process gets the signal `number` in that call of
    `name`."""
    owner = {"run": loop.Run, "os": os}[owner]  # a module cannot be sent to a child
    former, calls = getattr(owner, name), itertools.count(1)

    def counted(*arguments, **options):
        if next(calls) == call:
            os.kill(os.getpid(), number)
        return former(*arguments, **options)

    setattr(owner, name, counted)
    return entry


SIGNALS = {"search": (signal.SIGINT, 130), "eval": (signal.SIGTERM, 143)}


def test_killed_and_stopped_it_ends_as_what_nothing_interrupts(tmp_path):
    """Killed in a step, in a write, at the end of an epoch, and stopped by a signal,
    bit for bit."""
    def run(kind):
        whole, folder = ended_whole(kind, LONG[kind], tmp_path), tmp_path / f"a {kind}"
        number, stopped = SIGNALS[kind]
        script, *start = [*LONG[kind], "--runs", tmp_path, "--name", folder.name]
        for *place, given, minutes in (("run", "add", 4, signal.SIGKILL, 0),
                                       ("run", "add", 3, number, 10),
                                       ("os", "replace", 3, signal.SIGKILL, 0),
                                       ("run", "save_checkpoint", 3, signal.SIGKILL, 0)):
            code, out, err = ended(*fork(
                tmp_path, script, *start, "--checkpoint_minutes", minutes,
                setup=functools.partial(interrupted, *place, given)))
            assert err == "" and code == (stopped if given == number else -given)
            if given == number:
                assert out.strip().split("\n")[-2:] == [
                    "stopped in epoch 2 after step 2 of 4; go on:",
                    f"python {script}.py --resume '{folder}'"]
                state = torch.load(folder / "checkpoint.pt", weights_only=True)
                assert (len(state["rows"]), state["done"]) == (1, 2)
            assert bool(list(folder.glob("*.part"))) == (place[1] == "replace")
            start = ["--resume", folder]
        code, _, err = ended(*fork(tmp_path, script, *start))
        assert code == 0 and err == "" and not list(folder.glob("*.part"))
        assert len(table(folder)) == 3
        assert_same(kind, folder, whole)

    side_by_side(run)


def test_killed_in_the_space_of_the_benchmark_and_resumed(tmp_path):
    words = ["train_search", "--space", "nasbench201", "--dataset", "digits", "--init_channels",
             "2", "--batch_size", "170", "--epochs", "2", "--threshold", "0", "--skip_dropout",
             "0.3", "--figures_every", "0", "--device", "cpu"]
    whole, folder = ended_whole("search", words, tmp_path), tmp_path / "a"
    code, *_ = ended(*fork(tmp_path, *words, "--runs", tmp_path, "--name", "a",
                           "--checkpoint_minutes", 0,
                           setup=functools.partial(interrupted, "run", "add", 6, signal.SIGKILL)))
    assert code == -signal.SIGKILL and len(table(folder)) == 1
    code, _, err = ended(*fork(tmp_path, "train_search", "--resume", folder))
    assert code == 0 and err == ""
    assert_same("search", folder, whole)


@pytest.mark.slow
def test_killed_at_ten_random_moments(tmp_path):
    long = {"search": ["train_search", *SMALL_SEARCH, "--arch_learning_rate", 0.2, "--epochs", 6],
            "eval": ["train_eval", *SMALL_EVAL, "--arch", "FairDARTS_a", "--epochs", 4,
                     "--drop_path_prob", 0.3]}

    def run(kind):
        dice, folder, script = random.Random(kind), tmp_path / kind, long[kind][0]
        whole = ended_whole(kind, long[kind], tmp_path)
        process = Launched(tmp_path, *long[kind], "--runs", tmp_path, "--name", kind,
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
        assert_same(kind, folder, whole)

    side_by_side(run)


@pytest.mark.parametrize("script, tiny", [(train_search, TINY_SEARCH), (train_eval, TINY_EVAL)])
def test_one_run_has_one_writer(script, tiny, tmp_path, monkeypatch, capsys):
    """While a new run or one that goes on works, another process cannot write it, then
    it may."""
    folder, codes = tmp_path / "a", []

    def work(run, s, dataset):
        before = content(folder)
        with monkeypatch.context() as patch:
            codes.append(call(script, patch, "--resume", folder))
        assert content(folder) == before

    monkeypatch.setattr(script.SCRIPT, "work", work)
    for command in ([*tiny, "--runs", tmp_path, "--name", "a"], ["--resume", folder]):
        assert call(script, monkeypatch, *command) == 0
        error = capsys.readouterr().err
        assert "another process is writing the run" in error and error.count("\n") == 1
    assert codes == [2, 2]


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


def test_a_checkpoint_when_its_minutes_are_over_and_after_the_row_of_an_epoch(tmp_path,
                                                                              monkeypatch):
    run, now, written = new_run(tmp_path, checkpoint_minutes=1), [0], []
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: now[0]))
    run.write = lambda name, content: written.append((run.done, name))
    for _ in run.steps(7):
        now[0] += 25
    run.end_epoch({"epoch": 1}, "")
    assert written == [(3, "checkpoint.pt"), (6, "checkpoint.pt"), (0, "metrics.csv"),
                       (0, "checkpoint.pt"), (0, "log.txt")]


def test_seconds_include_the_waiting_for_the_device(tmp_path, monkeypatch):
    """Steps are only launched; reading a figure waits for them."""
    run, now = new_run(tmp_path, epochs=1, log_every=2), [0.0]
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(run, "read_figures", lambda: now.append(now[0] + 5) or now.pop(0))
    for _ in run.steps(4):
        pass
    run.end_epoch({"epoch": 1}, "")
    assert run.rows[0]["seconds"] == 15  # after 2 steps, after 4, and at the end


def test_flags_that_resume_may_change():
    """None that changes what is computed, but for rounding, the number of epochs and
    the cut."""
    assert flags.MAY_CHANGE == {
        "epochs", "threshold", "edges_per_node", "ops_per_edge", "ops_per_layer", "keep_skips",
        "device", "threads", "data", "plain", "checkpoint_minutes", "log_every", "workers",
        "gap_every", "figures_every"}


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


@pytest.mark.parametrize("stage", ["open", "write", "fsync", "rename"])
def test_failed_write_leaves_the_former_checkpoint(stage, tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device", "checkpoint.pt")

    owner, name, other = {
        "open": (folders, "open", fail), "fsync": (os, "fsync", fail),
        "rename": (os, "replace", fail),
        "write": (folders, "open", lambda path, mode="r": FullDisk(path, "x"))}[stage]
    run, reached = new_run(tmp_path), []
    with pytest.raises(flags.UserError, match="No space left on device.* is whole, go on with: "
                       f"python train_search.py --resume {run.folder}"), run:
        run.track()
        for epoch in run.epochs():
            for step in run.steps(1):
                run.add(torch.tensor(1.0), loss=torch.tensor(2.0))
            if epoch == 1:
                reached.append(content(tmp_path))
                monkeypatch.setattr(owner, name, other, raising=False)
                run.save_checkpoint()
            run.end_epoch({"epoch": 1}, "")
    monkeypatch.undo()
    assert reached == [content(tmp_path)]  # nothing has changed, no .part is left
    with loop.Run.open(run.folder, "train_search") as run:
        run.resume(run.config["settings"])
        assert len(run.rows) == 1


def test_a_write_that_the_system_refuses_ends_in_one_line(finished, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "a"
    shutil.copytree(finished / "a", folder)
    former = (folder / "checkpoint.pt").read_bytes()
    try:  # in the middle of the file
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(former) // 2, resource.RLIM_INFINITY))
        error = refused(capsys, monkeypatch, train_search, "--resume", folder, "--epochs", 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    assert "File too large" in error
    assert f"go on with: python train_search.py --resume {folder}" in error
    assert (folder / "checkpoint.pt").read_bytes() == former and not list(folder.glob("*.part"))
    assert call(train_search, monkeypatch, "--resume", folder) == 0
    assert len(table(folder)) == 2


def test_what_is_not_finite_is_never_saved(finished, tmp_path, monkeypatch, capsys):
    cross_entropy = F.cross_entropy
    for kind, run, script in (("loss", "a", train_search), ("alpha", "a", train_search),
                              ("gradient", "d", train_eval)):
        def poisoned(logits, labels, **options):
            loss = cross_entropy(logits, labels, **options)
            if kind == "loss":
                return loss * float("nan")
            return (logits * 0).sum().sqrt() + loss  # a finite loss whose gradient is not

        shutil.copytree(finished / run, tmp_path / kind)
        with monkeypatch.context() as patch:
            patch.setattr(F, "cross_entropy", poisoned)
            error = refused(capsys, patch, script, "--resume", tmp_path / kind, "--epochs", 2)
        assert "not finite" in error and "in epoch 2, step 2 or before;" in error
        assert all((tmp_path / kind / name).read_bytes() == (finished / run / name).read_bytes()
                   for name in ("checkpoint.pt", "metrics.csv"))


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
