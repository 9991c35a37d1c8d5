"""The loop of a run: killed, stopped, out of disk, resumed bit for bit."""
import errno
import functools
import io
import itertools
import json
import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import train_eval
import train_search
from engine import flags, folders, loop
from tests.common import (TINY_EVAL, TINY_SEARCH, call, content, ended, fork, new_run, refused,
                          same, table)

# three epochs of four steps
LONG = {"search": ["train_search", *TINY_SEARCH, "--batch_size", "170", "--epochs", "3",
                   "--skip_dropout", "0.3"],
        "eval": ["train_eval", *TINY_EVAL, "--batch_size", "350", "--epochs", "3",
                 "--drop_path_prob", "0.3", "--no-auxiliary"]}


def results(folder):
    """What a run has computed, by its file."""
    found = {"metrics.csv": table(folder)}
    for path in folder.glob("*.npz"):
        found[path.name] = [np.load(path)[part].tolist() for part in np.load(path).files]
    for path in folder.glob("*.pt"):
        found[path.name] = state = torch.load(path, weights_only=True)
        for row in [state, *state.get("rows", [])]:
            for name in ("seconds", "settings", "machine"):
                row.pop(name, None)
    return found


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
        whole, folder = tmp_path / f"whole {kind}", tmp_path / f"a {kind}"
        script, *start = [*LONG[kind], "--runs", tmp_path, "--name"]
        code, _, err = ended(*fork(tmp_path, script, *start, whole.name))
        assert code == 0 and err == ""
        start, (number, stopped) = [*start, folder.name], SIGNALS[kind]
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
        assert same(results(folder), results(whole))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, SIGNALS))


def test_one_run_has_one_writer(tmp_path, monkeypatch, capsys):
    """While a new run or one that goes on works, another process cannot write it, then
    it may."""
    folder, codes = tmp_path / "a", []

    def try_to_write(run):
        before = content(folder)
        with monkeypatch.context() as patch:
            codes.append(call(train_search, patch, "--resume", folder))
        assert content(folder) == before

    monkeypatch.setattr(train_search, "search", try_to_write)
    for command in ([*TINY_SEARCH, "--runs", tmp_path, "--name", "a"], ["--resume", folder]):
        assert call(train_search, monkeypatch, *command) == 0
        error = capsys.readouterr().err
        assert "another process is writing the run" in error and error.count("\n") == 1
    assert codes == [2, 2]


def again(run):
    """The Run that goes on with `run`."""
    run = loop.Run.open(run.folder, "train_search")
    run.read_checkpoint()
    return run


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
    with pytest.raises(SystemExit, match="130"), again(run) as run:
        run.track()
        for _ in run.epochs():
            for step in run.steps(3):
                run.add(torch.tensor(1.0), loss=torch.tensor(2.0 + step))
            assert run.means() == {"loss": 3.0}  # what the first process did is counted
            for batch in run.watched(range(5)):
                os.kill(os.getpid(), signal.SIGINT)
                done.append(batch)
    assert done == [0, 0] and "after step 3 of 3" in capsys.readouterr().out
    with pytest.raises(KeyboardInterrupt), again(run) as run:
        run.track()
        os.kill(os.getpid(), signal.SIGINT)
        assert run.signal == signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)  # the second time: at once
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == former


def test_when_checkpoints_are_written_and_what_seconds_are(tmp_path, monkeypatch):
    """After their minutes, and after the row of an epoch; reading a figure waits for
    what the device still computes."""
    run, now, written = new_run(tmp_path, checkpoint_minutes=1, log_every=3), [0], []
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(run, "read_figures", lambda: now.append(now.pop() + 5))
    monkeypatch.setattr(run, "write", lambda name, content: written.append((run.done, name)))
    for _ in run.steps(7):
        now.append(now.pop() + 25)
    run.end_epoch({"epoch": 1}, "")
    assert written == [(3, "checkpoint.pt"), (6, "checkpoint.pt"), (0, "metrics.csv"),
                       (0, "checkpoint.pt")]
    assert run.rows == [{"epoch": 1, "seconds": 7 * 25 + 3 * 5}]


def test_what_resume_may_change(finished, tmp_path, monkeypatch, capsys):
    """Nothing that changes what is computed, but for rounding, the number of epochs and
    the cut."""
    folder = tmp_path / "a"
    shutil.copytree(finished / "a", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "threads": 7}))
    resume = capsys, monkeypatch, train_search, "--resume", folder
    before = content(folder)
    assert "--seed 7 contradicts the run" in refused(*resume, "--seed", 7)
    assert "--name x contradicts the run" in refused(*resume, "--name", "x")
    assert content(folder) == before
    assert call(train_search, monkeypatch, "--resume", folder, "--epochs", 2, "--seed", 0,
                "--checkpoint_minutes", 1) == 0
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("note: the run began with 7 threads")
    assert "--epochs 1: the run has 2, which can only be raised" in refused(*resume, "--epochs", 1)
    kept = json.loads((folder / "config.json").read_text())
    assert kept["settings"] == {**config["settings"], "epochs": 2, "checkpoint_minutes": 1.0}
    assert len(kept["commands"]) == 2 and len(table(folder)) == 2


def test_new_runs_of_one_name_and_of_one_second(tmp_path):
    def create(seed):
        try:
            return new_run(tmp_path, seed=seed).s.seed
        except flags.UserError as error:
            assert "exists already" in str(error)

    with ThreadPoolExecutor(8) as pool:
        seeds = [seed for seed in pool.map(create, range(8)) if seed is not None]
        assert json.loads((tmp_path / "a" / "config.json").read_text())["settings"]["seed"] == (
            seeds[0])
        many = list(pool.map(lambda _: new_run(tmp_path / "many", name=None).folder, range(2)))
    assert len(seeds) == 1 and len(set(many)) == 2 == len(os.listdir(tmp_path / "many"))


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
    assert len(again(run).rows) == 1


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
