"""What has to be seen on a GPU: python -m pytest -m gpu. See test_speed_graphs.py."""
import copy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from engine.precision import Precision, full_float32
from model_search import Network
from speed import accelerate
from speed.benchmark import step_of
from tests.common import SMALL_EVAL, SMALL_SEARCH
from tests.test_speed import assert_close, batch, results
from tests.test_speed_graphs import NETWORKS

ROOT, DEVICE = Path(__file__).parent.parent, torch.device("cuda", 0)
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(),
                                                  reason="there is no GPU")]


def made(name, dtype=torch.float32):
    torch.manual_seed(0)
    return NETWORKS[name]().to(DEVICE, dtype).train()


def batch_for(network, size=16, count=32):
    images, labels = batch(size, count)
    return images.to(DEVICE, next(network.parameters()).dtype), labels.to(DEVICE)


def step(network, amp=False, size=16):
    """A step of a search or of a training, as the scripts do it, and its Precision."""
    precision = Precision(DEVICE, amp, network)
    return step_of(network, batch_for(network, size), precision), precision


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 0.02)])
@pytest.mark.parametrize("form", ["fast", "recompute", "graphs"])
@pytest.mark.parametrize("name", NETWORKS)
def test_each_form_computes_what_plain_modules_do(name, form, dtype, tolerance):
    plain = made(name, dtype)
    fast = accelerate(copy.deepcopy(plain), form == "recompute", form == "graphs")
    with full_float32():
        assert_close(*(results(network, *batch_for(plain, 16, 8)) for network in (fast, plain)),
                     tolerance)


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_steps_do_not_wait_for_the_device(name, graphs):
    take, _ = step(accelerate(made(name), use_graphs=graphs))
    for _ in range(3):
        take()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            take()
        with pytest.raises(RuntimeError):
            take().item()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("name", ["s1", "s2", "nasbench201", "cells"])
def test_25_steps_in_16_bits(name, half, graphs, monkeypatch):
    """half: float16, as on a GPU without bfloat16."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: not half)
    take, precision = step(accelerate(made(name), use_graphs=graphs), amp=True)
    losses = torch.stack([take() for _ in range(25)])
    assert losses.isfinite().all() and losses[-1] < losses[0]
    assert precision.scaler.is_enabled() == half
    if half:
        assert precision.scaler.get_scale() >= 256 and precision.trouble() is None


def test_less_memory_than_plain():
    peaks = []
    for form in ("recompute", "fast", "plain"):
        network = Network(16).to(DEVICE).train()
        if form != "plain":
            accelerate(network, form == "recompute")
        take, _ = step(network, size=32)
        take()
        torch.cuda.reset_peak_memory_stats()
        take()
        peaks.append(torch.cuda.max_memory_allocated())
        del network, take
    assert peaks[0] < peaks[1] < peaks[2]


def start(*words):
    return subprocess.Popen([sys.executable, *map(str, words)], cwd=ROOT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def run(*words):
    """The output of a command that ends well."""
    child = start(*words)
    out, err = child.communicate(timeout=100)
    assert child.returncode == 0, err
    return out + err


def test_scripts_from_start_to_end(tmp_path):
    """Search, its reading, training, --evaluate, predict, export."""
    kept, device = ["--runs", tmp_path, "--amp", "--graphs"], f"device: {DEVICE}"
    out = run("train_search.py", *SMALL_SEARCH, "--threshold", "0", *kept, "--name", "s")
    assert device in out and "without CUDA graphs" not in out
    assert "Genotype(normal=" in run("-m", "study.strength", tmp_path / "s", "--device", "cuda")
    out = run("train_eval.py", *SMALL_EVAL, "--arch", tmp_path / "s" / "genotype.json", *kept,
              "--name", "e")
    assert device in out and "without CUDA graphs" not in out
    best = torch.load(tmp_path / "e" / "best.pt", weights_only=True)["accuracy"]
    assert f"acc {best:.2f}%" in run("train_eval.py", "--evaluate", tmp_path / "e")
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    assert "%" in run("-m", "use.predict", tmp_path / "e", tmp_path / "a.png", "--device", "cuda")
    assert "model.pt2" in run("-m", "use.export", tmp_path / "e")


def test_a_search_is_killed_and_goes_on(tmp_path):
    child = start("train_search.py", *SMALL_SEARCH, "--threshold", "0", "--runs", tmp_path,
                  "--name", "a", "--epochs", "4", "--graphs")
    while not (tmp_path / "a" / "checkpoint.pt").exists():
        assert child.poll() is None
        time.sleep(0.05)
    child.send_signal(signal.SIGTERM)
    out, err = child.communicate(timeout=100)
    assert child.returncode == 128 + signal.SIGTERM and "go on:" in out, err
    assert "epoch 4/4" in run("train_search.py", "--resume", tmp_path / "a")
    assert (tmp_path / "a" / "genotype.json").exists()
