"""What several files of tests use: oracles, small networks and runs, scripts in child
processes."""
import csv
import multiprocessing
import os
import resource
import secrets
import signal
import sys
import traceback
from argparse import Namespace

import numpy as np
import pytest
import torch
import torch.nn as nn
from PIL import Image

import train_eval
import train_search
from engine import batches, data, flags, loop
from spaces import s2
from study import reproduce, strength, visualize
from use import export, predict


class Zero(nn.Module):
    """none of DARTS."""

    def __init__(self, stride):
        super().__init__()
        self.stride = stride

    def forward(self, x):
        return 0 * x[:, :, ::self.stride, ::self.stride]


# ---------------------------------------------------------------- the scripts

SMALL_SEARCH = ["--dataset", "digits", "--init_channels", "2", "--layers", "3", "--nodes", "2",
                "--batch_size", "100", "--epochs", "2", "--figures_every", "0"]


SMALL_EVAL = ["--dataset", "digits", "--init_channels", "4", "--layers", "3",
              "--batch_size", "200", "--epochs", "2"]


TINY_SEARCH = [*SMALL_SEARCH, "--nodes", "1", "--batch_size", "300", "--threshold", "0",
               "--primitives", "skip_connect,sep_conv_3x3", "--epochs", "1", "--device", "cpu"]


TINY_EVAL = [*SMALL_EVAL, "--arch", "FairDARTS_a", "--init_channels", "2", "--layers", "3",
             "--batch_size", "600", "--epochs", "1", "--device", "cpu"]


# What main calls of each, by the attribute of its module, which a test may replace
ENTRIES = {"train_search": (train_search, "command"), "train_eval": (train_eval, "command"),
           "visualize": (visualize, "visualize"), "reproduce": (reproduce, "reproduce"),
           "predict": (predict, "predict_pictures"), "export": (export, "export_run"),
           "strength": (strength, "strength")}


def name_of(script):
    return script.__name__.rpartition(".")[2]


def call(script, monkeypatch, *arguments):
    """Run a script in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", [name_of(script) + ".py", *map(str, arguments)])
    monkeypatch.setattr("warnings.showwarning", None)  # put back afterwards
    threads = torch.get_num_threads()
    with pytest.raises(SystemExit) as stop:
        flags.main(getattr(*ENTRIES[name_of(script)]))
    torch.set_num_threads(threads)
    return stop.value.code or 0


def table(folder):
    with open(folder / "metrics.csv") as file:
        return [{key: value for key, value in row.items() if key != "seconds"}
                for row in csv.DictReader(file)]


# ---------------------------------------------------------------- figures

def assert_picture(path):
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(float)
    assert pixels.shape[1] >= 300 and pixels.shape[0] >= 200
    assert 0.01 < (pixels.min(2) < 240).mean() < 0.99 and pixels.std() > 10  # not blank, not filled
    for border in pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]:
        assert (border > 250).all()  # nothing is cut off


FIGURES = ["dominant", "gates", "heatmap", "penalty", "gap", "cell_normal", "cell_reduce"]


# ---------------------------------------------------------------- runs

def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if torch.is_tensor(a) else a == b


def new_run(tmp_path, **settings):
    s = Namespace(**{"name": "a", "runs": str(tmp_path), "dataset": "digits", "epochs": 2,
                     "learning_rate": 1, "amp": False, "checkpoint_minutes": 10, "log_every": 25,
                     "seed": 0, **settings})
    return loop.Run.create("train_search", s, fingerprint="", classes=[], shape=[1, 8, 8])


def pictures_of(images, labels, mean=0., std=1.):
    """batches.Pictures of uint8 tensors."""
    mean, std = (torch.full((images.shape[1],), value, device=images.device)
                 for value in (mean, std))
    return batches.Pictures(data.Dataset("", images, labels, images, labels, [], mean, std),
                            images.device)


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("owned",)


def content(folder):
    """{name: bytes, or the kind of what is no file} of everything below `folder`."""
    return {str(path.relative_to(folder)): os.readlink(path) if path.is_symlink()
            else path.read_bytes() if path.is_file() else path.lstat().st_mode
            for path in sorted(folder.rglob("*"))}


def refused(capsys, monkeypatch, script, *arguments):
    """The one line with which a script, called in this process, refuses."""
    capsys.readouterr()
    assert call(script, monkeypatch, *arguments) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if not line.startswith("note: ")]
    assert len(lines) == 1 and captured.err.endswith("\n"), captured.err[-2000:]
    assert lines[0].startswith(f"{name_of(script)}.py: error: ")
    return lines[0]


def limited(script, arguments, files, memory, seconds, setup):
    """In a child of the fork server: call a script, or `setup`, within limits."""
    code = 99
    try:
        for number, path in enumerate(files, 1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        sys.stdout, sys.stderr = (open(n, "w", buffering=1, closefd=False) for n in (1, 2))
        torch.set_num_threads(1)
        with open("/proc/self/statm") as file:  # pages; on Linux
            now = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + memory, now + memory))
        signal.alarm(seconds)
        sys.argv = [script + ".py", *map(str, arguments)]
        entry = getattr(*ENTRIES[script])
        if setup is not None:
            entry = setup(entry)
        flags.main(entry)
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        traceback.print_exc()
    for output in sys.stdout, sys.stderr:
        output.flush()
    os._exit(code)


def fork(tmp_path, script, *arguments, memory=2 << 30, seconds=60, setup=None):
    """Start a script in a child that is forked from a process which has imported
    everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "sklearn.datasets"])
    files = [tmp_path / f"stream_{secrets.token_hex(4)}" for _ in range(2)]
    child = context.Process(target=limited,
                            args=(script, arguments, files, memory, seconds, setup))
    child.start()
    return child, files


def ended(child, files):
    """Exit code, stdout and stderr of such a child; 99: an unexpected exception, -14:
    out of time."""
    child.join()
    texts = [file.read_text(errors="backslashreplace") if file.exists() else "" for file in files]
    for file in files:
        file.unlink(missing_ok=True)
    return child.exitcode, *texts


def shortened(network):
    """Four of the 19 layers of a network of S2: other channels, same shape, stride 2,
    the last."""
    kept = [0, 1, 14, 18]
    network.layers = nn.ModuleList(network.layers[index] for index in kept)
    if hasattr(network, "alphas"):
        network.present = network.present[kept]
        network.places = torch.tensor([7 * index + choice for index, row in enumerate(kept)
                                       for choice in range(7) if s2.SAME_SHAPE[row] or choice < 6])
        network.alphas[0].data = network.alphas[0].data[kept]
    return network
