"""What has to be seen on a GPU: python -m pytest -m gpu. See also test_speed_graphs.py."""
import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import genotypes
import model_eval
import model_search
from engine.precision import Precision, full_float32
from fair_darts import Architect, frozen
from spaces import nasbench201, s2
from speed import accelerate
from tests.common import SMALL_EVAL, SMALL_SEARCH
from tests.test_speed import assert_close, batch, results, shortened

ROOT, DEVICE = Path(__file__).parent.parent, "cuda"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(),
                                                  reason="there is no GPU")]
NETWORKS = {
    "s1": lambda: model_search.Network(4, 10, 4),
    "s1 softmax": lambda: model_search.Network(4, 10, 4, gate="softmax"),
    "s2": lambda: shortened(s2.SupernetS2(10, width=0.1, image_size=16)),
    "nasbench201": lambda: nasbench201.SupernetNB201(4, 1, 10, 3, "sigmoid", [*nasbench201.OPS]),
    "cells": lambda: model_eval.NetworkCIFAR(genotypes.FairDARTS_a, 8, 10, 6),
    "chain": lambda: shortened(s2.NetworkS2(s2.FairNAS_A, 10, 0, 0.1, image_size=16))}
SEARCHED = "s1", "s1 softmax", "s2", "nasbench201"


def made(name, dtype=torch.float32):
    torch.manual_seed(0)
    return NETWORKS[name]().to(DEVICE, dtype).train()


def step_of(network, amp=False, size=16, count=32):
    """A step of a search, or of a training, as the scripts do it; its losses."""
    precision, searched = Precision(torch.device(DEVICE), amp, network), hasattr(network, "alphas")
    weights = network.weights() if searched else list(network.parameters())
    sgd = torch.optim.SGD(weights, 0.005, 0.9, weight_decay=3e-4, fused=True)
    architect = searched and Architect(network, gradients=precision.gradients,
                                       update=precision.step)
    images, labels = (t.to(DEVICE) for t in batch(size, count))
    images = images.to(weights[0].dtype)

    def step():
        valid_loss = architect.step(images, labels)[0] if searched else None
        sgd.zero_grad()
        with frozen(network.alphas if searched else []):
            outputs = network(images)
            outputs = [outputs] if searched else [logits for logits in outputs if logits is not None]
            loss = sum(F.cross_entropy(logits, labels) for logits in outputs)
            precision.backward(loss, sgd)
        torch.nn.utils.clip_grad_norm_(weights, 5.0)
        precision.step(sgd)
        return loss.detach(), valid_loss

    step.precision = precision
    return step


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 0.02)])
@pytest.mark.parametrize("form", ["fast", "recompute", "graphs"])
@pytest.mark.parametrize("name", NETWORKS)
def test_each_form_computes_what_plain_modules_do(name, form, dtype, tolerance):
    plain, (images, labels) = made(name, dtype), (t.to(DEVICE) for t in batch(16, 8))
    if form == "recompute" and dtype == torch.float32:
        pytest.skip("in float64 alone")
    fast = accelerate(copy.deepcopy(plain), form == "recompute", form == "graphs")
    with full_float32():
        assert_close(results(fast, images.to(dtype), labels, 1),
                     results(plain, images.to(dtype), labels, 1), tolerance)


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_steps_do_not_wait_for_the_device(name, graphs):
    step = step_of(accelerate(made(name), use_graphs=graphs))
    for _ in range(3):
        step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            step()
        with pytest.raises(RuntimeError):
            step()[0].item()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("name", ["s1", "s2", "nasbench201", "cells"])
def test_25_steps_in_16_bits(name, half, graphs, monkeypatch):
    """half: float16, as on a GPU without bfloat16."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: not half)
    step = step_of(accelerate(made(name), use_graphs=graphs), amp=True)
    losses = torch.stack([step()[0] for _ in range(25)])
    assert losses.isfinite().all() and losses[-1] < losses[0]
    assert step.precision.scaler.is_enabled() == half
    if half:
        assert step.precision.scaler.get_scale() >= 256 and step.precision.trouble() is None


@pytest.mark.parametrize("name", SEARCHED)
def test_less_memory_than_plain(name):
    peaks = []
    for form in ("plain", "fast", "recompute"):
        network = made(name)
        if form != "plain":
            accelerate(network, form == "recompute")
        step = step_of(network, size=32)
        step()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        step()
        peaks.append(torch.cuda.max_memory_allocated())
        del network, step
    assert peaks[1] < peaks[0] and peaks[2] < peaks[0]


def start(*words):
    return subprocess.Popen([sys.executable, *map(str, words)], cwd=ROOT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def run(*words):
    """The output of a command that ends well."""
    child = start(*words)
    out, err = child.communicate(timeout=170)
    assert child.returncode == 0, err
    return out


@pytest.mark.parametrize("flags", [[], ["--graphs"], ["--amp"], ["--amp", "--graphs"]])
def test_scripts_from_start_to_end(flags, tmp_path):
    """Search, training, --evaluate, predict, export; as both commands of the README."""
    kept = ["--runs", tmp_path, *flags]
    out = run("train_search.py", *SMALL_SEARCH, "--threshold", "0", *kept, "--name", "s",
              "--gap_every", "1")
    assert "device: cuda:0" in out and "without CUDA graphs" not in out
    run("train_eval.py", *SMALL_EVAL, "--arch", tmp_path / "s" / "genotype.json", *kept,
        "--name", "e")
    report = (tmp_path / "e" / "report.md").read_text()
    assert "device: cuda:0, " + torch.cuda.get_device_name() in report
    out = run("train_eval.py", "--evaluate", tmp_path / "e")
    best = json.loads(json.dumps(torch.load(tmp_path / "e" / "best.pt", weights_only=True)[
        "accuracy"]))
    assert f"acc {best:.2f}%" in out
    from PIL import Image
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
    assert "%" in run("-m", "use.predict", tmp_path / "e", tmp_path / "a.png", "--device", "cuda")
    assert "model.pt2" in run("-m", "use.export", tmp_path / "e")


def test_a_search_is_killed_and_goes_on(tmp_path):
    search = ["train_search.py", *SMALL_SEARCH, "--threshold", "0", "--runs", tmp_path, "--name",
              "a", "--epochs", "4", "--gap_every", "0", "--graphs"]
    child = start(*search)
    while not (tmp_path / "a" / "checkpoint.pt").exists():
        assert child.poll() is None
        time.sleep(0.05)
    child.send_signal(signal.SIGTERM)
    out, err = child.communicate(timeout=100)
    assert child.returncode == 128 + signal.SIGTERM, err
    assert "go on:" in out
    out = run("train_search.py", "--resume", tmp_path / "a")
    assert "epoch 4/4" in out and os.path.exists(tmp_path / "a" / "genotype.json")
