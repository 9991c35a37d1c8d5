"""Every equation against an independent oracle, every published figure that can be
counted, both scripts for real.

    python -m pytest

The literal networks are compared with a cell written by hand in plain tensor functions,
and the fast ones with the literal ones, which then use PyTorch's own functions in NCHW.
"""
import copy
import csv
import errno
import hashlib
import io
import itertools
import json
import logging
import math
import multiprocessing
import os
import random
import re
import resource
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
import warnings
import zipfile
from argparse import Namespace
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image
from scipy.stats import chisquare
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

import benchmark
import claims
import cures
import data
import devices
import draw_cells
import export
import fair_darts
import fast
import flags
import folders
import genotypes
import grids
import kernels
import many_runs
import measure
import model_eval
import model_search
import operations
import parallel
import pictures as pictures_module
import predict
import recipes
import report
import reproduce
import runs
import train_eval
import train_search
import visualize
from genotypes import PRIMITIVES, ChainGenotype, Edge, Genotype


def close(a, b, tolerance=1e-9):
    """Whether every element of `a` is within `tolerance` of `b`, relative to the largest
    of `b` (or to 1)."""
    return (a - b).abs().max().item() <= tolerance * max(1, b.abs().max().item())


def all_close(first, second, tolerance=1e-9):
    first, second = list(first), list(second)
    return len(first) == len(second) and all(close(a, b, tolerance) for a, b in zip(first, second))


def batch(size, count=4, channels=3, classes=10, seed=0):
    random = torch.Generator().manual_seed(seed)
    return (torch.randn(count, channels, size, size, generator=random, dtype=torch.float64),
            torch.randint(0, classes, (count,), generator=random))


# ---------------------------------------------------------------- the literal form, by hand

def normal(x):
    """Batch norm without scale and shift."""
    mean = x.mean((0, 2, 3), keepdim=True)
    return (x - mean) / (((x - mean) ** 2).mean((0, 2, 3), keepdim=True) + 1e-5).sqrt()


def separable(x, depthwise, pointwise, stride, dilation):
    padding = dilation * (depthwise.shape[2] // 2)
    x = F.conv2d(F.relu(x), depthwise, None, stride, padding, dilation, len(depthwise))
    return normal(F.conv2d(x, pointwise))


def by_hand(name, op, x, stride, search=True):
    """The operation `name` of DARTS on maps of even size, with the convolutions of `op`."""
    w = [weight for weight in op.parameters() if weight.ndim == 4]
    if name == "skip_connect" and stride == 1:
        return x
    if name == "skip_connect":
        x = F.relu(x)
        halves = F.conv2d(x, w[0], stride=2), F.conv2d(x[:, :, 1:, 1:], w[1], stride=2)
        return normal(torch.cat(halves, 1))
    if name == "max_pool_3x3":
        y = F.max_pool2d(x, 3, stride, 1)
        return normal(y) if search else y
    if name == "avg_pool_3x3":
        y = F.avg_pool2d(x, 3, stride, 1) * 9  # zeros count in it, so divide by what is inside
        y = y / (F.avg_pool2d(torch.ones_like(x), 3, stride, 1) * 9)
        return normal(y) if search else y
    if name.startswith("sep_conv"):
        return separable(separable(x, w[0], w[1], stride, 1), w[2], w[3], 1, 1)
    return separable(x, w[0], w[1], stride, 2)


@pytest.mark.parametrize("use_fast", [False, True])
@pytest.mark.parametrize("reduction", [False, True])
def test_searched_cell_by_hand(reduction, use_fast):
    """Eq. 1, 6 on two nodes and five edges."""
    torch.manual_seed(0)
    cell = model_search.Cell(2, 6, 5, 4, reduction, False, PRIMITIVES).double()
    (x0, _), (x1, _) = batch(8, channels=6), batch(8, channels=5, seed=1)
    g = torch.rand(5, 7, dtype=torch.float64, requires_grad=True)
    s0 = normal(F.conv2d(F.relu(x0), cell.preprocess_0[1].weight))
    s1 = normal(F.conv2d(F.relu(x1), cell.preprocess_1[1].weight))

    def edge(row, x, stride):
        ops = cell.edges[row].operations
        return sum(g[row, o] * by_hand(name, ops[o], x, stride)
                   for o, name in enumerate(PRIMITIVES))

    stride = 2 if reduction else 1
    node_2 = edge(0, s0, stride) + edge(1, s1, stride)
    node_3 = edge(2, s0, stride) + edge(3, s1, stride) + edge(4, node_2, 1)
    expected, got = torch.cat([node_2, node_3], 1), cell(x0, x1, g, use_fast)
    assert close(got, expected)
    target, inputs = torch.randn_like(expected), [g, *cell.parameters()]
    gradients = [torch.autograd.grad((y * target).sum(), inputs) for y in (got, expected)]
    assert all_close(*gradients) and gradients[0][0].abs().min() > 1e-6


MULTI = Genotype([Edge("skip_connect", 3, 0), Edge("sep_conv_3x3", 3, 0),
                  Edge("max_pool_3x3", 3, 1)],
                 [Edge("avg_pool_3x3", 2, 1), Edge("dil_conv_5x5", 5, 2),
                  Edge("skip_connect", 5, 0)])
ARCHITECTURES = {"MULTI": MULTI, **{name: getattr(genotypes, name) for name in
                                    ("FairDARTS_a", "FairDARTS_c", "DARTS_V2", "GDAS")}}


@pytest.mark.parametrize("reduction", [False, True])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_derived_cell_by_hand(name, reduction):
    """Missing nodes (a, c), all nodes (DARTS_V2), a chain of nodes (GDAS), several
    operations on an edge (MULTI)."""
    torch.manual_seed(0)
    edges = ARCHITECTURES[name].reduce if reduction else ARCHITECTURES[name].normal
    cell = model_eval.Cell(edges, 6, 5, 4, reduction, False).double()
    (x0, _), (x1, _) = batch(8, channels=6), batch(8, channels=5, seed=1)
    states = {0: normal(F.conv2d(F.relu(x0), cell.preprocess_0[1].weight)),
              1: normal(F.conv2d(F.relu(x1), cell.preprocess_1[1].weight))}
    for node in range(2, 6):
        terms = [by_hand(edge.op, op, states[edge.source],
                         2 if reduction and edge.source < 2 else 1, search=False)
                 for edge, op in zip(cell.edges, cell.operations) if edge.node == node]
        if terms:
            states[node] = sum(terms)
    expected = torch.cat([states[node] for node in sorted(states) if node > 1], 1)
    assert sorted(cell.edges) == sorted(edges) and close(cell(x0, x1, 0.0), expected)


@pytest.mark.parametrize("expansion, kernel, residual", [(3, 3, True), (6, 7, False)])
def test_inverted_bottleneck_by_hand(expansion, kernel, residual):
    torch.manual_seed(0)
    block = operations.chain_operation(f"mb{expansion}_k{kernel}", 8, 8, 1, residual).double()
    x, _ = batch(9, channels=8)
    expand, depthwise, project = [w for w in block.parameters() if w.ndim == 4]
    y = normal(F.conv2d(x, expand)).clamp(0, 6)
    y = normal(F.conv2d(y, depthwise, None, 1, kernel // 2, 1, 8 * expansion)).clamp(0, 6)
    y = normal(F.conv2d(y, project))
    assert len(depthwise) == 8 * expansion and depthwise.shape[2] == kernel
    assert close(block(x), y + x if residual else y)


# ---------------------------------------------------------------- the supernet: Eq. 2, 6

ALL, FEW = PRIMITIVES, ("skip_connect", "sep_conv_3x3")  # RobustDARTS's S3 has such small sets


def results(network, images, labels, stock=False, recompute=False):
    """Logits, gradients and buffers of two passes, the second from moved statistics; then the
    logits in eval mode."""
    network.recompute, found = recompute, []
    with kernels.stock(stock):
        for _ in range(2):
            network.zero_grad()
            logits = network.train()(images)
            F.cross_entropy(logits, labels).backward()
            found += [logits.detach()]
            found += [w.grad.clone() for w in network.parameters() if w.grad is not None]
            found += [buffer.double().clone() for buffer in network.buffers()]
        found.append(network.eval()(images).detach())
    return found


def assert_fast_is_literal(network, images, labels):
    with torch.no_grad():
        for alphas in network.alphas:
            alphas.normal_()
    expected = results(benchmark.plain(network), images, labels, stock=True)
    for recompute in (False, True):
        other = copy.deepcopy(network)
        assert other.fast
        assert all_close(results(other, images, labels, recompute=recompute), expected)
    literal = benchmark.plain(network)  # with the faster convolutions
    assert all_close(results(literal, images, labels, recompute=True), expected)
    assert all(w.grad is None or w.grad.abs().max() > 0 for w in other.weights())
    return other


@pytest.mark.parametrize("gate, size, nodes, layers, memory_format, primitives", [
    ("sigmoid", 8, 4, 3, "channels_last", ALL), ("softmax", 8, 4, 3, "channels_last", ALL),
    ("sigmoid", 7, 4, 3, "channels_last", ALL),
    ("softmax", 15, 2, 4, "channels_last", ALL), ("sigmoid", 7, 1, 2, "contiguous", ALL),
    ("sigmoid", 16, 3, 4, "channels_last", ALL), ("sigmoid", 7, 2, 3, "channels_last", FEW),
    ("softmax", 8, 2, 3, "channels_last", ("avg_pool_3x3", "dil_conv_5x5")),
    ("sigmoid", 8, 2, 3, "channels_last", ("max_pool_3x3", "sep_conv_5x5", "dil_conv_3x3")),
    ("sigmoid", 8, 2, 3, "channels_last", ("dil_conv_3x3",)),
    ("sigmoid", 8, 2, 3, "channels_last", ("skip_connect",)),
    ("sigmoid", 8, 2, 3, "channels_last", ("max_pool_3x3",))])
def test_fast_supernet_equals_the_literal_one(gate, size, nodes, layers, memory_format, primitives,
                                              monkeypatch):
    monkeypatch.setitem(kernels._formats, "cpu", memory_format)
    torch.manual_seed(1)
    network = model_search.Network(4, 10, layers, nodes, 3, gate, primitives).double()
    network = assert_fast_is_literal(network, *batch(size))
    reached = max(a.grad.abs().max().item() for a in network.alphas if a.grad is not None)
    assert reached > (1e-6 if gate == "sigmoid" or len(primitives) > 1 else 0)


@pytest.mark.parametrize("gate, size, width", [("sigmoid", 9, 0.1),
                                               ("softmax", 65, 0.1)])
def test_fast_chain_supernet_equals_the_literal_one(gate, size, width):
    torch.manual_seed(1)
    network = model_search.NetworkS2(10, 3, gate, width, size).double()
    network = assert_fast_is_literal(network, *batch(size, 3))
    [alphas] = network.alphas
    assert alphas.grad[network.present].abs().max() > 1e-5
    assert (alphas.grad[~network.present] == 0).all()


class Zero(nn.Module):
    """none of DARTS."""

    def __init__(self, stride):
        super().__init__()
        self.stride = stride

    def forward(self, x):
        return 0 * x[:, :, ::self.stride, ::self.stride]


@pytest.fixture
def own_operations(monkeypatch):
    """Two operations of DARTS that the paper's space does not have, a line each."""
    monkeypatch.setitem(operations.OPS, "none", lambda channels, stride, affine: Zero(stride))
    monkeypatch.setitem(operations.OPS, "conv_7x1_1x7", lambda c, stride, affine: nn.Sequential(
        nn.ReLU(), nn.Conv2d(c, c, (1, 7), (1, stride), (0, 3), bias=False),
        nn.Conv2d(c, c, (7, 1), (stride, 1), (3, 0), bias=False), nn.BatchNorm2d(c, affine=affine)))


def test_own_operations_in_both_forms(own_operations, monkeypatch):
    # two that are nearly what the fast form knows
    monkeypatch.setitem(operations.OPS, "dil_conv_3", lambda c, stride, affine: operations.DilConv(
        c, 3, stride, affine, dilation=3))
    monkeypatch.setitem(operations.OPS, "mean_conv", lambda c, stride, affine: nn.Sequential(
        nn.AvgPool2d(3, stride, 1), nn.Conv2d(c, c, 1)))
    torch.manual_seed(0)
    primitives = ("skip_connect", "conv_7x1_1x7", "sep_conv_5x5", "none", "dil_conv_3", "mean_conv",
                  "dil_conv_5x5", "max_pool_3x3")
    network = model_search.Network(4, 10, 3, 2, 3, "sigmoid", primitives).double()
    assert_fast_is_literal(network, *batch(8))
    with pytest.raises(KeyError, match="conv_9x1"):  # no name without an operation
        model_search.Network(4, primitives=("conv_9x1",))


def test_one_checkpoint_for_both_forms():
    one, other = [model_search.Network(2, layers=3, fast=form) for form in (True, False)]
    other.load_state_dict(one.state_dict())
    images, _ = batch(8)
    assert close(one.eval()(images.float()), other.eval()(images.float()), 1e-4)
    assert not hasattr(fast.Cell, "parameters")


def test_oracle_uses_stock_functions_in_nchw(monkeypatch):
    for name in ("to_phases", "filter_gradient", "Depthwise"):
        monkeypatch.setattr(kernels, name, None)
    network = benchmark.plain(model_search.Network(2, layers=3))
    formats = []
    network.cells[0].register_forward_pre_hook(lambda module, args: formats.append(
        args[0].is_contiguous() and not hasattr(args[0], "shared_relu")))
    with kernels.stock():
        F.cross_entropy(network(batch(8)[0].float()), batch(8)[1]).backward()
    assert formats == [True]


@pytest.mark.parametrize("kernel, stride, size, small, copies, dilation", [
    (3, 1, 8, 0, 1, 1), (3, 2, 7, 0, 2, 1), (5, 1, 9, 0, 1, 1), (5, 2, 8, 0, 3, 1),
    (5, 1, 7, 6, 2, 1), (5, 2, 15, 6, 2, 1), (5, 1, 2, 0, 1, 1), (5, 2, 3, 3, 2, 1),
    (3, 1, 1, 0, 2, 1), (5, 1, 1, 6, 2, 1), (7, 1, 9, 0, 1, 1), (7, 2, 8, 0, 1, 1),
    (7, 1, 3, 0, 2, 1), (7, 2, 15, 0, 1, 1), (9, 1, 9, 0, 1, 1), (3, 1, 8, 0, 1, 2),
    (5, 1, 8, 0, 2, 2), (5, 1, 7, 0, 1, 2), (5, 2, 8, 0, 1, 2), (3, 2, 7, 0, 1, 2),
    (3, 1, 9, 0, 1, 3)])
def test_depthwise_equals_conv2d(kernel, stride, size, small, copies, dilation):
    torch.manual_seed(0)
    x = torch.randn(3, 6 if copies == 1 or small == 6 else 3, size, size, dtype=torch.float64,
                    requires_grad=True)
    count = copies * x.shape[1]
    weight = torch.randn(count, 1, kernel, kernel, dtype=torch.float64)
    if small:
        weight[:small] = F.pad(weight[:small, :, 1:-1, 1:-1], [1] * 4)
    weight.requires_grad_()
    padding = dilation * (kernel // 2)
    expected = F.conv2d(torch.cat([x] * copies, 1), weight, None, stride, padding, dilation, count)
    got = kernels.depthwise(x, weight, stride, dilation, small)
    target = torch.randn_like(expected)
    dx, dw = torch.autograd.grad((expected * target).sum(), (x, weight))
    own_dx, own_dw = torch.autograd.grad((got * target).sum(), (x, weight))
    assert close(got, expected) and close(own_dx, dx)
    assert close(own_dw[small:], dw[small:])
    if small:
        assert close(own_dw[:small, :, 1:-1, 1:-1], dw[:small, :, 1:-1, 1:-1])


def test_shared_relu_is_computed_once():
    relu, x = operations.ReLU(), torch.randn(3, requires_grad=True)
    assert relu(x) is not relu(x)
    shared = kernels.share_relu(x * 1)
    assert relu(shared) is relu(shared) is kernels.ReLU()(kernels.share_relu(shared))
    assert torch.equal(relu(shared), x.clamp(min=0))
    (relu(shared).sum() + relu(shared).sum()).backward()
    assert torch.equal(x.grad, 2.0 * (x > 0))
    with kernels.stock():
        assert not hasattr(kernels.share_relu(x * 1), "shared_relu")


def test_absent_choices_count_nowhere():
    network = model_search.NetworkS2(10, 1, width=0.1, image_size=8)
    assert (~network.present).sum() == 6 and (network.present[:, :6]).all()
    assert network.all_gates().shape == (127,) and (network.all_gates() == 0.5).all()
    assert (network.compute_gates()[0][~network.present] == 0).all()
    architect = fair_darts.Architect(network, 0.1, w01=10.0)
    with torch.no_grad():
        network.alphas[0][network.present] = torch.linspace(-3, 3, 127)
    images, labels = batch(8, 6, 1)
    gates = network.all_gates().detach()
    _, penalty = architect.step(images.float(), labels)
    assert penalty.item() == pytest.approx(-((gates - 0.5) ** 2).sum().item() / 127,
                                           abs=1e-6)
    assert ((network.alphas[0][~network.present] == 0).all()
            and network.alphas[0][network.present].abs().min() > 0)
    softmax = model_search.NetworkS2(10, 1, "softmax", 0.1, 8)
    [gates] = softmax.compute_gates()
    assert gates.sum(1).allclose(torch.ones(19)) and (gates[~softmax.present] == 0).all()


def test_strides_of_chains_for_small_pictures():
    for size, halvings in ((224, 5), (65, 5), (64, 3), (32, 2), (28, 1), (16, 1), (15, 0), (8, 0)):
        strides = operations.chain_strides(size)
        assert strides.count(2) == halvings
        side = size
        for stride in strides:
            side = -(-side // stride)
        assert side >= 8 or size > 64
    assert operations.chain_strides(224)[1:] == [stride for _, stride in genotypes.CHAIN]
    assert [i for i, stride in enumerate(operations.chain_strides(32))
            if stride == 2] == [7, 15]  # the last two of five


def test_phases_and_their_inverse():
    x = torch.randn(2, 3, 6, 8)
    phases = kernels.to_phases(x)
    assert torch.equal(phases[2 * 2:2 * 3], x[:, :, 1::2, ::2])  # phase (1, 0) of both pictures
    assert torch.equal(kernels.from_phases(phases), x)


@pytest.mark.parametrize("unrolled", [False, True])
def test_recompute_changes_nothing(unrolled):
    """Losses, alphas, weights and batch-norm statistics, bit for bit, over several
    two-level steps.
    """
    results = []
    for recompute in (False, True):
        network = small_network()
        network.recompute = recompute
        sgd = torch.optim.SGD(network.weights(), 0.1, momentum=0.9)
        architect = fair_darts.Architect(network, 0.1)
        losses = []
        for step in range(3):
            (images, labels), (train_images, train_labels) = (
                batch(8, 6, 1, 3, step), batch(8, 6, 1, 3, 10 + step))
            if unrolled:
                losses += architect.step_unrolled(images, labels, train_images, train_labels, sgd)
            else:
                losses += architect.step(images, labels)
            sgd.zero_grad()
            with fair_darts.frozen(network.alphas):
                loss = F.cross_entropy(network(train_images), train_labels)
                loss.backward()
            sgd.step()
            losses.append(loss.detach())
        results.append((torch.stack(losses), network.state_dict()))
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(value, results[1][1][name]) for name, value in results[0][1].items())
    assert any("running_var" in name and not torch.equal(value, small_network().state_dict()[name])
               for name, value in results[0][1].items())


def test_recompute_repeats_drop_path():
    results = []
    for recompute in (False, True):
        torch.manual_seed(0)
        network = model_eval.NetworkCIFAR(genotypes.FairDARTS_a, 4, 10, 3)
        network.recompute, network.drop_path_prob = recompute, 0.5
        images, labels = batch(32)
        logits, auxiliary = network(images.float())
        (F.cross_entropy(logits, labels) + F.cross_entropy(auxiliary, labels)).backward()
        results.append([logits, *(w.grad for w in network.parameters()), *network.buffers()])
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_recompute_keeps_less():
    torch.manual_seed(0)
    network, (images, labels) = model_search.Network(4, layers=3), batch(16)
    literal, kept = benchmark.plain(network), {}
    for name, net in (("plain", literal), ("ours", network), ("recompute", network)):
        network.recompute = name == "recompute"
        with kernels.stock(name == "plain"):
            kept[name] = benchmark.saved_bytes(lambda: F.cross_entropy(net(images.float()), labels))
    assert kept["ours"] < 0.7 * kept["plain"] and kept["recompute"] < 0.25 * kept["plain"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_steps_stay_near_float32(dtype):
    results = []
    for amp in (False, True):
        network = small_network().float()
        precision = devices.Precision(torch.device("cpu"), amp)
        if amp and dtype == torch.float16:  # what a GPU without bfloat16 gets
            precision.dtype, precision.scaler = dtype, torch.amp.GradScaler("cpu", init_scale=128.0)
            precision.loss_scale = precision.scaler.get_scale
        sgd = torch.optim.SGD(network.weights(), 0.01, momentum=0.9)
        architect = fair_darts.Architect(network, 0.02, autocast=precision.autocast,
                                         loss_scale=precision.loss_scale)
        losses = []
        for step in range(5):
            images, labels = batch(8, 32, 1, 3, step)
            loss, penalty = architect.step(images.float(), labels)
            with fair_darts.frozen(network.alphas):
                sgd.zero_grad()
                with precision.autocast():
                    logits, gates = network(images.float()), network.all_gates()
                train_loss = F.cross_entropy(logits, labels)
                precision.scaler.scale(train_loss).backward()
            precision.scaler.unscale_(sgd)
            nn.utils.clip_grad_norm_(network.weights(), 5.0)
            precision.scaler.step(sgd)
            precision.scaler.update()
            assert {t.dtype for t in (loss, penalty, logits, gates, train_loss,
                                      *network.parameters())} == {torch.float32}
            losses += [loss, train_loss.detach()]
        results.append((torch.stack(losses), network.all_gates().detach()))
    assert results[1][0].isfinite().all() and not torch.equal(results[0][0], results[1][0])
    assert (results[0][0] - results[1][0]).abs().max() < 0.1
    assert (results[0][1] - results[1][1]).abs().mean() < 0.01


def test_gate_gradient_with_channels_last_input():
    """A strided scale makes batch norm's channels_last gradient wrong on the CPU; the
    gates come from a column.
    """
    torch.manual_seed(0)
    gates = torch.rand(3, 7, dtype=torch.float64, requires_grad=True)
    x = torch.randn(4, 6, 5, 5, dtype=torch.float64).contiguous(
        memory_format=torch.channels_last).requires_grad_()
    norms = [nn.BatchNorm2d(2, affine=False).double() for _ in range(3)]
    target = torch.randn(4, 6, 5, 5, dtype=torch.float64)
    y = fast.BatchNorms(norms)(x, gates[:, 2])
    got = torch.autograd.grad((y * target).sum(), (x, gates))
    y = (x - x.mean((0, 2, 3), keepdim=True)) / (
        x.var((0, 2, 3), unbiased=False, keepdim=True) + norms[0].eps).sqrt()
    scale = gates[:, 2].repeat_interleave(2)[:, None, None]
    for a, b in zip(got, torch.autograd.grad((y * scale * target).sum(), (x, gates))):
        assert close(a, b)


def test_alphas_and_weights_of_the_supernet():
    network = model_search.Network(init_channels=4, layers=3)
    assert [tuple(a.shape) for a in network.alphas] == [(14, 7), (14, 7)]
    assert (network.all_gates() == 0.5).all()  # sigmoid(0): no operation starts ahead
    names = {id(a) for a in network.alphas} | {id(w) for w in network.weights()}
    assert len(names) == len(list(network.parameters())) == len(network.weights()) + 2
    softmax = model_search.Network(init_channels=4, layers=3, gate="softmax")
    assert all(0 < a.abs().max() < 0.01 for a in softmax.alphas)
    assert torch.cat(softmax.compute_gates()).sum(1).allclose(torch.ones(28))


def test_published_size_of_the_supernet():
    """DARTS prints 1.93 M parameters for its search network
    of 16 channels and 8 cells.
    """
    assert sum(w.numel() for w in model_search.Network().weights()) == 1_930_618


# ---------------------------------------------------------------- losses: Eq. 7, 9

@pytest.mark.parametrize("penalty, formula, slope", [
    (fair_darts.zero_one_loss, lambda z: -(z - 0.5) ** 2, lambda z: -2 * (z - 0.5)),
    (fair_darts.zero_one_loss_l1, lambda z: -abs(z - 0.5), lambda z: -math.copysign(1, z - 0.5))])
def test_zero_one_losses(penalty, formula, slope):
    gates = torch.rand(28, 7, dtype=torch.float64,
                       generator=torch.Generator().manual_seed(0)).requires_grad_()
    value = penalty(gates)
    values = gates.detach().flatten().tolist()
    assert value.item() == pytest.approx(sum(map(formula, values)) / len(values), abs=1e-12)
    expected = torch.tensor([slope(z) / len(values) for z in values],
                            dtype=torch.float64).view(28, 7)
    assert close(torch.autograd.grad(value, gates)[0], expected, 1e-12)
    assert penalty(torch.full((3, 7), 0.5)) == 0  # the maximum
    assert penalty(torch.tensor([0.49, 0.51])) < 0
    assert penalty(torch.tensor([0.0, 1.0])) == formula(1.0)


def test_gates():
    alphas = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for a, s, m in zip(alphas, fair_darts.gates(alphas), fair_darts.gates(alphas, "softmax")):
        for i in range(7):
            assert s[i].item() == pytest.approx(1 / (1 + math.exp(-a[i])), abs=1e-12)
            assert m[i].item() == pytest.approx(
                math.exp(a[i]) / sum(math.exp(v) for v in a), abs=1e-12)


# ---------------------------------------------------------------- two-level optimisation: Eq. 4, 8

def small_network(seed=0):
    torch.manual_seed(seed)
    network = model_search.Network(init_channels=2, num_classes=3, layers=3, nodes=2,
                                   in_channels=1).double()
    with torch.no_grad():
        for alpha in network.alphas:
            alpha.normal_()
    return network


def test_first_order_step_is_adam_on_equation_8():
    network = small_network()
    images, labels = batch(8, channels=1, classes=3)
    before = [w.detach().clone() for w in network.weights()]
    alphas = [a.detach().clone().requires_grad_() for a in network.alphas]
    twin = small_network()
    logits = functional_call(twin, {f"alphas.{i}": a for i, a in enumerate(alphas)}, images)
    gates = torch.sigmoid(torch.cat(alphas))
    loss, penalty = F.cross_entropy(logits, labels), -((gates - 0.5) ** 2).sum() / gates.numel()
    for alpha, g in zip(alphas, torch.autograd.grad(loss + 7.0 * penalty, alphas)):
        alpha.grad = g
    torch.optim.Adam(alphas, 0.01, (0.8, 0.99), weight_decay=0.1).step()
    architect = fair_darts.Architect(network, 0.01, (0.8, 0.99), weight_decay=0.1, w01=7.0)
    got = architect.step(images, labels)
    assert close(torch.stack(got), torch.stack([loss, penalty]))
    assert all(close(a, b) for a, b in zip(network.alphas, alphas))
    assert all(torch.equal(a, b) and a.grad is None for a, b in zip(network.weights(), before))


@pytest.mark.parametrize("steps", [0, 2])  # before and after there is a momentum
def test_unrolled_gradient_is_the_exact_one(steps):
    network = small_network()
    optimizer = torch.optim.SGD(network.weights(), 0.1, momentum=0.9, weight_decay=0.05)
    (images, labels), (train_images, train_labels) = batch(8, 6, 1, 3, 1), batch(8, 6, 1, 3, 2)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(network(train_images), train_labels).backward(inputs=network.weights())
        optimizer.step()
    # exact: double backward through the update that torch.optim.SGD documents
    state = {name: value.detach().clone() for name, value in network.state_dict().items()}
    weights = {n: w.detach().clone().requires_grad_()
               for n, w in network.named_parameters() if "alphas" not in n}
    alphas = {n: a.detach().clone().requires_grad_()
              for n, a in network.named_parameters() if "alphas" in n}
    twin = small_network()
    loss = F.cross_entropy(functional_call(twin, {**weights, **alphas}, train_images), train_labels)
    moved = {}
    for (name, w), g in zip(
            weights.items(),
            torch.autograd.grad(loss, list(weights.values()), create_graph=True)):
        velocity = (optimizer.state[network.get_parameter(name)]["momentum_buffer"]
                    if steps else 0)
        moved[name] = w - 0.1 * (0.9 * velocity + g + 0.05 * w)
    val_loss = F.cross_entropy(functional_call(twin, {**moved, **alphas}, images), labels)
    penalty = fair_darts.zero_one_loss(torch.sigmoid(torch.cat(list(alphas.values()))))
    exact = torch.autograd.grad(val_loss + 10 * penalty, list(alphas.values()))
    first_order = torch.autograd.grad(
        F.cross_entropy(functional_call(twin, {**weights, **alphas}, images), labels)
        + 10 * penalty.detach(),
        list(alphas.values()))

    architect = fair_darts.Architect(network, w01=10.0)
    random = torch.get_rng_state()
    got, loss, _ = architect.unrolled_gradient(images, labels, train_images, train_labels,
                                               optimizer, radius=1e-6)
    assert loss.item() == pytest.approx(val_loss.item(), rel=1e-12)
    for g, e, f in zip(got, exact, first_order):
        assert close(g / e.abs().max(), e / e.abs().max(), 1e-6)
        # the test can tell the orders apart
        assert not close(f / e.abs().max(), e / e.abs().max(), 1e-2)
    assert all(torch.equal(state[name], value) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    architect.step_unrolled(images, labels, train_images, train_labels, optimizer)
    assert all(torch.equal(state[n], v) == ("alphas" not in n)
               for n, v in network.state_dict().items())


# ---------------------------------------------------------------- discretisation: Eq. 3, threshold

# sigmoid(alpha) at the end of the search that gave FairDARTS_a, columns in the order of PRIMITIVES
GATES_A_NORMAL = [
    [0.927, 0.0547, 0.0669, 0.9432, 0.0739, 0.0773, 0.9268],
    [0.8769, 0.0486, 0.0597, 0.8739, 0.901, 0.0692, 0.0769],
    [0.1161, 0.0648, 0.1094, 0.0659, 0.057, 0.0596, 0.059],
    [0.0443, 0.0437, 0.064, 0.0805, 0.063, 0.065, 0.0667],
    [0.0321, 0.0345, 0.0369, 0.0588, 0.0803, 0.0853, 0.0661],
    [0.9402, 0.0585, 0.0691, 0.9353, 0.0621, 0.9368, 0.0674],
    [0.0634, 0.063, 0.0718, 0.06, 0.0722, 0.0642, 0.0577],
    [0.0482, 0.0533, 0.0601, 0.0672, 0.8269, 0.0708, 0.0655],
    [0.0525, 0.054, 0.0657, 0.0602, 0.0672, 0.0654, 0.0801],
    [0.0653, 0.0593, 0.0667, 0.9255, 0.0679, 0.0693, 0.068],
    [0.0475, 0.048, 0.0563, 0.0668, 0.9011, 0.0633, 0.0692],
    [0.0409, 0.0434, 0.0409, 0.696, 0.8011, 0.0637, 0.844],
    [0.0443, 0.0469, 0.9284, 0.0615, 0.0625, 0.8495, 0.0631],
    [0.0465, 0.0471, 0.0472, 0.0596, 0.0666, 0.8923, 0.0715]]
GATES_A_REDUCE = [
    [0.9408, 0.0725, 0.9339, 0.9339, 0.0632, 0.934, 0.9296],
    [0.9357, 0.9363, 0.0676, 0.9341, 0.068, 0.0659, 0.0707],
    [0.9395, 0.9411, 0.9351, 0.9329, 0.0614, 0.935, 0.9338],
    [0.0639, 0.0641, 0.0657, 0.935, 0.9366, 0.936, 0.938],
    [0.0584, 0.0604, 0.9332, 0.9356, 0.0625, 0.0618, 0.0623],
    [0.9379, 0.9391, 0.9367, 0.0625, 0.9365, 0.9354, 0.935],
    [0.0638, 0.0636, 0.9324, 0.9356, 0.9376, 0.0639, 0.934],
    [0.0629, 0.0632, 0.935, 0.9352, 0.9353, 0.935, 0.0648],
    [0.0621, 0.0633, 0.9356, 0.0651, 0.9366, 0.0634, 0.9368],
    [0.0673, 0.0684, 0.9379, 0.0635, 0.9366, 0.0657, 0.9362],
    [0.0629, 0.0635, 0.9372, 0.0629, 0.0625, 0.9338, 0.9361],
    [0.061, 0.0627, 0.9322, 0.0624, 0.0629, 0.9349, 0.0649],
    [0.0611, 0.0633, 0.9343, 0.0638, 0.9355, 0.0645, 0.9332],
    [0.0614, 0.0635, 0.0581, 0.0638, 0.0668, 0.9354, 0.9331]]


def gates_with(*entries, nodes=4):
    """All gates 0.1, but for the entries (op, node, source, gate)."""
    gates = torch.full((nodes * (nodes + 3) // 2, 7), 0.1)
    for op, node, source, gate in entries:
        gates[sum(range(2, node)) + source, PRIMITIVES.index(op)] = gate
    return gates


def test_published_gates_give_the_published_genotype():
    assert fair_darts.discretize(GATES_A_NORMAL, GATES_A_REDUCE) == genotypes.FairDARTS_a
    dominant = fair_darts.dominant_operations(GATES_A_NORMAL)
    assert len(dominant) == 8 and [e.node for e in dominant] == [2, 2, 3, 3, 4, 4, 5, 5]
    assert dominant[2:4] == [Edge("max_pool_3x3", 3, 0),
                             Edge("dil_conv_3x3", 3, 2)]  # below any threshold


def test_discretize_cases():
    def normal(*entries, **options):
        return fair_darts.discretize(gates_with(*entries), gates_with(), **options).normal

    assert normal() == []  # nothing above the threshold
    assert normal(("sep_conv_3x3", 3, 0, 0.85)) == [Edge("sep_conv_3x3", 3, 0)]
    assert normal(("sep_conv_3x3", 3, 0, 0.5), threshold=0.5) == [
        Edge("sep_conv_3x3", 3, 0)]  # at the threshold
    isolated = (("sep_conv_3x3", 2, 0, 0.9), ("skip_connect", 4, 3, 0.99),
                ("max_pool_3x3", 5, 1, 0.9))
    assert normal(*isolated) == [Edge("sep_conv_3x3", 2, 0), Edge("max_pool_3x3", 5, 1)]
    chain = ("skip_connect", 4, 3, 0.9), ("skip_connect", 5, 4, 0.9), ("dil_conv_5x5", 2, 1, 0.9)
    assert normal(*chain) == [Edge("dil_conv_5x5", 2, 1)]
    ties = [("sep_conv_3x3", 4, source, 0.9) for source in range(4)] + [("skip_connect", 4, 1, 0.9)]
    # the lower index first
    assert normal(*ties) == [Edge("sep_conv_3x3", 4, 0), Edge("skip_connect", 4, 1)]
    # the best two edges are chosen before the threshold:
    # a third edge never replaces one that falls short
    third = [("sep_conv_3x3", 4, 0, 0.9), ("sep_conv_3x3", 4, 1, 0.89),
             ("skip_connect", 4, 2, 0.88)]
    assert normal(*third) == [Edge("sep_conv_3x3", 4, 0), Edge("sep_conv_3x3", 4, 1)]
    two = ("sep_conv_3x3", 2, 0, 0.9), ("max_pool_3x3", 2, 0, 0.95), ("dil_conv_3x3", 2, 1, 0.9)
    assert normal(*two, ops_per_edge=2) == [Edge("max_pool_3x3", 2, 0), Edge("sep_conv_3x3", 2, 0),
                                            Edge("dil_conv_3x3", 2, 1)]
    assert normal(*two, edges_per_node=1) == [Edge("max_pool_3x3", 2, 0)]


def test_softmax_rule_is_darts_parse():
    """Eq. 3: two edges a node by their largest weight, argmax on each, no threshold;
    written as DARTS has it.
    """
    alphas = torch.randn(2, 14, 7, generator=torch.Generator().manual_seed(3))
    weights = torch.softmax(alphas, 2).numpy()
    cells = []
    for cell in weights:
        edges, start = [], 0
        for node in range(2, 6):
            rows = cell[start:start + node]
            best = sorted(range(node), key=lambda source: -max(rows[source]))[:2]
            edges += [Edge(PRIMITIVES[rows[source].argmax()], node, source)
                      for source in sorted(best)]
            start += node
        cells.append(edges)
    assert fair_darts.discretize(*torch.from_numpy(weights), threshold=0) == Genotype(*cells)
    assert all(len(cell) == 8 for cell in cells)


def test_discretize_chain():
    gates = torch.full((19, 7), 0.1)
    chain = fair_darts.discretize_chain(gates)
    assert (chain.layers[0] == ("mb3_k3",)
            and chain.layers[1] == ("skip_connect",))  # no gate at the threshold
    gates[0, 4], gates[1, 2], gates[3, [0, 5, 6]] = 0.7, 0.84, torch.tensor([0.85, 0.95, 0.9])
    chain = fair_darts.discretize_chain(gates)
    assert chain.layers[:4] == [("mb6_k5",), ("skip_connect",), ("mb3_k3",), ("mb6_k7",)]
    assert fair_darts.discretize_chain(gates, ops_per_layer=2).layers[3] == (
        "mb6_k7", "skip_connect")
    assert fair_darts.discretize_chain(gates, ops_per_layer=9).layers[3] == (
        "mb3_k3", "mb6_k7", "skip_connect")
    gates[2, 6] = 0.99  # no choice there
    assert fair_darts.discretize_chain(gates, ops_per_layer=9).layers[2] == ("mb3_k3",)
    weights = torch.softmax(torch.randn(19, 7, generator=torch.Generator().manual_seed(0)), 1)
    expected = [(genotypes.CHOICES[int(row[:7 if same else 6].argmax())],)
                for row, same in zip(weights, genotypes.SAME_SHAPE)]
    assert fair_darts.discretize_chain(weights, threshold=0).layers == expected
    assert fair_darts.dominant_choices(weights) == [names[0] for names in expected]
    assert fair_darts.discrete_chain_gates(chain)[3].tolist() == [0, 0, 0, 0, 0, 1, 0]


# ---------------------------------------------------------------- genotypes

LOG_OF_DARTS = (
    "2018-06-01 genotype = Genotype(normal=[('sep_conv_3x3', 1), ('sep_conv_3x3', 0), "
    "('skip_connect', 0), ('sep_conv_3x3', 1), ('skip_connect', 0), ('sep_conv_3x3', 1), "
    "('sep_conv_3x3', 0), ('skip_connect', 2)], normal_concat=range(2, 6), "
    "reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 0), "
    "('max_pool_3x3', 0), ('skip_connect', 2), ('skip_connect', 2), ('avg_pool_3x3', 0)], "
    "reduce_concat=[2, 3, 4, 5])")


def test_genotypes_are_read_and_written(tmp_path):
    path = str(tmp_path / "genotype.json")
    for name, genotype in genotypes.PUBLISHED.items():
        assert genotypes.get(name) is genotype
        assert genotypes.get(str(genotype)) == genotype
        genotypes.save(genotype, path)
        assert genotypes.get(path) == genotypes.load(path) == genotype
        assert (isinstance(genotype, ChainGenotype)
                or all(genotypes.prune(cell) == cell for cell in genotype))
    assert list(tmp_path.iterdir()) == [tmp_path / "genotype.json"]
    assert genotypes.get(LOG_OF_DARTS) == genotypes.DARTS_V1
    assert len(genotypes.PUBLISHED) == 14


def test_idle_edges_are_dropped_and_named():
    g = genotypes.FairDARTS_g
    text = str(Genotype([*g.normal, Edge("skip_connect", 4, 3)], g.reduce))  # as it was published
    with pytest.warns(UserWarning,
                      match=r"normal cell: edge \('skip_connect', 4, 3\) dropped.*node 3"):
        assert genotypes.get(text) == g


@pytest.mark.parametrize("text, message", [
    ("FairDARTS_A", "did you mean 'FairDARTS_a'"), ("PDARTS", "did you mean 'P_DARTS'"),
    ("zzz", "choose from"),
    ("Genotype(normal=[('sep_conv_3x4', 2, 0)], reduce=[('skip_connect', 2, 0)])",
     r"normal cell, edge \('sep_conv_3x4', 2, 0\): unknown operation; did you mean 'sep_conv_3x3'"),
    ("Genotype(normal=[('skip_connect', 2, 0)], reduce=[('skip_connect', 2, 2)])",
     r"reduce cell, edge .* from 0 to 1"),
    ("Genotype(normal=[('skip_connect', 6, 0)], reduce=[('skip_connect', 2, 0)])",
     "node from 2 to 5"),
    ("Genotype(normal=[('skip_connect', 2, -1)], reduce=[('skip_connect', 2, 0)])",
     "from 0 to 1"),
    ("Genotype(normal=[('skip_connect', 2, True)], reduce=[('skip_connect', 2, 0)])",
     "from 0 to 1"),
    ("Genotype(normal=[('skip_connect', 0)], reduce=[('skip_connect', 2, 0)])",
     "two for each node"),
    ("Genotype(normal=[('skip_connect', 2, 0), ('skip_connect', 0)], reduce=[])", "expected"),
    ("Genotype(normal=[], reduce=[('skip_connect', 2, 0)])", "normal cell: it has no edge"),
    ("Genotype(normal=[('skip_connect', 4, 3)], reduce=[('skip_connect', 2, 0)])",
     "no edge that comes from an input"),
    ("Genotype(normal=[('skip_connect', 2, 0)], normal_concat=[3], "
     "reduce=[('skip_connect', 2, 0)])", "leaves out"),
    ("Genotype(normal=__import__('os').getcwd(), reduce=[])", "cannot read"),
    ("Genotype(", "cannot read"),
    ("ChainGenotype(layers=[])", "a chain has 19 layers, got 0"),
    ("ChainGenotype(layers=3)", "a chain has 19 layers, got 3"),
    ("ChainGenotype(layers=[()] * 19)", "cannot read"), ("ChainGenotype()", "cannot read"),
    (f"ChainGenotype(layers={[('mb3_k3',)] * 18 + [()]})", "layer 18, .*one or more"),
    (f"ChainGenotype(layers={[('mb3_k3', 'mb3_k3')] * 19})", "named twice"),
    (f"ChainGenotype(layers={[('mb3_k4',)] * 19})", "layer 0, .*did you mean 'mb3_k"),
    (f"ChainGenotype(layers={[('skip_connect',)] * 19})", "layer 0, .*no identity here"),
    ("Genotype(normal=[('skip_connect', 2, 0)])", "cannot read"),
    ("Genotype(" + "(" * 10000, "cannot read")])
def test_bad_genotypes_are_refused_in_one_line(text, message):
    with pytest.raises(genotypes.GenotypeError, match=message) as error:
        genotypes.get(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [
    "", "[]", "{}", "\xff", '{"normal": 3, "reduce": 3}', '{"normal": [[1]]}',
    '{"normal": [["skip_connect", 2.0, 0]], "reduce": []}', '{"normal": [null], "reduce": []}',
    "[" * 100000, '{"layers": 3}', '{"layers": [["mb3_k3"]]}'])
def test_bad_genotype_files_are_refused(content, tmp_path):
    path = tmp_path / "genotype.json"
    path.write_text(content, encoding="latin1")
    with pytest.raises(genotypes.GenotypeError, match="genotype.json"):
        genotypes.get(str(path))


def test_any_text_gives_a_genotype_or_a_genotype_error(tmp_path):
    """2,500 texts and 500 files: published genotypes with pieces replaced, dropped or
    doubled, and noise.
    """
    dice, path = random.Random(0), tmp_path / "genotype.json"
    pieces = ["(", ")", "[", "]", ",", "'", "=", "*", "-", "{}", "None", "0", "9" * 5000, "1e999",
              "Edge", "range(9)", "normal", "reduce_concat=", "node=7", "\0", "\n", "\ud800", "é",
              "lambda: 0", "**{}", "(" * 300, "-1", "skip_connect", "NaN", "Genotype(", '"', ":",
              "true"]
    read = 0
    for trial in range(3000):
        text = str(dice.choice(list(genotypes.PUBLISHED.values())))
        if trial >= 2500:
            text = genotypes.to_json(genotypes.get(text))
        elif trial % 5 == 0:
            text = "".join(dice.choice(pieces) for _ in range(dice.randrange(9)))
        for _ in range(dice.randrange(4)):
            start = dice.randrange(len(text) + 1)
            text = (text[:start] + dice.choice(["", dice.choice(pieces)])
                    + text[start + dice.choice([0, 1, 5, 40]):])
        if trial >= 2500:
            path.write_bytes(text.encode(errors="surrogatepass"))
            text = str(path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                genotype = genotypes.get(text)
            assert (isinstance(genotype, (Genotype, ChainGenotype))
                    and genotypes.get(str(genotype)) == genotype)
            read += 1
        except genotypes.GenotypeError as error:
            assert "\n" not in str(error)
    assert 300 < read < 2000


# ---------------------------------------------------------------- derived networks

# parameters with the auxiliary head at 36 channels, 20 cells, 10 classes;
# MACs of convolutions and linear layers
COUNTED = {"FairDARTS_a": (2_837_208, 371.46), "FairDARTS_b": (3_884_304, 536.49),
           "FairDARTS_c": (3_075_240, 399.99), "FairDARTS_d": (3_841_968, 532.51),
           "FairDARTS_e": (3_120_168, 414.70), "FairDARTS_f": (3_627_480, 497.61),
           "FairDARTS_g": (3_375_480, 453.38)}
PUBLISHED_PARAMETERS = {  # millions; printed cut off, not rounded
    "FairDARTS_b": 3.88, "FairDARTS_d": 3.84, "FairDARTS_e": 3.12, "FairDARTS_f": 3.62,
    "FairDARTS_g": 3.375}


@pytest.mark.parametrize("name", COUNTED)
def test_published_sizes(name):
    network = model_eval.NetworkCIFAR(genotypes.get(name))
    parameters, head, macs = train_eval.count(network, (3, 32, 32))
    assert (parameters, round(macs / 1e6, 2), head) == (*COUNTED[name], 476_426)
    if name in PUBLISHED_PARAMETERS:
        digits = len(str(PUBLISHED_PARAMETERS[name]).split(".")[1])
        assert (math.floor(parameters / 1e6 * 10 ** digits) / 10 ** digits
                == PUBLISHED_PARAMETERS[name])
    if name == "FairDARTS_c":  # published as 2.59: without the head
        assert math.floor((parameters - head) / 1e4) == 259


def test_imagenet_network():
    network = model_eval.NetworkImageNet(genotypes.FairDARTS_b)
    parameters, head, macs = train_eval.count(network, (3, 224, 224))
    assert parameters - head == 4_865_248 and round(macs / 1e6, 1) == 541.2
    small = model_eval.NetworkImageNet(genotypes.FairDARTS_c, init_channels=8, num_classes=5,
                                       layers=3)
    logits, auxiliary = small(torch.randn(2, 3, 224, 224))
    assert logits.shape == auxiliary.shape == (2, 5)
    (logits.sum() + auxiliary.sum()).backward()
    assert small.eval()(torch.randn(1, 3, 224, 224))[1] is None


def test_published_chain():
    """FairNAS-A, counted with 1,000 classes at 224x224."""
    network = model_eval.NetworkS2(genotypes.FairNAS_A)
    assert train_eval.count(network, (3, 224, 224)) == (4_651_352, 0, 388_122_848)


def test_derived_chain_equals_the_supernet_with_its_gates():
    torch.manual_seed(0)
    supernet = model_search.NetworkS2(10, 3, width=0.1, image_size=16).double()
    layers = [(("mb3_k3", "mb6_k7", "skip_connect") if same else ("mb6_k3", "mb3_k5"))
              if index % 3 else ("mb6_k5",)
              for index, same in enumerate(genotypes.SAME_SHAPE)]
    layers[1] = ("skip_connect",)
    genotype = ChainGenotype(layers)
    network = model_eval.NetworkS2(genotype, 10, 0, 0.1, image_size=16).double()
    network.stem.load_state_dict(supernet.stem.state_dict())
    network.head.load_state_dict(supernet.head.state_dict())
    for layer, names, searched in zip(network.layers, genotype.layers, supernet.layers):
        for op, name in zip(layer.operations, names):
            other = searched.operations[genotypes.CHOICES.index(name)]
            op.load_state_dict(other.state_dict(), strict=False)  # without affine batch norm
    images, labels = batch(16, 3)
    gates = [fair_darts.discrete_chain_gates(genotype).double()]
    assert close(network(images)[0], supernet(images, gates))
    network.recompute = True
    F.cross_entropy(network(images)[0], labels).backward()
    assert all(w.grad is not None for w in network.parameters())
    for options in (dict(squeeze=True), dict(h_swish=True),
                    dict(squeeze=True, h_swish=True, dropout=0.5)):
        other = model_eval.NetworkS2(genotype, 7, width=0.1, in_channels=1, image_size=8, **options)
        logits, auxiliary = other(torch.randn(4, 1, 8, 8))
        assert logits.shape == (4, 7) and auxiliary is None
        assert (any("squeeze" in name for name, _ in other.named_parameters())
                == options.get("squeeze", False))
    images = torch.randn(4, 1, 8, 8)
    assert not torch.equal(other(images)[0], other(images)[0])  # dropout
    other.eval()
    assert torch.equal(other(images)[0], other(images)[0])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_derived_network_equals_the_plain_form(name):
    torch.manual_seed(0)
    network = model_eval.NetworkCIFAR(ARCHITECTURES[name], 4, 10, 3).double()
    images, labels = batch(32)
    found = []
    for plain in (False, True):
        other = copy.deepcopy(network)
        with kernels.stock(plain):
            logits, head = other(images)
            (F.cross_entropy(logits, labels) + 0.4 * F.cross_entropy(head, labels)).backward()
        found.append([logits, head, *(w.grad for w in other.parameters()), *other.buffers()])
    assert all_close(*found)


@pytest.mark.parametrize("size", [8, 15, 20, 64])
def test_derived_network_on_other_sizes(size):
    network = model_eval.NetworkCIFAR(genotypes.FairDARTS_b, 4, 7, 3, in_channels=1)
    logits, auxiliary = network(torch.randn(3, 1, size, size))
    assert logits.shape == auxiliary.shape == (3, 7)
    assert model_eval.NetworkCIFAR(genotypes.FairDARTS_b, 4, 7, 3, auxiliary=False)(
        torch.randn(3, 3, 8, 8))[1] is None


def test_drop_path():
    torch.manual_seed(0)
    x = operations.drop_path(torch.ones(20000, 1, 2, 2), 0.2)
    assert set(x.unique().tolist()) == {0.0, 1.25}
    assert (x == x[:, :, :1, :1]).all()  # whole samples
    assert x.mean().item() == pytest.approx(1, abs=0.02)
    network = model_eval.NetworkCIFAR(
        Genotype([Edge("skip_connect", 2, 0)], [Edge("skip_connect", 2, 0)]), 4, 5, 4)
    images = torch.randn(4, 3, 16, 16)
    plain = network(images)[0]
    network.drop_path_prob, network.drop_path_on = 0.9, "edge"
    changed = network(images)[0]
    assert not torch.equal(plain, changed)  # reductions are dropped
    network.cells = network.cells[:1]  # one normal cell: DARTS never drops the identity
    network.classifier = nn.Linear(4, 5)
    assert torch.equal(network(images)[0], network(images)[0])
    network.drop_path_on = "node"  # the published evaluation does
    assert not torch.equal(network(images)[0], network(images)[0])


@pytest.mark.parametrize("on", ["node", "edge"])
def test_paths_that_are_dropped(on, monkeypatch):
    """A node's sum as published, or an edge as in DARTS, against the cell by hand."""
    calls = []
    monkeypatch.setattr(model_eval, "drop_path", lambda x, p: calls.append(x) or x * len(calls))
    edges = [Edge("sep_conv_3x3", 2, 0), Edge("skip_connect", 2, 1), Edge("skip_connect", 3, 0),
             Edge("dil_conv_5x5", 3, 2)]
    cell = model_eval.Cell(edges, 4, 4, 4, False, False)
    a, b = torch.randn(2, 3, 4, 8, 8)
    found = cell(a, b, 0.3, on)
    s0, s1 = cell.preprocess_0(a), cell.preprocess_1(b)
    ops = cell.operations
    if on == "node":
        s2 = 1 * (ops[0](s0) + s1)
        s3 = 2 * (s0 + ops[3](s2))
    else:
        s2 = 1 * ops[0](s0) + s1
        s3 = s0 + 2 * ops[3](s2)
    assert len(calls) == 2 and close(found, torch.cat([s2, s3], 1), 1e-5)
    calls.clear()
    cell.eval()(a, b, 0.3, on)
    assert not calls


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("op", PRIMITIVES)
def test_operations_halve_any_size_alike(op, size):
    for stride in (1, 2):
        out = operations.OPS[op](4, stride, True)(torch.randn(2, 4, size, size))
        assert out.shape == (2, 4, -(-size // stride), -(-size // stride))


def test_average_pooling_does_not_count_padding():
    assert torch.equal(operations.OPS["avg_pool_3x3"](1, 1, True)(torch.ones(1, 1, 4, 4)),
                       torch.ones(1, 1, 4, 4))


# ---------------------------------------------------------------- data

def test_split_is_disjoint_and_seeded():
    first, second = data.split(101, 0.5, seed=3)
    assert len(first) == 50 and sorted(torch.cat([first, second]).tolist()) == list(range(101))
    assert torch.equal(first, data.split(101, 0.5, seed=3)[0])
    assert not torch.equal(first, data.split(101, 0.5, seed=4)[0])


def test_digits():
    d = data.load("digits")
    assert (d.images.shape == (1437, 1, 8, 8) and d.test_images.shape == (360, 1, 8, 8)
            and d.images.dtype == torch.uint8)
    assert (len(d.classes) == 10
            and set(d.labels.tolist()) == set(d.test_labels.tolist()) == set(range(10)))
    x = torch.cat([images for images, _ in data.in_order(d.images, d.labels, d.mean, d.std)])
    assert x.mean().abs() < 1e-5 and abs(x.std(unbiased=False) - 1) < 1e-5
    from sklearn.datasets import load_digits
    original = {bytes(np.round(i * 255 / 16).astype("uint8")) for i in load_digits().images}
    assert {bytes(i.numpy()) for i in torch.cat([d.images, d.test_images])} == original


def test_random_crop_flip():
    images = torch.arange(1, 65, dtype=torch.uint8).view(1, 1, 8, 8).repeat(500, 1, 1, 1)
    images = torch.cat([images, images + 64], 1)
    chosen = torch.randint(50, (500,), generator=data.generator(0))
    out = data.random_crop_flip(images, chosen, 2, True)
    padded = F.pad(images[0], [2] * 4)
    wanted = {}  # every crop that may be drawn
    for top in range(5):
        for left in range(5):
            crop = padded[:, top:top + 8, left:left + 8]
            wanted[bytes(crop.numpy())] = (top, left, False)
            wanted[bytes(crop.flip(2).numpy())] = (top, left, True)
    drawn = [wanted[bytes(i.contiguous().numpy())] for i in out]
    assert set(drawn) == set(wanted.values()) and len(wanted) == 50  # all of them, and nothing else
    assert 200 < sum(flip for _, _, flip in drawn) < 300
    still = data.random_crop_flip(images, chosen * 0, 0, False)
    assert torch.equal(still, images)


def test_cutout():
    y, x = torch.randint(12, (2, 400), generator=data.generator(0))
    out = data.cutout(torch.ones(400, 2, 12, 12), y, x, 4)
    assert torch.equal(out[:, 0], out[:, 1])
    holes = (out[:, 0] == 0)
    sizes = holes.sum((1, 2))
    assert sizes.max() == 16 and sizes.min() >= 4  # cut at the border, down to a quarter
    for hole in holes[:50]:
        rows, columns = hole.any(1).nonzero(), hole.any(0).nonzero()
        assert hole.sum() == len(rows) * len(columns)  # a rectangle
        assert rows[-1] - rows[0] < 4 and columns[-1] - columns[0] < 4
    assert holes.float().mean(0).min() > 0  # every pixel is reached


def test_batches_go_through_all_pictures_and_resume():
    images = torch.arange(20, dtype=torch.uint8).view(20, 1, 1, 1).repeat(1, 1, 4, 4)

    def stream(seed):
        return data.Batches(images, torch.arange(20), torch.zeros(1), torch.ones(1), 5, 0, True, 0,
                            data.generator(seed))

    one, other = stream(1), stream(1)
    passes = [torch.cat([one.next()[1] for _ in range(len(one))]).tolist() for _ in range(2)]
    assert sorted(passes[0]) == sorted(passes[1]) == list(range(20)) and passes[0] != passes[1]
    x, y = other.next()
    assert (torch.equal(x, y.view(5, 1, 1, 1).expand(5, 1, 4, 4).float())
            and y.tolist() == passes[0][:5])
    assert stream(2).next()[1].tolist() != passes[0][:5]
    state = {key: value.clone() if torch.is_tensor(value) else value
             for key, value in one.state_dict().items()}
    expected = [one.next() for _ in range(6)]
    resumed = stream(7)
    resumed.load_state_dict(state)
    for x, y in expected:
        a, b = resumed.next()
        assert torch.equal(a, x) and torch.equal(b, y)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A small picture folder: two classes, red and blue, of several sizes."""
    root = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for part, count in (("train", 16), ("test", 6)):
        for label, name in enumerate(("blue", "red")):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 80, (16 + i % 3, 20, 3), dtype=np.uint8)
                pixels[..., 2 - 2 * label] += 150
                Image.fromarray(pixels).save(root / part / name / f"{i}.png")
    return root


def test_folder(pictures, tmp_path):
    d = data.load("folder", str(pictures), 16)
    assert d.images.shape == (32, 3, 16, 16) and d.test_images.shape == (12, 3, 16, 16)
    assert d.classes == ["blue", "red"]
    assert ((d.images[d.labels == 1, 0].float().mean() > 140)
            and (d.images[d.labels == 0, 2].float().mean() > 140))
    for part in ("train", "test"):
        for name in "ab":
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("L", (9, 9), 77).save(tmp_path / part / name / "grey.png")
    grey = data.load("folder", str(tmp_path), 8)
    assert grey.images.shape == (2, 1, 8, 8) and (grey.images == 77).all()


# ---------------------------------------------------------------- the scripts

SMALL_SEARCH = ["--dataset", "digits", "--init_channels", "2", "--layers", "3", "--nodes", "2",
                "--batch_size", "100", "--epochs", "2", "--figures_every", "0"]
SMALL_EVAL = ["--dataset", "digits", "--init_channels", "4", "--layers", "3",
              "--batch_size", "200", "--epochs", "2"]


def call(script, monkeypatch, *arguments):
    """Run a script in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", [script.__name__ + ".py", *map(str, arguments)])
    monkeypatch.setattr("warnings.showwarning", None)  # put back afterwards
    entry = {train_search: "search_or_resume", train_eval: "train_or_test", visualize: "visualize",
             reproduce: "reproduce", predict: "predict_pictures"}[script]
    with pytest.raises(SystemExit) as stop:
        flags.main(getattr(script, entry))
    return stop.value.code or 0


def table(folder):
    with open(folder / "metrics.csv") as file:
        return [{key: value for key, value in row.items() if key != "seconds"}
                for row in csv.DictReader(file)]


def test_search_runs_repeats_and_resumes(tmp_path, monkeypatch, capsys):
    search = [*SMALL_SEARCH, "--runs", tmp_path, "--arch_learning_rate", "0.2", "--w01", "10",
              "--gap_every", "2"]
    constant = ["--learning_rate_min", "0.005", "--gap_every", "0"]
    assert call(train_search, monkeypatch, *search, "--name", "a") == 0
    out = capsys.readouterr().out
    assert out.count("epoch 1/2  train loss") == out.count("epoch 2/2  train loss") == 1
    genotype = genotypes.load(str(tmp_path / "a" / "genotype.json"))
    assert (str(genotype) in out
            and f"train_eval.py --arch {tmp_path / 'a' / 'genotype.json'}" in out)
    gates = np.load(tmp_path / "a" / "gates.npz")
    assert gates["normal"].shape == gates["reduce"].shape == (2, 5, 7)
    assert fair_darts.discretize(gates["normal"][-1], gates["reduce"][-1]) == genotype
    assert call(train_search, monkeypatch, *search, "--name", "b") == 0
    assert call(train_search, monkeypatch, *search, "--name", "c", "--seed", "1") == 0
    states = {n: torch.load(tmp_path / n / "checkpoint.pt", weights_only=True)["network"]
              for n in "abc"}
    # the same seed, bit for bit
    assert all(torch.equal(v, states["b"][k]) for k, v in states["a"].items())
    assert not any(torch.equal(v, states["c"][k]) for k, v in states["a"].items()
                   if k.startswith("alphas"))
    assert table(tmp_path / "a") == table(tmp_path / "b") != table(tmp_path / "c")
    # one epoch less, then resumed with --epochs upward
    short = [x if x != "2" or search[i - 1] != "--epochs" else "1" for i, x in enumerate(search)]
    assert call(train_search, monkeypatch, *short, *constant, "--name", "d") == 1  # no genotype
    assert call(train_search, monkeypatch, "--resume", tmp_path / "d", "--epochs", 2) == 0
    assert call(train_search, monkeypatch, *search, *constant, "--name", "e") == 0
    for name in ("network", "sgd", "adam"):  # a constant rate, so that both have the same schedule
        one, other = (torch.load(tmp_path / n / "checkpoint.pt", weights_only=True)[name]
                      for n in "de")
        assert str(one) == str(other)
    assert table(tmp_path / "d") == table(tmp_path / "e")


def test_search_without_a_gate_at_the_threshold(tmp_path, monkeypatch, capsys):
    assert call(train_search, monkeypatch, *SMALL_SEARCH, "--runs", tmp_path, "--name", "a",
                "--epochs", 1) == 1
    out = capsys.readouterr().out
    assert "no gate of a cell reaches --threshold 0.85; the nearest is, normal cell: 0.5" in out
    assert not (tmp_path / "a" / "genotype.json").exists()
    again = out.strip().split("\n")[-1].split()  # the command that it proposes
    assert again[:2] == ["python", "train_search.py"]
    monkeypatch.setattr(data, "load", None)  # derives without the pictures
    call(train_search, monkeypatch, *again[2:])
    assert call(train_search, monkeypatch, "--resume", tmp_path / "a", "--threshold", 0.4) == 0
    assert len(genotypes.load(str(tmp_path / "a" / "genotype.json")).normal) == 4


def small_search():
    """The settings of a small search on digits, its network, and the validation half."""
    s = Namespace(**{**train_search.flags().defaults(), **recipes.RECIPES["digits"].search,
                     "init_channels": 2, "layers": 3, "nodes": 2})
    dataset = data.load("digits")
    torch.manual_seed(0)
    network = train_search.build(s, dataset.classes, dataset.images.shape[1:])
    return s, network, list(train_search.halves(s, dataset, torch.device("cpu")))[1]


def test_discretisation_gap(monkeypatch):
    s, network, v = small_search()
    images, labels = v.next()
    F.cross_entropy(network(images), labels).backward()  # moves the running statistics
    with torch.no_grad():
        for alpha in network.alphas:
            alpha.copy_(3 * torch.randn(alpha.shape, generator=torch.Generator().manual_seed(0)))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    run = SimpleNamespace(watched=lambda batches: batches)
    row = measure.gap(run, network, v, s)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    # the same by hand: a copy of the network whose gates are set, in one batch of
    # statistics at a time
    other = copy.deepcopy(network)
    genotype = fair_darts.discretize(*(torch.sigmoid(alpha) for alpha in network.alphas))
    assert genotype.normal and genotype.reduce
    pairs = [(node, source) for node in (2, 3) for source in range(node)]
    soft = [torch.sigmoid(alpha.detach()) for alpha in network.alphas]
    hard = [(gates >= 0.5).float() for gates in soft]
    discrete = [torch.tensor([[float(Edge(op, *pair) in cell) for op in PRIMITIVES]
                              for pair in pairs]) for cell in genotype]
    best = []  # the two edges of each node whose best gate is highest
    for gates in soft:
        highest, rows = gates.max(1).values.tolist(), [[0, 1], [2, 3, 4]]
        kept = [row for node in rows for row in sorted(node, key=lambda r: -highest[r])[:2]]
        best.append(torch.tensor([[float(row in kept)] for row in range(5)]))
    accuracies = []
    for gates, masks in ((soft, None), (soft, best), (soft, discrete), (hard, None), (hard, best),
                         (discrete, None)):
        hits = 0
        with torch.no_grad():
            for images, labels in zip(v.images.split(256), v.labels.split(256)):
                used = [g * m for g, m in zip(gates, masks)] if masks else gates
                hits += (other.train()(data.normalize(images, v.mean, v.std), used).argmax(1)
                         == labels).sum().item()
        accuracies.append(100 * hits / len(v.labels))
    g, ge, gs, r, re, d = accuracies
    assert row["soft_accuracy"] == g != row["discrete_accuracy"] == d
    assert row["gap_rounding"] == ((g - r) + (gs - d)) / 2
    assert row["gap_edges"] + row["gap_operations"] == pytest.approx(
        g - d - row["gap_rounding"], abs=1e-12)  # all of the rest is selection
    assert row["gap_edges"] == ((g - ge) + (r - re)) / 2
    with monkeypatch.context() as patch:  # an empty cell gives no gap
        patch.setattr(model_search.Network, "genotype", lambda *_, **__: Genotype([], [1]))
        assert measure.gap(run, network, v, s) == {}
    # gates that are 0 and 1 already, and as a genotype has them: no gap at all
    with torch.no_grad():
        for alpha, edges in zip(network.alphas, genotype):
            alpha.copy_(2000 * fair_darts.discrete_gates(edges, alpha) - 1000)
    row = measure.gap(run, network, v, s)
    assert row["soft_accuracy"] == row["discrete_accuracy"]


def test_line_of_an_epoch():
    """Two accuracies of one supernet are told apart; argmax has no threshold to count by."""
    s, network, _ = small_search()
    row = dict(train_loss=1, train_accuracy=2, valid_loss=3, valid_accuracy=4, penalty=-0.1,
               soft_accuracy=5, discrete_accuracy=6, gap_rounding=-0.6, gap_edges=-1.6,
               gap_operations=1.2, **measure.count_gates(network, 0.5))
    line = measure.describe(row, s)
    assert ("acc 4.00%  l2 penalty -0.1000  gates 0.500 to 0.500, rho 1.00, 70 above, 70 below"
            in line)
    assert line.endswith("gap, by batch statistics: 5.00% - 6.00%, rounding -1, selection -0")
    row.update(measure.count_gates(network, 0.0), soft_accuracy=None)
    assert row["gates_above"] is None and "above" not in measure.describe(row, s)


def test_search_over_a_few_operations(tmp_path, monkeypatch, capsys):
    search = [*SMALL_SEARCH, "--runs", tmp_path, "--epochs", 1, "--threshold", 0, "--name"]
    assert call(train_search, monkeypatch, *search, "a",
                "--primitives", "sep_conv_3x3,skip_connect") == 0
    gates = np.load(tmp_path / "a" / "gates.npz")
    assert (gates["primitives"].tolist() == ["skip_connect", "sep_conv_3x3"]
            and gates["normal"].shape == (1, 5, 2))
    genotype = genotypes.load(str(tmp_path / "a" / "genotype.json"))
    assert {edge.op for cell in genotype for edge in cell} <= {"skip_connect", "sep_conv_3x3"}
    call(train_search, monkeypatch, "--resume", tmp_path / "a",
         "--primitives", "skip_connect,sep_conv_3x3")
    capsys.readouterr()
    assert call(train_search, monkeypatch, "--resume", tmp_path / "a",
                "--primitives", "sep_conv_5x5") == 2
    assert "--primitives sep_conv_5x5 contradicts" in capsys.readouterr().err
    chosen = gates_with(("sep_conv_5x5", 2, 1, 0.9))[:, [2, 4]]
    assert fair_darts.discretize(
        chosen, chosen, primitives=["skip_connect", "sep_conv_5x5"]).normal == [
            Edge("sep_conv_5x5", 2, 1)]


def test_own_operations_through_both_scripts(own_operations, tmp_path, monkeypatch, capsys):
    """Searched, resumed, drawn, discretised, read from JSON and from text, trained."""
    names = "skip_connect,sep_conv_3x3,none,conv_7x1_1x7"  # as OPS has them
    search = [*SMALL_SEARCH, "--runs", tmp_path, "--name", "a", "--threshold", 0, "--epochs", 1]
    assert call(train_search, monkeypatch, *search, "--primitives", names,
                "--arch_learning_rate", 1) == 0
    assert call(train_search, monkeypatch, "--resume", tmp_path / "a", "--epochs", 2,
                "--figures_every", 1) == 0
    assert np.load(tmp_path / "a" / "gates.npz")["primitives"].tolist() == names.split(",")
    for name in FIGURES:
        assert_picture(tmp_path / "a" / "figures" / f"{name}.png")
    found = genotypes.load(str(tmp_path / "a" / "genotype.json"))
    assert {edge.op for cell in found for edge in cell} & {"none", "conv_7x1_1x7"}
    text = ("Genotype(normal=[('conv_7x1_1x7', 2, 0), ('none', 2, 1)], "
            "reduce=[('conv_7x1_1x7', 2, 0), ('none', 2, 1)])")
    for arch in (tmp_path / "a" / "genotype.json", text):
        assert call(train_eval, monkeypatch, *SMALL_EVAL, "--epochs", 1, "--runs", tmp_path,
                    "--arch", arch, "--name", f"eval{len(str(arch))}") == 0


def test_own_penalty(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(fair_darts.PENALTIES, "l4", lambda gates: -((gates - 0.5) ** 4).mean())
    search = [*SMALL_SEARCH, "--runs", tmp_path, "--name", "a", "--threshold", 0, "--epochs", 1]
    assert call(train_search, monkeypatch, *search, "--zero_one_loss", "l4",
                "--figures_every", 1) == 0
    assert "  l4 penalty -0.0" in capsys.readouterr().out
    assert visualize.setting(visualize.read(str(tmp_path / "a"))) == "sigmoid, w01 10, l4"
    assert_picture(tmp_path / "a" / "figures" / "penalty.png")


def test_plain_runs_and_goes_on_as_a_fast_one(tmp_path, monkeypatch):
    kinds = []
    forward = model_search.Cell.forward

    def watched(self, state_0, state_1, gates, use_fast):
        kinds.append((use_fast, kernels._stock))
        return forward(self, state_0, state_1, gates, use_fast)

    monkeypatch.setattr(model_search.Cell, "forward", watched)
    search = [*SMALL_SEARCH, "--runs", tmp_path, "--epochs", 1, "--threshold", 0, "--name"]
    assert call(train_search, monkeypatch, *search, "a", "--plain") == 0
    assert set(kinds) == {(False, True)}
    assert call(train_search, monkeypatch, *search, "b") == 0
    rows = [{key: float(value) for key, value in table(tmp_path / name)[0].items() if value}
            for name in "ab"]
    assert rows[0] == pytest.approx(rows[1], rel=0.02, abs=0.6)  # the same search, but for rounding
    kinds.clear()
    assert call(train_search, monkeypatch, "--resume", tmp_path / "a", "--epochs", 2,
                "--no-plain") == 0
    assert set(kinds) == {(True, False)}


def test_search_in_chains(pictures, tmp_path, monkeypatch, capsys):
    """S2 on digits and on a picture folder, both gate kinds, figures, resume, then the
    training of what was found.
    """
    common = ["--space", "s2", "--width", 0.1, "--epochs", 1, "--runs", tmp_path, "--name"]
    digits = ["--dataset", "digits", "--batch_size", 100, "--train_fraction", 0.2,
              "--valid_fraction", 0.2]
    assert call(train_search, monkeypatch, *common, "a", *digits, "--arch_learning_rate", 1,
                "--figures_every", 1) == 0
    gates = np.load(tmp_path / "a" / "gates.npz")
    assert gates["layers"].shape == (1, 19, 7) and np.isnan(gates["layers"]).sum() == 6
    assert gates["primitives"].tolist() == list(genotypes.CHOICES)
    names = sorted(path.stem for path in (tmp_path / "a" / "figures").iterdir())
    assert names == ["chain", "dominant", "gap", "gates", "heatmap", "penalty"]
    for name in names:
        assert_picture(tmp_path / "a" / "figures" / f"{name}.png")
    chain = genotypes.load(str(tmp_path / "a" / "genotype.json"))
    assert (str(chain) in capsys.readouterr().out
            and chain == fair_darts.discretize_chain(gates["layers"][-1]))
    assert call(train_search, monkeypatch, "--resume", tmp_path / "a", "--epochs", 2,
                "--ops_per_layer", 2, "--threshold", 0, "--figures_every", 0,
                "--gap_every", 0) == 0
    assert (len(table(tmp_path / "a")) == 2
            and table(tmp_path / "a")[0]["skips_layers"].isdigit())
    assert {len(names) for names in
            genotypes.load(str(tmp_path / "a" / "genotype.json")).layers} == {2}
    folder = ["--dataset", "folder", "--data", pictures, "--image_size", 16, "--batch_size", 16,
              "--figures_every", 0, "--gap_every", 0]
    assert call(train_search, monkeypatch, *common, "b", *folder, "--gate", "softmax") == 0
    train = ["--arch", tmp_path / "b" / "genotype.json", *folder[:-4], "--epochs", 1,
             "--runs", tmp_path, "--name", "c"]
    assert call(train_eval, monkeypatch, *train, "--width", 0.1, "--squeeze") == 0
    assert call(train_eval, monkeypatch, "--resume", tmp_path / "c", "--epochs", 2) == 0
    assert call(train_eval, monkeypatch, "--evaluate", tmp_path / "c") == 0


def test_empty_cell_is_not_written(tmp_path, monkeypatch, capsys):
    """Gates above the threshold, but only on an edge that leaves a node
    which nothing enters.
    """
    run = runs.Run(str(tmp_path), {"script": "train_search"})
    s = Namespace(**{**train_search.flags().defaults(), "epochs": 1})
    network = model_search.Network(2, layers=1)
    gates = torch.stack([gates_with(("sep_conv_3x3", 2, 0, 0.9)),
                         gates_with(("sep_conv_3x3", 5, 4, 0.9))])
    run.rows = [{"epoch": 1, "valid_accuracy": 1.0}]
    monkeypatch.setattr(train_search, "write_report", lambda *_: None)
    assert train_search.derive(run, s, network, Namespace(epochs=[gates])) == 1
    out = capsys.readouterr().out
    assert "reduce cell is empty" in out and "--threshold 0.75" in out
    assert [path.name for path in tmp_path.iterdir()] == ["log.txt"]


def test_softmax_and_unrolled_search(tmp_path, monkeypatch):
    assert call(train_search, monkeypatch, *SMALL_SEARCH, "--runs", tmp_path, "--name", "a",
                "--gate", "softmax", "--epochs", 1, "--unrolled", "--batch_size", 300) == 0
    settings = json.loads((tmp_path / "a" / "config.json").read_text())["settings"]
    assert (settings["learning_rate"], settings["arch_learning_rate"], settings["w01"]) == (
        0.025, 0.05, 0)  # digits's own rates, not DARTS's
    # argmax: two edges a node
    assert len(genotypes.load(str(tmp_path / "a" / "genotype.json")).normal) == 4


def test_evaluation_runs_repeats_and_resumes(tmp_path, monkeypatch, capsys):
    train = [*SMALL_EVAL, "--runs", tmp_path, "--arch", "FairDARTS_e"]
    assert call(train_eval, monkeypatch, *train, "--name", "a") == 0
    out = capsys.readouterr().out
    assert "parameters" in out and "M MACs" in out and out.count("test loss") == 2
    assert call(train_eval, monkeypatch, *train, "--name", "b") == 0
    assert call(train_eval, monkeypatch, *train, "--name", "c", "--seed", "1") == 0
    states = {n: torch.load(tmp_path / n / "checkpoint.pt", weights_only=True)["network"]
              for n in "abc"}
    assert all(torch.equal(v, states["b"][k]) for k, v in states["a"].items())
    assert not torch.equal(states["a"]["classifier.weight"], states["c"]["classifier.weight"])
    rows = table(tmp_path / "a")
    assert [row["epoch"] for row in rows] == ["1", "2"] and rows == table(tmp_path / "b")
    capsys.readouterr()
    assert call(train_eval, monkeypatch, "--evaluate", tmp_path / "a") == 0
    best = max(float(row["test_accuracy"]) for row in rows)
    assert f"acc {best:.2f}%" in capsys.readouterr().out
    assert call(train_eval, monkeypatch, "--resume", tmp_path / "a", "--epochs", 3) == 0
    assert len(table(tmp_path / "a")) == 3 and table(tmp_path / "a")[:2] == rows


def test_scripts_on_a_picture_folder(pictures, tmp_path):
    """Real processes, as a user starts them: search,
    then the command that it prints.
    """
    def start(*command):
        return subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True,
                              timeout=300)

    done = start("train_search.py", "--dataset", "folder", "--data", pictures, "--image_size", 16,
                 "--init_channels", 2, "--layers", 3, "--batch_size", 8, "--epochs", 2,
                 "--arch_learning_rate", 0.5, "--runs", tmp_path, "--name", "search")
    assert done.returncode == 0 and done.stderr == ""
    command = done.stdout.strip().split("\n")[-1].split()
    assert command[:2] == ["python", "train_eval.py"]
    done = start(*command[1:], "--init_channels", 4, "--layers", 3, "--batch_size", 8,
                 "--epochs", 8, "--runs", tmp_path, "--name", "eval", "--drop_path_prob", 0,
                 "--no-cutout")
    assert done.returncode == 0 and done.stderr == ""
    rows = table(tmp_path / "eval")
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
    assert max(float(row["test_accuracy"]) for row in rows) > 80


# a script, its arguments and what its refusal must say
EVAL, DIGITS = ["--arch", "FairDARTS_a"], ["--dataset", "digits"]
REFUSED = [
    (train_eval, ["--arch", "FairDARTS_h"], "did you mean 'FairDARTS_"),
    (train_eval, [], "--arch is missing"),
    (train_eval, ["--arch", "nowhere.json"], "unknown architecture 'nowhere.json'"),
    (train_eval, ["--arch", ""], "unknown"),
    (train_eval, ["--arch", "Genotype(normal=[], reduce=[])"], "normal cell: it has no edge"),
    (train_eval, ["--arch", "__import__('os').mkdir('x')"], "unknown architecture"),
    (train_eval, ["--arch", "Genotype(normal=open('x', 'w'), reduce=[])"], "cannot read"),
    (train_eval, ["--arch"], "--arch"),
    (train_eval, [*EVAL, "--dataset", "cifar11"], "unknown 'cifar11'; did you mean 'cifar10'"),
    (train_eval, [*EVAL, *DIGITS, "--batch_size", "2000"], "--batch_size 1437 or less"),
    (train_eval, [*EVAL, "--batch_size", "1"], "from 2 up"),
    (train_eval, [*EVAL, "--drop_path_prob", "1"], "--drop_path_prob"),
    (train_eval, [*EVAL, "--drop_path_prob", "-0.1"], "from 0 to 0.999"),
    (train_eval, [*EVAL, "--layers", "0"], "from 1 to 10000"),
    (train_eval, [*EVAL, "--init_channels", "x"], "whole number"),
    (train_eval, [*EVAL, "--cutout_length", "0"], "from 1 up"),
    (train_eval, [*EVAL, "--auxiliary=yes"], "--auxiliary"),
    (train_eval, [*EVAL, "--auxilary"], "did you mean '--auxiliary'"),
    (train_eval, [*EVAL, "--auxiliary_weight", "heavy"], "a number"),
    (train_eval, [*EVAL, "--epochs", "1.5"], "whole number"),
    (train_eval, [*EVAL, "--momentum", "nan"], "'nan'"),
    (train_eval, [*EVAL, "--weight_decay", "-1"], "from 0 up"),
    (train_eval, [*EVAL, "--grad_clip", "0"], "above 0"),
    (train_eval, [*EVAL, "--image_size", "4"], "from 8 up"),
    (train_eval, [*EVAL, "--dataset", "folder"], "there is no folder 'data/train'"),
    (train_eval, [*EVAL, "--w01", "10"], "unknown argument '--w01'"),
    (train_eval, [*EVAL, "--seed", "-1"], "from 0"),
    (train_eval, [*EVAL, "--learning_rate", "1e400"], "1e400"),
    (train_eval, [*EVAL, "--device", "gpu"], "this machine has:"),
    (train_eval, ["--evaluate", "nowhere"], "not the folder of a run"),
    (train_eval, ["--evaluate"], "expected one argument"),
    (train_eval, ["--resume", "nowhere"], "not the folder of a run"),
    (train_eval, [*EVAL, *DIGITS, "--name", "a/b"], "the name of a folder, got 'a/b'"),
    (train_eval, [*EVAL, *DIGITS, "--name", ".."], "the name of a folder"),
    (train_search, ["--dataset", "digit"], "did you mean 'digits'"),
    (train_search, ["--dataset", "DIGITS"], "did you mean"),
    (train_search, ["--dataset", "folder", "--data", "nowhere"],
     "there is no folder 'nowhere/train'"),
    (train_search, [*DIGITS, "--batch_size", "719"], "--batch_size 718 or less"),
    (train_search, [*DIGITS, "--train_portion", "0.999"], "--batch_size 2 or less"),
    (train_search, ["--train_portion", "1"], "above 0 and below 1"),
    (train_search, ["--train_portion", "0"], "above 0"),
    (train_search, ["--threshold", "-0.1"], "from 0 to 1, got '-0.1'"),
    (train_search, ["--threshold", "1.5"], "1.5"), (train_search, ["--threshold", "nan"], "nan"),
    (train_search, ["--epochs", "-3"], "from 1 up, got '-3'"),
    (train_search, ["--epochs", "many"], "whole number"),
    (train_search, ["--epochs", "0"], "from 1 up"),
    (train_search, ["--gate", "sigmoyd"], "mean 'sigmoid'"),
    (train_search, ["--gate", ""], "choose from sigmoid, softmax"),
    (train_search, ["--w10", "10"], "did you mean '--w01'"),
    (train_search, ["extra"], "unexpected argument 'extra'"),
    (train_search, ["--epochs"], "expected one argument"),
    (train_search, ["--w01", "-1"], "--w01"),
    (train_search, ["--w01", "inf"], "a number from 0 up, got 'inf'"),
    (train_search, ["--nodes", "5"], "from 1 to 4"),
    (train_search, ["--zero_one_loss", "l3"], "choose from l2, l1"),
    (train_search, ["--arch_beta1", "1"], "below 1"),
    (train_search, ["--space", "s3"], "choose from s1, s2"),
    (train_search, ["--width", "0.5"], "--width is of --space s2"),
    (train_search, ["--space", "s2", "--layers", "5"], "--layers is of the space s1"),
    (train_search, ["--space", "s2", "--width", "0"], "above 0"),
    (train_eval, ["--arch", "FairNAS_A", "--layers", "5"],
     "--layers is for architectures of cells"),
    (train_eval, [*EVAL, "--squeeze"], "--squeeze is for chains"),
    (train_search, ["--primitives", ""], "unknown ''"),
    (train_search, ["--primitives", "sep_conv_3x3,conv"], "unknown 'conv'"),
    (train_search, ["--primitives", "skip_connect,skip_connect"], "'skip_connect' is named twice"),
    (train_search, ["--primitives", "skip_conect"], "did you mean 'skip_connect'"),
    (train_search, ["--checkpoint_minutes", "-1"], "from 0 up"),
    (train_search, ["--edges_per_node", "0"], "from 1 up"),
    (train_search, ["--unrolled", "yes"], "unexpected argument 'yes'"),
    (train_search, ["--arch", "x"], "unknown argument"),
    (train_search, ["--epoch", "3"], "did you mean '--epochs'"),
    (train_search, ["--=3"], "unknown argument"),
    (train_search, ["--resume", "nowhere"], "not the folder of a run"),
    (train_search, ["--resume", ""], "not the folder"),
    (train_search, [*DIGITS, "--runs", "/dev/null", "--name", "x"], "/dev/null"),
    (train_search, ["--device", "tpu"], "this machine has:"),
    (train_search, ["--device", "cuda:99"], "machine has:")]


@pytest.mark.parametrize("script, arguments, message", REFUSED)
def test_refusals(script, arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call(script, monkeypatch, *arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and message in captured.err and captured.out == ""
    assert list(tmp_path.iterdir()) == []  # nothing half-written


def test_refusals_of_folders_and_runs(pictures, tmp_path, monkeypatch, capsys):
    def refused(script, *arguments):
        assert call(script, monkeypatch, *arguments, "--runs", tmp_path / "runs") == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    for part in ("train", "test"):
        (tmp_path / "one" / part / "cat").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "one" / part / "cat" / "a.png")
    folder = ["--dataset", "folder", "--data", tmp_path / "one"]
    assert "only one class, 'cat'" in refused(train_search, *folder)
    (tmp_path / "one" / "train" / "dog").mkdir()
    assert "dog" in refused(train_search, *folder)  # an empty class
    (tmp_path / "one" / "train" / "dog" / "a.png").write_text("no picture")
    assert "1 of 2 files cannot be used as pictures: dog/a.png (" in refused(train_search, *folder)
    Image.new("RGB", (8, 8)).save(tmp_path / "one" / "train" / "dog" / "a.png")
    assert "one class" in refused(train_search, *folder)  # test/ has cats only
    (tmp_path / "runs" / "old").mkdir(parents=True)
    assert "exists already" in refused(train_eval, *SMALL_EVAL, "--arch", "FairDARTS_a",
                                       "--name", "old")
    assert call(train_eval, monkeypatch, *SMALL_EVAL, "--arch", "FairDARTS_a", "--name", "eval",
                "--runs", tmp_path / "runs", "--epochs", 1) == 0
    capsys.readouterr()
    run = tmp_path / "runs" / "eval"
    assert "run of train_eval.py" in refused(train_search, "--resume", run)
    assert "--layers 5 contradicts" in refused(train_eval, "--resume", run, "--layers", 5)
    assert "--arch Genotype(" in refused(train_eval, "--resume", run, "--arch", "FairDARTS_b")
    assert "--arch FairDARTS_a" not in refused(train_eval, "--resume", run,
                                               "--arch", "FairDARTS_a", "--layers", 5)
    (run / "best.pt").write_bytes(b"junk")
    assert "best.pt cannot be read" in refused(train_eval, "--evaluate", run)
    (run / "best.pt").unlink()
    assert "has no best.pt" in refused(train_eval, "--evaluate", run)


def test_bad_pictures_are_named_counted_and_left_out_on_request(pictures, tmp_path, monkeypatch,
                                                                capsys):
    root = tmp_path / "pictures"
    shutil.copytree(pictures, root)
    (root / "train" / "red" / "text.png").write_text("no picture")
    (root / "train" / "red" / "empty.jpg").touch()
    whole = (root / "train" / "blue" / "1.png").read_bytes()
    (root / "train" / "blue" / "cut.png").write_bytes(whole[:len(whole) // 2])
    deep = Image.fromarray(np.full((9, 9), 0.5, np.float32))
    deep.save(root / "train" / "blue" / "deep.tif")
    search = ["--dataset", "folder", "--data", root, "--image_size", 8, "--init_channels", 2,
              "--layers", 3, "--nodes", 1, "--batch_size", 8, "--epochs", 1, "--threshold", 0,
              "--runs", tmp_path / "runs", "--name", "a"]
    assert call(train_search, monkeypatch, *search) == 2
    captured = capsys.readouterr()
    assert (captured.err.count("\n") == 1 and "4 of 36 files cannot be used" in captured.err
            and captured.out == "")
    for part in ("cut.png (", "deep.tif (mode F", "empty.jpg (", "text.png (",
                 "--skip_bad_images"):
        assert part in captured.err
    assert not (tmp_path / "runs").exists()
    assert call(train_search, monkeypatch, *search, "--skip_bad_images") == 0
    captured = capsys.readouterr()
    assert ("4 of 36 files" in captured.err and "16 + 16 pictures" in captured.out
            and "--skip_bad_images" in captured.out)
    for path in (root / "test" / "red").iterdir():
        path.write_text("no picture")
    assert call(train_search, monkeypatch, *search, "--skip_bad_images") == 2
    assert "class 'red' has no picture that can be used" in capsys.readouterr().err


# ---------------------------------------------------------------- figures

def recorded_run(folder, primitives=PRIMITIVES, nodes=4, epochs=3, gap=True, seed=0, gates=None,
                 threshold=0.3, **settings):
    """A run's records, as a search leaves them."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    if gates is not None:
        epochs = len(gates)
    else:
        gates = random.random((epochs, 2, nodes * (nodes + 3) // 2, len(primitives)), np.float32)
    np.savez(folder / "gates.npz", normal=gates[:, 0], reduce=gates[:, 1], primitives=primitives,
             run="1")
    s = {**train_search.flags().defaults(), "dataset": "digits", "nodes": nodes,
         "primitives": ",".join(primitives), "threshold": threshold, **settings}
    config = dict(script="train_search", version=folders.VERSION, id="1", threads=1, processes=1,
                  commands=[], fingerprint="", classes=[], shape=[], settings=s)
    (folder / "config.json").write_text(json.dumps(config))
    rows = [dict(epoch=epoch + 1, train_loss=1.0, soft_accuracy=90 + epoch if gap else None,
                 discrete_accuracy=50.5 if gap else None, rho=0.5, gap_rounding=20 if gap else None,
                 gap_edges=25 if gap else None, gap_operations=epoch - 5.5 if gap else None,
                 skips_normal=0, skips_reduce=0, skips_layers=0, curvature=None,
                 seconds=1.5) for epoch in range(epochs)]
    with open(folder / "metrics.csv", "w") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    genotype = fair_darts.discretize(*torch.from_numpy(gates[-1]), threshold, primitives=primitives)
    if all(genotype):
        genotypes.save(genotype, str(folder / "genotype.json"))
    return folder


def assert_picture(path):
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(float)
    assert pixels.shape[1] >= 300 and pixels.shape[0] >= 200
    # neither blank nor filled
    assert 0.01 < (pixels.min(2) < 240).mean() < 0.99 and pixels.std() > 10
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    assert (border > 250).all()  # nothing is cut off


FIGURES = ["dominant", "gates", "heatmap", "penalty", "gap", "cell_normal", "cell_reduce"]


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
    records = [visualize.read(str(folder)) for folder in folders]
    assert [visualize.setting(record) for record in records] == [
        "sigmoid, w01 10, l2", "sigmoid, w01 10, l1", "softmax", "softmax"]
    assert visualize.names_of(records) == [visualize.setting(record) for record in records]
    for axes in visualize.compare_gap(records).axes:  # rounding, selection
        assert len(axes.lines) == len(axes.collections) == 3 and axes.get_ylim()[0] <= 0
    for axes in visualize.compare_dominant(records).axes:  # the mean of runs of one setting
        skip = PRIMITIVES.index("skip_connect")
        part = "normal" if "normal" in axes.get_title() else "reduce"
        counts = [visualize.dominant_counts(record.gates[part], PRIMITIVES)[:, skip]
                  for record in records[2:]]
        assert np.array_equal(axes.lines[2].get_ydata(), np.mean(counts, 0))
        assert axes.get_ylim()[0] == 0
    other = [record._replace(settings={**record.settings, **more}) for record, more in zip(
        records[2:], ({"learning_rate": 0.1}, {"learning_rate": 0.2, "seed": 5}))]
    assert visualize.names_of(other) == ["softmax, learning_rate 0.1", "softmax, learning_rate 0.2"]
    assert visualize.names_of(records[2:]) == ["2", "3"]  # alike: by their folders
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
            ([folders[0]], "not what a search writes"),
            ([folders[1], folders[2]], "not what a search writes"),
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
    record = visualize.read(str(recorded_run(tmp_path / "run", gates=gates, threshold=0.85)))
    assert visualize.dominant_counts(gates[:, 0], PRIMITIVES).tolist() == [
        [0, 0, 8, 0, 0, 0, 0], [0, 0, 1, 7, 0, 0, 0]]
    # the reduction cell has no edge
    assert (record.genotype is None
            and not visualize.kept_gates(record, "normal").any())
    histogram = visualize.gate_histogram(record, 10)
    assert (histogram.shape == (10, 2)
            and histogram[:, 0].sum() == pytest.approx(1) == histogram[:, 1].sum())
    assert (histogram[9, 0] == pytest.approx(14 / 196)
            and histogram[9, 1] == pytest.approx(15 / 196))
    gates[1, 1, 0, sep] = 0.9
    record = visualize.read(str(recorded_run(tmp_path / "other", gates=gates, threshold=0.85)))
    kept = visualize.kept_gates(record, "normal")
    assert (kept.sum() == 8 and kept[-1, skip] and kept[0, sep] and kept[1, sep]
            and not kept[-1, sep])
    assert visualize.kept_gates(record, "reduce").nonzero() == (np.array([0]), np.array([sep]))
    # rounding makes 14 + 1 gates 1, of which the best edges of each node and operations are kept
    marks = visualize.reasons(record, "normal")
    best = fair_darts.kept_edges(torch.from_numpy(gates[1, 0])).flatten().bool().tolist()
    assert [marks[row, sep] for row in range(14)] == [
        "" if kept[row, sep] else "o" if row == 13 else "e" for row in range(14)]
    assert all((marks[row] == "e").any() != keep for row, keep in enumerate(best))
    low = record._replace(settings={**record.settings, "threshold": 0.99}, genotype=None)
    assert set(visualize.reasons(low, "normal")[:, sep]) == {"e", "t", "o"}
    # a skip of the reduction cell that leaves a node which nothing enters
    gates = np.full((1, 2, 14, 2), 0.1, np.float32)
    gates[0, :, fair_darts.edge_row(3, 2), 0] = gates[0, :, fair_darts.edge_row(4, 0), 1] = 0.9
    record = visualize.read(str(recorded_run(
        tmp_path / "limited", ("skip_connect", "sep_conv_3x3"), gates=gates, keep_skips=0)))
    assert set(visualize.reasons(record, "reduce")[:, 0]) == {"", "p"}
    assert visualize.edge_names(5) == [(2, 0), (2, 1), (3, 0), (3, 1), (3, 2)]


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


# ---------------------------------------------------------------- the claims

def path_of_gates(tmp_path, name, ends, epochs=10, **settings):
    """A record of two operations whose gates go from 0.5 in a straight line to `ends`,
    (skip, sep_conv), on all edges.
    """
    line = np.linspace(0, 1, epochs)[:, None, None, None]
    gates = (0.5 + line * (np.array(ends) - 0.5)).astype(np.float32) * np.ones(
        (1, 2, 14, 1), np.float32)
    return visualize.read(str(recorded_run(tmp_path / name, ("skip_connect", "sep_conv_3x3"),
                                           gates=gates, epochs=epochs, **settings)))


CLAIMS = grids.GRIDS["claims"]


def result_of(tmp_path, normal, reduce=None, rows=(), trained=None, other=None, **settings):
    """A Result of two operations: gates of one epoch, (14, 2)."""
    gates = np.stack([normal, normal if reduce is None else reduce])[None].astype(np.float32)
    folder = recorded_run(tmp_path / secrets.token_hex(4), ("skip_connect", "sep_conv_3x3"),
                          gates=gates, **settings)
    record = visualize.read(str(folder))
    record.rows[-1].update(rows)
    return claims.Result(record, trained, other)


def test_what_claims_measure(tmp_path):
    skip, conv = np.full(14, 0.3), np.linspace(0.2, 0.6, 14)
    skip[:5] = 0.7  # leads on five edges
    result = result_of(tmp_path, np.stack([skip, conv], 1), trained=[50.0, 97.0, 95.0],
                       other=[60.0, 91.0, 93.0], w01=10.0,
                       rows=dict(rho=0.25, gap_rounding=3.0, gap_edges=4.0, gap_operations=-1.5))
    elsewhere = [g for s, g in zip(skip, conv) if g > s]
    assert all(s == 0.3 for s, g in zip(skip, conv) if g > s)
    led = [g for s, g in zip(skip, conv) if g < s]
    assert claims.suppression(result) == pytest.approx(
        sum(led) / len(led) - sum(elsewhere) / len(elsewhere), abs=1e-6)
    x, y = skip - skip.mean(), conv - conv.mean()
    assert claims.correlation(result) == pytest.approx(
        (x * y).sum() / math.sqrt((x * x).sum() * (y * y).sum()), abs=1e-6)
    assert (claims.rho(result), claims.rounding(result), claims.selection(result)) == (0.25, 3, 2.5)
    assert claims.last_accuracy(result) == 95 and claims.best_accuracy(result) == 97
    assert claims.last_over_random(result) == 2 and claims.best_over_random(result) == 4
    formula = fair_darts.resting_gate(10, 56, 1e-3)
    opened = np.concatenate([skip[skip > 0.5], conv[conv > 0.5]])
    assert claims.off_rest(result) == pytest.approx(np.median(opened) - formula, abs=1e-6)

    softmax = result_of(tmp_path, np.stack([conv, 1 - conv], 1), w01=0.0, threshold=0)
    assert claims.correlation(softmax) == pytest.approx(-1)
    assert claims.suppression(softmax) < 0 and claims.off_rest(softmax) is None
    never = result_of(tmp_path, np.stack([conv * 0, conv], 1), threshold=0.99, gap=False)
    assert claims.suppression(never) is claims.last_over_random(never) is None
    assert claims.rounding(never) is claims.selection(never) is None
    assert claims.derived_skips(never) is claims.curvature(never) is None
    names = [edge.op for edge in result.record.genotype.normal]
    assert 0 < names.count("skip_connect") and claims.derived_skips(result) == pytest.approx(
        names.count("skip_connect") / len(names) - 1 / 2)
    assert claims.counted_epoch(result) == 1 and claims.counted_epoch(never) is None
    rivals = result_of(tmp_path, np.stack([skip, 0.5 + 1e-8 * conv], 1), threshold=0)
    assert claims.suppression(rivals) is claims.correlation(rivals) is None
    earlier = result._replace(record=result.record._replace(
        rows=[*result.record.rows, {**result.record.rows[0], "rho": 9.0, "gap_rounding": 9.0}]))
    assert (claims.rho(earlier), claims.rounding(earlier)) == (0.25, 3)  # of the epoch that counts
    without = claims.Result(result.record._replace(primitives=["sep_conv_3x3"]), None, None)
    assert claims.derived_skips(without) is claims.correlation(without) is None


def test_gates_decide_and_skips_lead_over_epochs(tmp_path):
    skips, saturated = (claims.Result(path_of_gates(tmp_path, name, ends, 20), None, None)
                        for name, ends in (("a", (0.6, 0.4)), ("b", (0.05, 0.95))))
    # 0.45 * 11 / 19 is more than 0.25, 0.45 * 10 / 19 is not
    assert claims.decision_epoch(saturated) == 12 and claims.decision_epoch(skips) == 21
    assert claims.skips_beyond_chance(skips) == 8 - 4
    assert claims.skips_beyond_chance(saturated) == 0 - 4


@pytest.mark.parametrize("values, margin, expected", [
    ([1.0, 2, 3, 2, 2], None, "held"), ([-1.0, -2, -3, -2, -2], None, "not held"),
    ([1.0, -2, 3, -2, 2], None, "undecided"), ([1.0, 2, 3, None, 2], None, "undecided"),
    ([-1.0, -2, None, -2, -2], None, "not held"), ([5.0], None, "undecided"),
    ([], None, "undecided"), ([None, None], None, "undecided"), ([0.0, 0, 0], None, "undecided"),
    ([2.0, 2, 2], None, "held"),
    ([0.001, 0.002, 0.001], 0.01, "held"), ([-0.003, 0.002, 0.001], 0.01, "held"),
    ([0.03, 0.031, 0.029], 0.01, "not held"), ([-0.03, -0.031, -0.029], 0.01, "not held"),
    ([0.03, -0.03, 0.0], 0.01, "undecided"), ([0.001, 0.002, None], 0.01, "undecided")])
def test_verdicts(values, margin, expected):
    assert claims.verdict(values, margin) == expected


def test_interval_is_of_students_t():
    values = [1.0, 2.0, 4.0, 4.5, 7.0]
    mean = sum(values) / 5
    error = math.sqrt(sum((v - mean) ** 2 for v in values) / 4 / 5)
    found = claims.interval(values)
    assert found == pytest.approx((mean, 2.776445 * error), rel=1e-6)  # tables: t(0.975, 4)
    # 95 % of the intervals hold the mean that they are of
    draws = np.random.default_rng(0).normal(3, 2, (2000, 5)).tolist()
    held = [abs(mean - 3) <= half for mean, half in map(claims.interval, draws)]
    assert 0.93 < np.mean(held) < 0.97


def test_claims_compare_seeds(tmp_path):
    """Each claim can hold and fail, on results made for it."""
    dice = np.random.default_rng(3)

    def seeds(skip, conv, accuracies, count=5, **settings):
        found = []
        for seed in range(count):
            gates = np.clip(np.stack([skip, conv], 1) + dice.normal(0, 0.002, (14, 2)), 0, 1)
            rounding = settings["rho"] * 50 + seed
            found.append(result_of(
                tmp_path, gates, w01=settings.get("w01", 10.0), threshold=0,
                rows=dict(rho=settings["rho"] + seed / 100, gap_rounding=rounding, gap_edges=1.0,
                          gap_operations=1.0),
                trained=[accuracies[0] + seed], other=[accuracies[1] + seed]))
        return found

    low, high = np.linspace(0.1, 0.4, 14), np.linspace(0.4, 0.1, 14)
    rest = fair_darts.resting_gate(10, 56, 1e-3)
    decided = np.where(np.arange(14) % 2, rest, 1 - rest)
    results = {"softmax": seeds(0.5 + low * 0, 0.5 + low * 0, (90, 80), rho=0.9, w01=0.0),
               "l01": seeds(decided, 1 - decided, (95, 80), rho=0.1),
               "l1": seeds(decided, 1 - decided, (95, 80), rho=0.1),
               "noskip": seeds(decided, 1 - decided, (85, 80), rho=0.1, count=3),
               "w5": seeds(decided, 1 - decided, (85, 80), rho=0.1, count=2),
               "w15": seeds(decided, 1 - decided, (85, 80), rho=0.1, count=2),
               "softmax2": seeds(low, high, (0, 0), rho=0.9, w01=0.0),
               "sigmoid2": seeds(low, low + np.resize([0.05, -0.05], 14), (0, 0), rho=0.9,
                                 w01=0.0)}

    def verdicts():
        return [claims.verdict(claims.differences(claim, results), claim.margin)
                for claim in CLAIMS.claims]

    assert [len(claims.differences(claim, results)) for claim in CLAIMS.claims] == [
        5, 5, 5, 5, 5, 5, 9, 3]
    expected = ["held"] * 8
    expected[2] = "undecided"  # all decide at the only epoch
    assert verdicts() == expected
    for one, other in (("softmax2", "sigmoid2"), ("softmax", "l01")):
        results[one], results[other] = results[other], results[one]
    found = verdicts()
    assert found[:2] == ["not held"] * 2 and found[3] == found[5] == "not held"
    assert found[4] == "held"  # softmax's are better than random ones, too
    results["l01"][2] = results["l01"][2]._replace(trained=None)
    assert verdicts()[4] == "undecided"


@pytest.mark.parametrize("count", [1, 3, 7, 8])
def test_random_genotypes_are_uniform(count):
    """Over all cells of so many edges, found here by trying every set of edges."""
    edges = [(node, source) for node in range(2, 6) for source in range(node)]
    cells = [cell for cell in itertools.combinations(edges, count)
             if all(sum(node == j for node, _ in cell) <= 2 for j in range(2, 6))
             and all(source < 2 or any(node == source for node, _ in cell) for _, source in cell)]
    dice, primitives, draws = random.Random(count), ("a", "b", "c"), 20 * len(cells)
    drawn = [genotypes._random_cell(count, primitives, dice) for _ in range(draws)]
    kinds = Counter(tuple((edge.node, edge.source) for edge in cell) for cell in drawn)
    assert set(kinds) <= set(cells)
    assert chisquare([kinds[cell] for cell in cells]).pvalue > 1e-3
    for position in range(count):
        names = Counter(cell[position].op for cell in drawn)
        assert chisquare([names[op] for op in primitives]).pvalue > 1e-3


def test_random_genotypes_are_seeded():
    drawn = [genotypes.random_genotype((8, 6), PRIMITIVES, seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert [len(cell) for cell in drawn[0]] == [8, 6]
    assert genotypes.get(str(drawn[0])) == drawn[0]
    assert drawn[0].normal != genotypes.random_genotype((8, 8), PRIMITIVES, 1).reduce


def settings_of(grid, scale):
    """{arm: settings of its searches}, and a function that says in what two arms differ."""
    parser, settings = train_search.flags(), {}
    for (arm, seed), task in reproduce.searches(grid, scale, "", 1).items():
        given = parser.parse_args(task.flags)
        own = train_search.SOFTMAX if given.get("gate") == "softmax" else {}
        settings[arm] = {**parser.defaults(), **own, **recipes.RECIPES[given["dataset"]].search,
                         **given}
        cures.check(Namespace(**settings[arm]))

    def differ(one, other):
        return {key for key in settings[one] if settings[one][key] != settings[other][key]}

    return settings, differ


@pytest.mark.parametrize("scale", CLAIMS.scales)
def test_arms_differ_in_what_they_are_about(scale):
    settings, differ = settings_of(CLAIMS, scale)
    assert differ("softmax", "sigmoid") == differ("softmax2", "sigmoid2") == {"gate"}
    assert differ("sigmoid", "l01") == {"w01", "threshold"} and differ("l01", "w5") == {"w01"}
    assert differ("l01", "l1") == {"zero_one_loss"}
    assert differ("l01", "noskip") == {"primitives", "w01"}
    assert settings["noskip"]["w01"] / (2 * 14 * 6) == pytest.approx(10 / 196, rel=1e-4)
    assert "darts" not in settings or differ("darts", "softmax") == {
        "learning_rate", "batch_size", "arch_learning_rate", "arch_beta1"}


@pytest.mark.parametrize("scale", CLAIMS.scales)
def test_cured_arms_differ_from_softmax_in_one_cure(scale):
    settings, differ = settings_of(grids.GRIDS["cures"], scale)
    assert settings["softmax"]["gate"] == "softmax" and settings["softmax"]["threshold"] == 0
    for arm, names in {
            "dropout": {"skip_dropout"}, "noise": {"skip_noise"}, "limit": {"max_skips"},
            "kept": {"keep_skips"}, "curvature": {"curvature_every", "max_curvature_ratio"},
            "sigmoid": {"gate"}, "shared": {"gate", "shared_softmax"},
            "l01": {"gate", "w01", "threshold"}}.items():
        assert differ(arm, "softmax") == names
    s = settings["l01"]
    operations = s["primitives"].split(",")
    assert s["w01"] / (2 * 14 * len(operations)) == pytest.approx(10 / 196, rel=1e-4)
    assert settings["limit"]["max_skips"] > 8 / len(operations)  # beyond chance
    others = settings["shared"]["shared_softmax"].split(",")
    assert {*others, "skip_connect"} == {*operations} and len(others) == len(operations) - 1
    assert s["curvature_every"] == {"laptop": 25, "paper": 50}[scale] == s["epochs"]
    steps = s["epochs"] * (1437 // 2 if scale == "laptop" else 25000) // s["batch_size"]
    reached = 1 / (1 + math.exp(-steps * s["arch_learning_rate"]))  # by Adam's longest steps
    assert reached > s["threshold"]


def test_page_of_the_cures(tmp_path):
    """Its claims can hold and fail, on results made for it: genotypes with so many skips."""
    made, grid_of_cures, dice = {}, grids.GRIDS["cures"], np.random.default_rng(0)

    def seeds(skips, accuracy, count=3):
        found = []
        for seed in range(count):
            gates = np.full((14, 2), 0.9)
            gates[skips:, 0] = 0.1
            gates[:skips, 1] = 0.1
            found.append(result_of(
                tmp_path, gates + dice.normal(0, 0.002, (14, 2)), threshold=0, trained=[accuracy],
                other=[85.0 + seed], rows=dict(curvature=1.0 + seed)))
        return found

    def verdicts():
        return [claims.verdict(claims.differences(claim, made)) for claim in grid_of_cures.claims]

    cured = len(grid_of_cures.arms) - 1
    made = {arm: seeds(0, 95.0) for arm in grid_of_cures.arms}
    made["softmax"] = seeds(14, 90.0)
    assert verdicts() == ["held"] * (1 + 2 * cured) and len(verdicts()) == 17
    drawings = grid_of_cures.figures(made)
    config = dict(torch="1", python="2", machine="3", threads=4)
    text = reproduce.page(grid_of_cures, "laptop", made, "the command", drawings, config, 1.5)
    assert text.count("| held |") == 17 and "seeds 21 to 23. What" in text
    assert "| softmax, no cure | 1.0 ± 0.0 (3) | 0.50 ± 0.00 (3) |" in text
    assert "| noise on skips | 95.00 ± 0.00 (3) | 9.00 ± 2.48 (3) |" in text
    assert all(f"(figures/{name}.png)" in text for name in drawings) and len(drawings) == 8
    for path in visualize.save({name: draw for name, (_, draw) in list(drawings.items())[:2]},
                               tmp_path):
        assert_picture(path)
    made["softmax"], made["noise"] = made["noise"], made["softmax"]
    found = dict(zip([claim.text for claim in grid_of_cures.claims], verdicts()))
    assert [text for text, verdict in found.items() if verdict == "not held"] == [
        "Softmax's genotypes have more skips than chance gives",
        "Fewer skips than softmax's: noise on skips",
        "Better networks than softmax's: noise on skips"]
    assert [*found.values()].count("undecided") == 2 * (cured - 1)


def test_one_picture_a_quantity():
    values = {"a": [1.0, 2.0, None], "b": [None], "c": [-3.0]}
    [axes] = visualize.compare_arms("something", values).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c"]
    dots = [line.get_xydata().tolist() for line in axes.lines if line.get_marker() == "o"]
    assert dots == [[[1, 0], [2, 0]], [], [[-3, 2]]]
    bars = [container.lines[2][0].get_segments() for container in axes.containers]
    mean, half = claims.interval([1.0, 2.0])
    assert np.allclose(bars[0], [[[mean - half, 0], [mean + half, 0]]])
    assert np.allclose(bars[2], [[[-3, 2], [-3, 2]]])


def test_reproduce_runs_the_grid_once(tmp_path, monkeypatch, capsys):
    """Real searches and trainings, the smallest there are; a run that was stopped goes on, one
    that is complete is kept."""
    small = CLAIMS.scales["laptop"]._replace(
        search=[*SMALL_SEARCH, "--nodes", "1", "--batch_size", "300", "--arch_learning_rate", "1",
                "--epochs", "1"], more={"softmax2": grids.TWO, "sigmoid2": grids.TWO},
        train=[*SMALL_EVAL, "--epochs", "1"])
    monkeypatch.setitem(CLAIMS.scales, "laptop", small)

    def forked(command, **_):
        name, *arguments = command[1:]  # without that of Python
        code, out, err = ended(*fork(tmp_path, os.path.basename(name)[:-3], *arguments,
                                     memory=8 << 30))
        return Namespace(returncode=code, stdout=out, stderr=err)

    monkeypatch.setattr(many_runs.subprocess, "run", forked)
    tasks = reproduce.searches(CLAIMS, "laptop", str(tmp_path), 1)
    assert len(tasks) == 9
    assert len(reproduce.searches(CLAIMS, "laptop", "", 5)) == 6 * 5 + 2 + 2 + 3
    first, add = tasks["softmax", CLAIMS.first], runs.Run.add

    def add_and_stop(self, *others, **figures):
        add(self, *others, **figures)
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(runs.Run, "add", add_and_stop)
        assert call(train_search, patch, *first.flags, "--runs", tmp_path, "--name",
                    os.path.basename(first.folder)) == 130
    assert not many_runs.complete(*first)
    command = ["--runs", tmp_path, "--output", tmp_path / "out", "--jobs", 2, "--seeds", 1]
    assert call(reproduce, monkeypatch, *command) == 0
    out = capsys.readouterr().out
    assert "9 of 9 runs to do, then at most 10 others" in out and "0 of these left" in out
    text = (tmp_path / "out" / "reproduction.md").read_text()
    assert text.count("| undecided |") == len(CLAIMS.claims) - 1  # (f) has three runs
    assert "seeds 11 to 11" in text and "L01, w01 = 15" in text
    assert f"torch {torch.__version__}" in text
    for name in ("dominant", "heatmap", "gap"):
        assert f"figures/reproduction_{name}.png" in text
        assert_picture(tmp_path / "out" / "figures" / f"reproduction_{name}.png")
    others = [folder for folder in os.listdir(tmp_path) if "-random-" in folder]
    for folder in others:
        config = json.loads((tmp_path / folder / "config.json").read_text())
        assert len(genotypes.get(config["settings"]["arch"]).normal) == int(folder.split("-")[3])
    assert others
    (tmp_path / os.path.basename(first.folder) / "report.md").unlink()  # killed before its end
    assert not many_runs.complete(*first)
    assert call(reproduce, monkeypatch, *command) == 0 and many_runs.complete(*first)
    with monkeypatch.context() as patch:
        patch.setattr(many_runs.subprocess, "run", None)  # all is complete: nothing runs again
        assert call(reproduce, patch, *command) == 0
    assert (tmp_path / "out" / "reproduction.md").read_text() == text
    trained = reproduce.trainings(CLAIMS, "laptop", tasks)["l01", CLAIMS.first]
    other = tmp_path / "other.json"  # the search was done again, and has found another one
    other.write_text(genotypes.to_json(genotypes.get("FairDARTS_a")))
    with pytest.raises(flags.UserError, match="has --arch Genotype"):
        many_runs.complete(*trained._replace(flags=[*trained.flags, "--arch", str(other)]))
    monkeypatch.setitem(CLAIMS.scales, "laptop", small._replace(
        search=[*small.search, "--seed", "5", "--init_channels", "4"]))
    capsys.readouterr()
    assert call(reproduce, monkeypatch, *command) == 2
    assert ("laptop-softmax-11' has --init_channels 2, not 4: remove it, or give other --runs"
            in capsys.readouterr().err)


def test_random_search_ranks_what_it_draws(tmp_path, monkeypatch, capsys):
    small = CLAIMS.scales["laptop"]._replace(train=[*SMALL_EVAL, "--epochs", "1"])
    monkeypatch.setitem(CLAIMS.scales, "laptop", small)

    def forked(command, **_):
        code, out, err = ended(*fork(tmp_path, os.path.basename(command[1])[:-3], *command[2:],
                                     memory=8 << 30))
        return Namespace(returncode=code, stdout=out, stderr=err)

    monkeypatch.setattr(many_runs.subprocess, "run", forked)
    command = ["--random", 3, "--skips", 2, "--runs", tmp_path, "--output", tmp_path]
    assert call(reproduce, monkeypatch, *command) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "MACs" in line]
    accuracies = [float(line.split("%")[0]) for line in lines]
    assert len(lines) == 3 and accuracies == sorted(accuracies, reverse=True)
    text = (tmp_path / "random.md").read_text()
    sizes = []
    for folder in tmp_path.glob("laptop-drawn-*-eval"):
        settings = json.loads((folder / "config.json").read_text())["settings"]
        assert settings["arch"] in text and str(folder) in text
        genotype = genotypes.get(settings["arch"])
        assert [edge.op for edge in genotype.normal].count("skip_connect") == 2
        log = (folder / "log.txt").read_text()  # what the training counted
        sizes.append(float(re.search(r"([\d.]+) M MACs", log)[1]))
        assert reproduce.macs_of(CLAIMS, "laptop", genotype) == pytest.approx(sizes[-1], abs=0.006)
    assert len(sizes) == 3
    with monkeypatch.context() as patch:
        patch.setattr(many_runs.subprocess, "run", None)
        assert call(reproduce, patch, *command) == 0  # all is there
    for wrong, message in ((["--skips", 2], "--skips is of --random"),
                           (["--random", 1, "--grid", "cures"], "--grid is not of --random"),
                           (["--random", 1, "--macs", "5"], "LEAST-MOST"),
                           (["--random", 1, "--macs", "2-1"], "LEAST-MOST"),
                           (["--random", 1, "--output", os.devnull], os.devnull),
                           (["--seeds", 1, "--output", os.devnull], os.devnull),
                           (["--random", 1, "--macs", "900-901"], "none of 500")):
        with monkeypatch.context() as patch:
            patch.setattr(reproduce, "macs_of", lambda *_: 1.0)
            assert message in refused(capsys, patch, reproduce, *wrong)


# ---------------------------------------------------------------- runs that cannot be lost

LONG = {"search": ["train_search", *SMALL_SEARCH, "--arch_learning_rate", "0.2",
                   "--epochs", "6"],
        "eval": ["train_eval", *SMALL_EVAL, "--arch", "FairDARTS_a", "--epochs", "4",
                 "--drop_path_prob", "0.3"]}


class Launched:
    """A script in a child of the fork server, see `fork`, handled like a subprocess.Popen."""

    def __init__(self, folder, script, *arguments):
        self.child, self.files = fork(folder, script, *arguments)
        self.pid, self.kill, self.wait = self.child.pid, self.child.kill, self.child.join

    def poll(self):
        return self.child.exitcode

    def wait_for(self, start):
        """Until it has printed a line that begins with `start`."""
        while "\n" + start not in "\n" + self.text(self.files[0]):
            assert self.poll() is None
            time.sleep(0.01)

    def text(self, file):
        return file.read_text() if file.exists() else ""

    def communicate(self):
        self.wait()
        return [self.text(file) for file in self.files]


def side_by_side(function):
    """function(kind) of both kinds at once."""
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(function, LONG))


@pytest.fixture(scope="module")
def whole_runs(tmp_path_factory):
    """A search and an evaluation that nothing interrupts."""
    root = tmp_path_factory.mktemp("whole")

    def run(kind):
        process = Launched(root, *LONG[kind], "--runs", root, "--name", kind)
        process.wait()
        assert process.poll() == 0

    side_by_side(run)
    return root


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


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if torch.is_tensor(a) else a == b


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
    monkeypatch.setattr(train_search, "search", lambda run, s, dataset: len(run.rows))
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


def new_run(tmp_path, **settings):
    settings = {"name": "a", "runs": str(tmp_path), "dataset": "digits", "epochs": 2,
                "learning_rate": 1, "amp": False, "checkpoint_minutes": 10, "log_every": 25,
                "seed": 0, **settings}
    return runs.Run.create("train_search", settings, fingerprint="", classes=[], shape=[])


def test_signals_wait_for_the_end_of_a_step_or_a_batch(tmp_path, capsys):
    former = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    run, done = new_run(tmp_path), []
    with pytest.raises(SystemExit, match="143"), run:
        run.track()
        for _ in run.epochs():
            for step in run.steps(3):
                os.kill(os.getpid(), signal.SIGTERM)  # one or two: the step is done
                os.kill(os.getpid(), signal.SIGTERM)
                run.add(loss=torch.tensor(2.0 + step))
                done.append(step)
    assert done == [0] and "stopped in epoch 1 after step 1 of 3" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="130"), runs.Run.open(run.folder, "train_search") as run:
        run.resume(run.config["settings"])
        run.track()
        for _ in run.epochs():
            for step in run.steps(3):
                run.add(loss=torch.tensor(2.0 + step))
            assert run.means() == {"loss": 3.0}  # what the first process did is counted
            for batch in run.watched(range(5)):
                os.kill(os.getpid(), signal.SIGINT)
                done.append(batch)
    assert done == [0, 0] and "after step 3 of 3" in capsys.readouterr().out
    with pytest.raises(KeyboardInterrupt), runs.Run.open(run.folder, "train_search") as run:
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
        steps = runs.Run.steps

        def second_epoch_fails(self, count):
            if len(self.rows) == 1:
                def fail(*arguments):
                    raise full
                if stage == "open":
                    patch.setattr(genotypes, "open", fail, raising=False)
                elif stage == "write":
                    patch.setattr(
                        genotypes, "open",
                        lambda path, mode="r": FullDisk(path, "x") if "x" in mode else open(path),
                        raising=False)
                elif stage == "fsync":
                    patch.setattr(os, "fsync", fail)
                elif stage == "rename":
                    patch.setattr(os, "replace", fail)
                else:  # the kernel itself refuses, in the middle of the file
                    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, resource.RLIM_INFINITY))
            return steps(self, count)

        patch.setattr(runs.Run, "steps", second_epoch_fails)
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
    with runs.Run.open(str(folder), "train_search") as run:
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


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("owned",)


def test_bad_checkpoints_are_refused(tmp_path, monkeypatch, capsys):
    assert call(train_search, monkeypatch, *SMALL_SEARCH, "--threshold", 0, "--runs", tmp_path,
                "--name", "a") == 0
    assert call(train_eval, monkeypatch, *SMALL_EVAL, *EVAL, "--epochs", 1, "--runs", tmp_path,
                "--name", "b") == 0
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
             "it is of train_search.py, version 0, not of train_search.py, version 3"),
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


# ---------------------------------------------------------------- hostile files and machines

TINY_SEARCH = [*SMALL_SEARCH, "--nodes", "1", "--batch_size", "300", "--threshold", "0",
               "--primitives", "skip_connect,sep_conv_3x3", "--epochs", "1", "--device", "cpu"]
TINY_EVAL = [*SMALL_EVAL, "--arch", "FairDARTS_a", "--init_channels", "2", "--layers", "3",
             "--batch_size", "600", "--epochs", "1", "--device", "cpu"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Finished searches a, b (as a, another id), c (another seed); trainings d, e (as d)."""
    root = tmp_path_factory.mktemp("finished")
    for name, seed in ("a", 0), ("b", 0), ("c", 1), ("d", 0), ("e", 0):
        script, tiny = (train_eval, TINY_EVAL) if name in "de" else (train_search, TINY_SEARCH)
        with pytest.MonkeyPatch.context() as patch:
            assert call(script, patch, *tiny, "--runs", root, "--name", name, "--seed", seed) == 0
    return root


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
    assert lines[0].startswith(f"{script.__name__}.py: error: ")
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
        entry = {"train_search": train_search.search_or_resume, "visualize": visualize.visualize,
                 "train_eval": train_eval.train_or_test, "reproduce": reproduce.reproduce,
                 "predict": predict.predict_pictures}[script]
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
    """Start a script in a child that is forked from a process which has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "sklearn.datasets"])
    files = [tmp_path / f"stream_{secrets.token_hex(4)}" for _ in range(2)]
    child = context.Process(target=limited,
                            args=(script, arguments, files, memory, seconds, setup))
    child.start()
    return child, files


def ended(child, files):
    """Exit code, stdout and stderr of such a child; 99: an unexpected exception, -14: out of
    time."""
    child.join()
    texts = [file.read_text(errors="backslashreplace") if file.exists() else "" for file in files]
    for file in files:
        file.unlink(missing_ok=True)
    return child.exitcode, *texts


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
    genotypes.write_whole(link, "new")
    assert not link.is_symlink() and link.read_text() == "new"
    monkeypatch.setattr(secrets, "token_hex", lambda _: "00")  # even if the name is guessed
    (tmp_path / "file.00.part").symlink_to(target)
    with pytest.raises(FileExistsError):
        genotypes.write_whole(tmp_path / "file", "new")
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
    first = runs.Run.create("train_search", {
        **train_search.flags().defaults(), "dataset": "digits", "runs": str(tmp_path),
        "name": "exp.part"}, fingerprint="", classes=[], shape=[])
    assert call(train_search, monkeypatch, *TINY_SEARCH, "--runs", tmp_path, "--name", "exp") == 0
    assert os.listdir(first.folder) == ["config.json"] and (tmp_path / "exp").is_dir()
    with ThreadPoolExecutor(3) as pool:
        folders = list(pool.map(lambda _: new_run(tmp_path / "many", name=None).folder, range(3)))
    assert len(set(folders)) == 3 == len(os.listdir(tmp_path / "many"))


# ---- 3: a run that is moved away

@pytest.mark.parametrize("replaced, command", [
    (True, train_search), (False, train_search), (True, train_eval)])
def test_a_run_that_was_moved_stops(replaced, command, tmp_path, monkeypatch, capsys):
    folder, moved, add = tmp_path / "a", tmp_path / "moved", runs.Run.add

    def move(self, *others, **figures):
        if not moved.exists():
            folder.rename(moved)
            if replaced:
                folder.mkdir()
        add(self, *others, **figures)

    monkeypatch.setattr(runs.Run, "add", move)
    tiny = TINY_SEARCH if command is train_search else TINY_EVAL
    refused(capsys, monkeypatch, command, *tiny, "--runs", tmp_path, "--name", "a")
    assert not replaced or list(folder.iterdir()) == []
    assert sorted(content(moved)) == ["config.json", "log.txt"]
    monkeypatch.setattr(runs.Run, "add", add)
    assert call(command, monkeypatch, "--resume", moved) == 0  # it goes on where it is


# ---- 4: files of another run

def sealed(state):
    """`state` as the bytes of a checkpoint, with a checksum that is right."""
    if not isinstance(state, bytes):
        buffer = io.BytesIO()
        torch.save(state, buffer)
        state = buffer.getvalue()
    return state + hashlib.sha256(state).digest()


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

@pytest.mark.parametrize("owner, name", [(os, "replace"), (os, "fsync"), (genotypes, "open"),
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
    ("genotype.json", lambda run: genotypes.to_json(genotypes.FairNAS_A).encode()),
    ("genotype.json", lambda run: genotypes.to_json(
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
    assert name in refused(capsys, monkeypatch, visualize, folder)
    assert content(tmp_path) == before  # no code ran, nothing was drawn


# ---- 8: checkpoints and configs that were made to harm

def deep(levels):
    return [deep(levels - 1)] if levels else []


def leaves(state, *places):
    """`state` with other values: (path of keys, value) pairs; a function is called on what is
    there, ... removes it."""
    state = copy.deepcopy(state)
    for keys, value in places:
        inner = state
        for key in keys[:-1]:
            inner = inner[key]
        if value is ...:
            del inner[keys[-1]]
        else:
            inner[keys[-1]] = value(inner[keys[-1]]) if callable(value) else value
    return state


EDITED = [  # of config.json: ({setting: value} or a whole text, the message)
    ({"batch_size": 9999}, "--batch_size"), ({"train_portion": 1e-5}, ""),
    ({"space": "s2"}, ""), ({"primitives": "skip_connect,max_pool_3x3"}, ""),
    ({"data": "a\0b"}, "--data: expected a path"), ({"data": "\ud800"}, "expected a path"),
    ({"runs": "a\0b"}, "expected a path"), ({"name": "\ud800"}, "expected a path"),
    ({"dataset": "\ud800"}, "unknown"), ({"w01": 10**400}, ""), ({"epochs": 10**400}, ""),
    ({"layers": 10**9}, ""), ({"init_channels": 10**9}, ""),
    ({"nodes": 10**9}, "from 1 to 4"), ({"seed": 2**63}, "--seed"),
    ({"device": "x"}, "--device"), ({"device": "cpu:9999999999"}, "--device"),
    ({"device": "meta"}, "--device"), ({"primitives": "x," * 10000}, "unknown"),
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
        ("version", True), ("version", [2]), ("script", []), ("script", "\ud800"), ("threads", "x"))
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
    (train_search, ["--device", "meta"], "--device"),
    (train_search, ["--dataset", "folder", "--data", "x\ny"], ""),
    (train_search, ["--image_size", "1" * 401], ""), (train_search, ["--x\ny"], "unknown"),
    (train_search, ["x\ny"], "unexpected"), (train_search, ["--", "x"], ""),
    (train_search, ["--epochs", "1__0"], "--epochs"),
    (train_search, [*DIGITS, "--runs", "x/" * 3000], ""),
    (train_search, [*DIGITS, "--train_portion", "1e-5"], "it takes 2 or more"),
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
        patch.setattr(runs.Run, "add", fail)
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
    monkeypatch.setattr(train_eval, "build", None)
    assert "init_channels" in refused(capsys, monkeypatch, train_eval, "--evaluate", path.parent)


# ---------------------------------------------------- resting gates, the parts of the gap

@pytest.mark.parametrize("penalty, w01, decay", [
    ("l2", 10.0, 1e-3), ("l2", 15.0, 1e-3), ("l2", 3.0, 1e-3), ("l1", 10.0, 1e-3),
    ("l2", 1.5, 1e-3), ("l2", 10.0, 1e-2)])
def test_resting_gate_is_where_a_long_descent_ends(penalty, w01, decay):
    alphas = torch.full((196,), 0.3, dtype=torch.float64)
    alphas[::2] *= -1
    alphas.requires_grad_()
    for rate, steps in ((0.05, 400), (0.005, 400), (0.0005, 400)):
        adam = torch.optim.Adam([alphas], rate, weight_decay=decay)
        for _ in range(steps):
            adam.zero_grad()
            (w01 * fair_darts.PENALTIES[penalty](torch.sigmoid(alphas))).backward()
            adam.step()
    rest = fair_darts.resting_gate(w01, 196, decay, fair_darts.PENALTIES[penalty])
    gates = torch.sigmoid(alphas.detach())
    assert (gates[1::2] - rest).abs().max() < 1e-3 and (gates[::2] - (1 - rest)).abs().max() < 1e-3
    if rest > 0.5:  # the formula, literally
        slope = 2 * (rest - 0.5) if penalty == "l2" else 1
        assert w01 * slope * rest * (1 - rest) / 196 == pytest.approx(
            decay * math.log(rest / (1 - rest)), rel=1e-6)
        assert fair_darts.needed_w01(rest, 196, decay, fair_darts.PENALTIES[penalty]
                                     ) == pytest.approx(w01, rel=1e-6)


def test_published_gates_come_to_rest_as_computed():
    reduce = np.array(GATES_A_REDUCE)
    rest = fair_darts.resting_gate(10, 196, 1e-3)
    assert rest == pytest.approx(0.93564, abs=5e-6)
    assert np.median(reduce[reduce > 0.5]) == pytest.approx(rest, abs=0.002)
    assert np.median(reduce[reduce < 0.5]) == pytest.approx(1 - rest, abs=0.002)
    # medians of other published searches with w01 = 15
    for median in (0.9544, 0.9541, 0.9542, 0.9541):
        assert median == pytest.approx(fair_darts.resting_gate(15, 196, 1e-3), abs=0.002)
    assert fair_darts.needed_w01(0.85, 196, 1e-3) == pytest.approx(3.81, abs=0.005)
    assert fair_darts.resting_gate(1.56, 196, 1e-3) == 0.5
    assert fair_darts.resting_gate(1.58, 196, 1e-3) > 0.5
    assert fair_darts.resting_gate(10, 196, 0) == 1.0 and fair_darts.resting_gate(0, 196, 1) == 0.5


@pytest.mark.parametrize("more, message", [
    (["--w01", 0.2], "come to rest at 0.500 and 0.500, short of --threshold 0.85; --w01 1.36"),
    (["--w01", 1], "short of"), (["--w01", 2], None), (["--threshold", 1], "lower --threshold"),
    (["--w01", 0, "--threshold", 0], None), (["--w01", 0, "--gate", "softmax"], None)])
def test_a_search_that_cannot_reach_its_threshold_says_so(more, message, tmp_path, monkeypatch,
                                                          capsys):
    monkeypatch.setattr(runs.Run, "epochs", lambda run: iter(()))  # 70 gates
    monkeypatch.setattr(train_search, "derive", lambda *_: 0)
    call(train_search, monkeypatch, *SMALL_SEARCH, *more, "--runs", tmp_path)
    out = capsys.readouterr().out
    assert (message in out) if message else "come to rest" not in out


def test_encoding_gap():
    dice = torch.Generator().manual_seed(0)
    g = torch.rand(28, 7, generator=dice, dtype=torch.float64)
    literal = sum(min(z, 1 - z) for z in g.flatten().tolist()) / 196
    assert fair_darts.encoding_gap(g).item() == pytest.approx(literal / 0.5)
    assert literal == pytest.approx(0.5 + fair_darts.zero_one_loss_l1(g).item())
    w = torch.softmax(torch.randn(28, 7, generator=dice, dtype=torch.float64), 1)
    literal = sum((1 - max(row)) + sum(row) - max(row) for row in w.tolist()) / 196
    assert fair_darts.encoding_gap(w, "softmax").item() == pytest.approx(
        literal / (2 / 7 * (1 - 1 / 7)))
    for kind in ("sigmoid", "softmax"):
        start = fair_darts.gates(torch.zeros(28, 7), kind)
        assert fair_darts.encoding_gap(start, kind) == 1
        assert fair_darts.encoding_gap(fair_darts.rounded(start, kind), kind) == 0
        network = model_search.NetworkS2(10, 3, kind, 0.1, 8)  # some choices are not there
        [chain] = network.compute_gates()
        assert fair_darts.encoding_gap(chain, kind, network.present).item() == pytest.approx(
            1, abs=0.01)


def test_parts_of_the_gap_sum_up_to_it():
    for seed in range(50):
        dice = random.Random(seed)
        g, ge, gs, r, re, s = (dice.uniform(0, 100) for _ in range(6))
        parts = fair_darts.split_gap(g, ge, gs, r, re, s)
        assert sum(parts) == pytest.approx(g - s, abs=1e-12)
    assert fair_darts.split_gap(9, 9, 9, 4, 4, 4) == (5, 0, 0)  # rounding alone
    assert fair_darts.split_gap(9, 4, 4, 9, 4, 4) == (0, 5, 0)  # the choice of edges alone
    assert fair_darts.split_gap(9, 9, 4, 9, 9, 4) == (0, 0, 5)


def test_kept_edges():
    gates = torch.rand(14, 7, generator=torch.Generator().manual_seed(3))
    kept = fair_darts.kept_edges(gates)
    pairs = [(node, source) for node in range(2, 6) for source in range(node)]
    wanted = {(edge.node, edge.source) for edge, _ in fair_darts.strongest(gates)}
    assert [pair for pair, k in zip(pairs, kept.flatten().tolist()) if k] == sorted(wanted)
    assert kept.shape == (14, 1) and kept.sum() == 8 == len(wanted)


# ---------------------------------------------------------------- several processes

class Rank:
    """Makes a child of `fork` one of several ranks."""

    def __init__(self, rank, size, port):
        self.environment = dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size),
                                MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))

    def __call__(self, entry):
        os.environ.update(self.environment)
        return entry


class Call(Rank):
    """The same, which calls `function` in place of a script."""

    def __init__(self, rank, size, port, function, *arguments):
        super().__init__(rank, size, port)
        self.function, self.arguments = function, arguments

    def __call__(self, entry):
        os.environ.update(self.environment)
        return lambda: self.function(*self.arguments)


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start_ranks(tmp_path, size, script, *arguments):
    port = free_port()
    return [fork(tmp_path, script, *arguments, setup=Rank(rank, size, port))
            for rank in range(size)]


def on_ranks(tmp_path, size, function, *arguments):
    """Call function(*arguments, folder) on `size` ranks; what each saved as `rank`.pt."""
    folder = tmp_path / f"{function.__name__}_{size}_{secrets.token_hex(4)}"
    folder.mkdir()
    port = free_port()
    children = [fork(tmp_path, "train_search", setup=Call(rank, size, port, function, *arguments,
                                                          folder)) for rank in range(size)]
    for child in children:
        assert ended(*child)[::2] == (0, "")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(size)]


def two_level_steps(mode, folder):
    """Gradients of first and second order, and the weights after five steps, in float64."""
    devices.choose_device("cpu")
    torch.manual_seed(0)
    network = model_search.Network(2, 10, 3, 2).double()
    if mode == "sync":
        parallel.synchronize(network)
    network.train(mode != "eval")
    with torch.no_grad():  # so that batch norm in eval mode is no identity
        for buffer in network.buffers():
            buffer.copy_(torch.rand(buffer.shape) + 0.5)
    sgd = torch.optim.SGD(network.weights(), 0.1, 0.9, weight_decay=3e-4)
    architect = fair_darts.Architect(network, 0.1)
    images, labels = batch(8, 12)
    images, labels = images.double(), labels
    (x, valid_x), (y, valid_y) = images.split(6), labels.split(6)
    x, valid_x, y, valid_y = (parallel.mine(t) for t in (x, valid_x, y, valid_y))
    result = []
    for step in range(5):
        if step in (0, 3):
            result += architect.unrolled_gradient(valid_x, valid_y, x, y, sgd)[0]
        with fair_darts.frozen(architect.weights):
            loss = F.cross_entropy(network(valid_x), valid_y)
            result += architect._gradients(loss + network.alphas[0].sum(), list(network.alphas))
        architect.step(valid_x, valid_y)
        sgd.zero_grad()
        F.cross_entropy(network(x), y).backward()
        parallel.average_gradients(network.weights())
        result += [w.grad.clone() for w in network.weights()]
        sgd.step()
    parallel.average_statistics(network)
    result += [t.detach() for t in network.state_dict().values()]
    torch.save(result, folder / f"{parallel.rank()}.pt")


@pytest.mark.parametrize("size, mode", [(2, "eval"), (3, "eval"), (2, "sync")])
def test_ranks_compute_what_one_process_does(size, mode, tmp_path):
    torch.set_num_threads(1)
    two_level_steps(mode, tmp_path)
    expected = torch.load(tmp_path / "0.pt", weights_only=True)
    every = on_ranks(tmp_path, size, two_level_steps, mode)
    for found in every:
        assert len(found) == len(expected)
        for a, b, first in zip(found, expected, every[0]):
            assert close(a, b, 1e-10) and torch.equal(a, first)


def scripts_on_a_rank(arguments, folder):
    """A search or a training whose networks are saved after each epoch."""
    end_epoch = runs.Run.end_epoch

    def save(run, row, line):
        torch.save([run.parts["network"].state_dict(), torch.get_rng_state(),
                    {key: value for key, value in row.items() if "accuracy" in key}],
                   folder / f"{parallel.rank()}.pt")
        end_epoch(run, row, line)

    runs.Run.end_epoch = save
    script = train_eval if "--arch" in arguments else train_search
    sys.argv = [script.__name__ + ".py", *arguments]
    (script.train_or_test if script is train_eval else script.search_or_resume)()


@pytest.mark.parametrize("tiny", [TINY_SEARCH, [*TINY_EVAL, "--drop_path_prob", "0.5"]])
def test_ranks_stay_equal(tiny, tmp_path):
    every = on_ranks(tmp_path, 2, scripts_on_a_rank,
                     [*map(str, tiny), "--runs", str(tmp_path), "--name", "a", "--epochs", "2"])
    (first, random_state, accuracies), *others = every
    for state, other_state, other_accuracies in others:
        assert all(torch.equal(state[name], first[name]) for name in first)
        assert torch.equal(other_state, random_state)
        assert {k: v for k, v in other_accuracies.items() if "train" not in k} == {
            k: v for k, v in accuracies.items() if "train" not in k}


@pytest.mark.parametrize("size", [2, 3, 4])
def test_parts_of_ranks_are_the_whole(size, monkeypatch):
    images = torch.randint(256, (50, 3, 8, 8), dtype=torch.uint8)
    mean, std = torch.zeros(3), torch.ones(3)

    def batches():
        return data.Batches(images, torch.arange(50), mean, std, 12, 2, True, 3, data.generator(0))

    def of_rank(rank, make):
        monkeypatch.setenv("WORLD_SIZE", str(size))
        monkeypatch.setenv("RANK", str(rank))
        made = make()
        monkeypatch.undo()
        return made

    whole, parts = batches(), [of_rank(rank, batches) for rank in range(size)]
    for _ in range(9):  # over two passes
        x, y = whole.next()
        found = [of_rank(rank, part.next) for rank, part in enumerate(parts)]
        assert torch.equal(torch.cat([x for x, _ in found]), x)
        assert torch.equal(torch.cat([y for _, y in found]), y)
    found = [of_rank(rank, lambda: list(data.in_order(images, torch.arange(50), mean, std, 12)))
             for rank in range(size)]
    seen = torch.cat([labels for part in found for _, labels in part])
    assert sorted(seen.tolist()) == list(range(50)) and not all(len(part) == 5 for part in found)


def accuracies_on_a_rank(folder):
    devices.choose_device("cpu")
    torch.manual_seed(0)
    network = model_eval.NetworkCIFAR(genotypes.FairDARTS_a, 4, 10, 3, False)
    images = torch.randint(256, (1000, 3, 8, 8), dtype=torch.uint8)  # four batches of at most 256
    labels, mean, std = torch.randint(10, (1000,)), torch.full((3,), 99.), torch.full((3,), 50.)
    torch.save(train_eval.test(network, data.in_order(images, labels, mean, std)),
               folder / f"{parallel.rank()}.pt")


def test_evaluation_over_ranks(tmp_path):
    accuracies_on_a_rank(tmp_path)
    expected = torch.load(tmp_path / "0.pt", weights_only=True)
    for found in on_ranks(tmp_path, 3, accuracies_on_a_rank):
        assert found[1:] == expected[1:] and abs(found[0] - expected[0]) < 1e-5


def test_a_killed_rank_ends_the_job_and_it_goes_on(tmp_path, monkeypatch, capsys):
    tiny = [*TINY_SEARCH, "--runs", tmp_path, "--name", "a", "--epochs", 500]
    children = start_ranks(tmp_path, 2, "train_search", *tiny)
    while not (tmp_path / "a" / "checkpoint.pt").exists():
        time.sleep(0.05)
    os.kill(children[1][0].pid, signal.SIGKILL)
    code, _, error = ended(*children[0])
    ended(*children[1])
    assert code == 2 and error.count("\n") == 1
    assert "rank 0 has lost another one" in error and "is whole, go on with: torchrun" in error
    assert not list((tmp_path / "a").glob("*.part"))
    done = len(table(tmp_path / "a"))
    for size in (2, 3, 1):
        done += 1
        path = tmp_path / "a" / "config.json"
        config = json.loads(path.read_text())
        config["settings"]["epochs"] = done
        path.write_text(json.dumps(config))
        state = torch.load(tmp_path / "a" / "checkpoint.pt", weights_only=True)
        state["settings"]["epochs"] = done
        for child in start_ranks(tmp_path, size, "train_search", "--resume", tmp_path / "a"):
            code, _, error = ended(*child)
            assert code == 0, error
            assert ("not bit for bit" in error) == (size != 2 and "note" in error)
        assert len(table(tmp_path / "a")) == done


def test_errors_on_ranks(tmp_path):
    for arguments, message in ((["--batch_size", "301"], "give a multiple of 2"),
                               (["--w01", "x"], "--w01")):
        children = start_ranks(tmp_path, 2, "train_search", *TINY_SEARCH, "--runs", tmp_path,
                               *arguments)
        for rank, child in enumerate(children):
            code, _, error = ended(*child)
            assert code == 2 and error.count("\n") == 1 and message in error
            assert ("rank 1: " in error) == (rank == 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_torchrun_is_stopped_and_goes_on(number, tmp_path):
    tiny = [*TINY_SEARCH, "--runs", tmp_path, "--name", "a", "--epochs", "500"]
    child = subprocess.Popen([sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2",
                              "--master-port", str(free_port()), "train_search.py",
                              *map(str, tiny)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                             text=True)
    while not (tmp_path / "a" / "checkpoint.pt").exists() and child.poll() is None:
        time.sleep(0.05)
    child.send_signal(number)
    out, error = child.communicate(timeout=60)
    assert child.returncode and "stopped in epoch" in out, error
    assert f"torchrun --nproc-per-node=2 train_search.py --resume {tmp_path / 'a'}" in out
    state = torch.load(tmp_path / "a" / "checkpoint.pt", weights_only=True)
    assert len(state["rows"]) >= 1


# ---------------------------------------------------------------- pictures read from files

@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """Ten classes of pictures of odd sizes, grey, in CMYK, with a palette."""
    root, dice = tmp_path_factory.mktemp("imagenet"), np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 3)):
        for label in range(10):
            folder = root / part / f"class {label}"
            folder.mkdir(parents=True)
            for i in range(count):
                size = dice.integers(20, 130, 2)
                pixels = dice.integers(0, 99, (*size, 3), dtype=np.uint8) + 15 * np.uint8(label)
                picture = Image.fromarray(pixels).convert(["RGB", "L", "CMYK", "P"][i % 4])
                picture.save(folder / f"{i}.{'png' if i % 4 == 3 else 'jpg'}")
    return root


STREAMED = ["--dataset", "imagenet", "--image_size", 72, "--epochs", 2, "--batch_size", 16,
            "--device", "cpu", "--checkpoint_minutes", 0]


@pytest.mark.parametrize("script, flags_of", [
    (train_eval, ["--arch", "FairDARTS_a", "--init_channels", 4, "--layers", 3]),
    (train_eval, ["--arch", "FairNAS_A", "--width", 0.1, "--accumulate", 2]),
    (train_search, ["--space", "s2", "--width", 0.1, "--threshold", 0, "--figures_every", 0,
                    "--gap_every", 0, "--train_fraction", 0.3, "--valid_fraction", 0.2,
                    "--batch_size", 8])])
def test_scripts_on_imagenet(script, flags_of, imagenet, tmp_path, monkeypatch, capsys):
    common = [*STREAMED, *flags_of, "--data", imagenet, "--runs", tmp_path]
    stop_at = 3  # in the second epoch of the search, in the first of the trainings
    assert call(script, monkeypatch, *common, "--name", "whole") == 0
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert config["shape"] == [3, 72, 72] and len(config["classes"]) == 10
    with monkeypatch.context() as patch:
        add, calls = runs.Run.add, []

        def stop(self, *others, **figures):
            add(self, *others, **figures)
            calls.append(1)
            if len(calls) == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)

        patch.setattr(runs.Run, "add", stop)
        assert call(script, patch, *common, "--name", "a", "--workers", 0) == 143
    assert call(script, monkeypatch, "--resume", tmp_path / "a", "--workers", 1) == 0
    assert not multiprocessing.active_children()
    assert table(tmp_path / "a") == table(tmp_path / "whole")  # whatever the workers
    states = [torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)["network"]
              for name in ("a", "whole")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    if script is train_eval:
        rows = table(tmp_path / "a")
        assert all(float(row["test_top5"]) >= float(row["test_accuracy"]) for row in rows)
        rates = [float(row["learning_rate"]) for row in rows]
        assert config["settings"]["gamma"] == 0.97 and rates == [0.1, 0.1 * 0.97]
        assert call(script, monkeypatch, "--evaluate", tmp_path / "a") == 0
        assert "top-5" in capsys.readouterr().out


def test_streamed_pictures_are_those_in_memory(pictures):
    tensors = data.load("folder", str(pictures), 16)
    for workers in (0, 2):
        files = data.load("folder", str(pictures), 16, stream=True, workers=workers)
        assert isinstance(files.images, pictures_module.Files) and files.classes == tensors.classes
        one, other = [data.Batches(d.images, d.labels, tensors.mean, tensors.std, 7, 2, True, 3,
                                   data.generator(0)) for d in (tensors, files)]
        for _ in range(9):  # over two passes
            (x, y), (u, v) = one.next(), other.next()
            assert torch.equal(x, u) and torch.equal(y, v)
        state = other.state_dict()
        expected, resumed = other.next()[0], data.Batches(
            files.images, files.labels, tensors.mean, tensors.std, 7, 2, True, 3, data.generator(9))
        resumed.load_state_dict(state)
        assert torch.equal(resumed.next()[0], expected)
        for one, other in zip(data.in_order(tensors.test_images, tensors.test_labels, tensors.mean,
                                            tensors.std, 5),
                              data.in_order(files.test_images, files.test_labels, tensors.mean,
                                            tensors.std, 5), strict=True):
            assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
    some = files.images[torch.tensor([3, 1])]
    assert len(some) == 2 and some.paths[0] == files.images.paths[3]


def test_large_pictures_are_cropped_at_random(imagenet):
    files = data.load("imagenet", str(imagenet), 72).images
    rows = torch.tensor([[4, 1], [4, 2], [4, 1]])
    [drawn], [still] = files.read([rows], random=True), files.read([rows], random=False)
    assert drawn.shape == (3, 3, 72, 72) and drawn.dtype == torch.uint8
    assert torch.equal(drawn[0], drawn[2]) and not torch.equal(drawn[0], drawn[1])
    assert torch.equal(still[0], still[1])
    picture = Image.open(files.paths[4]).convert("RGB")
    from torchvision import transforms
    fit = transforms.Compose([transforms.Resize(72 * 256 // 224), transforms.CenterCrop(72)])
    wanted = transforms.functional.pil_to_tensor(fit(picture)).int()
    assert (still[0].int() - wanted).abs().float().mean() < 1  # another resize, the same crop


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_file_of_a_stream_is_named(workers, imagenet, tmp_path, monkeypatch, capsys):
    shutil.copytree(imagenet, tmp_path / "data")
    broken = tmp_path / "data" / "train" / "class 3" / "0.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    common = [*STREAMED, "--arch", "FairNAS_A", "--width", 0.1, "--data", tmp_path / "data",
              "--runs", tmp_path, "--workers", workers, "--epochs", 1]
    error = refused(capsys, monkeypatch, train_eval, *common, "--name", "a")
    assert str(broken) in error and "--skip_bad_images" in error
    assert call(train_eval, monkeypatch, *common, "--name", "b", "--skip_bad_images") == 0


def test_a_folder_that_does_not_fit_is_refused(pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pictures_module, "memory", lambda: 20000)
    arguments = ["--dataset", "folder", "--data", pictures, "--image_size", 16, "--batch_size", 4]
    with monkeypatch.context() as patch:
        patch.setattr(pictures_module, "open_picture", None)  # nothing is read
        error = refused(capsys, patch, train_search, *arguments, "--runs", tmp_path)
    assert "32 pictures of 16x16 take 0.0 GiB" in error and "--stream" in error
    assert call(train_search, monkeypatch, *arguments, "--runs", tmp_path, "--stream", "--layers",
                3, "--init_channels", 2, "--nodes", 1, "--epochs", 1, "--threshold", 0,
                "--figures_every", 0) == 0
    assert "--stream" in capsys.readouterr().out  # in the command that trains what was found


def test_balanced_shares_of_classes():
    labels = torch.tensor([0] * 40 + [1] * 20 + [2] * 2)[torch.randperm(62)]
    parts = data.balanced(labels, 0.5, 0.25, 3)
    assert [labels[part].bincount().tolist() for part in parts] == [[20, 10, 1], [10, 5, 1]]
    assert not set(parts[0].tolist()) & set(parts[1].tolist())
    again, other = data.balanced(labels, 0.5, 0.25, 3), data.balanced(labels, 0.5, 0.25, 4)
    assert torch.equal(again[0], parts[0]) and not torch.equal(other[0], parts[0])
    with pytest.raises(flags.UserError, match="one picture"):
        data.balanced(torch.tensor([0, 0, 1]), 0.5, 0.5, 0)


def test_accumulated_steps_equal_whole_ones(tmp_path, monkeypatch):
    train = model_eval.NetworkCIFAR.train
    monkeypatch.setattr(model_eval.NetworkCIFAR, "train", lambda net, mode=True: train(net, False))
    common = [*TINY_EVAL, "--no-auxiliary", "--drop_path_prob", 0, "--runs", tmp_path,
              "--epochs", 2]
    weights = []
    for name, size, times in (("a", 600, 1), ("b", 300, 2), ("c", 200, 3)):
        assert call(train_eval, monkeypatch, *common, "--name", name, "--batch_size", size,
                    "--accumulate", times) == 0
        weights.append(torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)["network"])
    for other in weights[1:]:
        assert all(close(other[name], weights[0][name], 1e-5) for name in other)


# ---------------------------------------------------------------- ready for a GPU

class CountWaits(TorchDispatchMode):
    """Counts what makes the host wait for a GPU, or moves tensors to or from it."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        aten, result = torch.ops.aten, function(*args, **(kwargs or {}))
        tensors = [t for t in (result, *args) if torch.is_tensor(t)]
        if len({t.device for t in tensors}) > 1 or function.overloadpacket in (
                aten._local_scalar_dense, aten.is_nonzero, aten.nonzero):
            self.found.append(str(function))
        return result


def fake_batches(device, size=8, count=40):
    return data.Batches(torch.zeros(count, 3, size, size, dtype=torch.uint8, device=device),
                        torch.zeros(count, dtype=torch.long, device=device),
                        torch.zeros(3, device=device), torch.ones(3, device=device), 4, 1, True, 2,
                        data.generator(0))


NETWORKS = {
    "s1": lambda: model_search.Network(4, 10, 3, 2), "s2": lambda: model_search.NetworkS2(
        10, width=0.1, image_size=8),
    "plain": lambda: model_search.Network(4, 10, 3, 2, fast=False),
    "softmax": lambda: model_search.Network(4, 10, 3, 2, gate="softmax"),
    "cifar": lambda: model_eval.NetworkCIFAR(genotypes.FairDARTS_a, 4, 10, 3),
    "imagenet": lambda: model_eval.NetworkImageNet(genotypes.FairDARTS_b, 4, 10, 3),
    "chain": lambda: model_eval.NetworkS2(genotypes.FairNAS_A, 10, width=0.1, image_size=8)}


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_is_left_on_the_cpu(name):
    """By tensors that claim to be on a GPU: those on the CPU are refused beside them."""
    run = runs.Run("nowhere", {"settings": {"epochs": 1, "log_every": 25}})
    with FakeTensorMode(allow_non_fake_inputs=True):
        with torch.device("cuda"):
            try:
                nn.Conv2d(1, 1, 1)
            except RuntimeError as error:  # 2.9.1 does; 2.15.0 does not
                pytest.skip(f"this PyTorch asks for a driver even so: {str(error)[:60]}")
            network = NETWORKS[name]().train()
        network.drop_path_prob = 0.2
        assert all(t.is_cuda for t in network.state_dict().values())
        train = fake_batches("cuda", 64 if name == "imagenet" else 8)
        train.next()  # which begins a pass
        with CountWaits() as waits:
            images, labels = train.next()
            outputs = network(images)
            loss = F.cross_entropy(outputs[0] if isinstance(outputs, tuple) else outputs, labels)
            run.add(loss=loss.detach())
        assert waits.found == [] and run.totals.is_cuda and loss.is_cuda
        with CountWaits() as waits:
            loss.cpu()
        assert waits.found  # it does find one


@pytest.mark.parametrize("name", ["s1", "s2", "plain", "softmax", "cifar", "chain"])
def test_a_step_never_waits(name):
    run = runs.Run("nowhere", {"settings": {"epochs": 1, "log_every": 25}})
    network, train = NETWORKS[name]().train(), fake_batches("cpu")
    searched = hasattr(network, "alphas")
    weights = network.weights() if searched else list(network.parameters())
    sgd = torch.optim.SGD(weights, 0.1, 0.9, weight_decay=3e-4, fused=True)
    architect = fair_darts.Architect(network) if searched else None

    def step():
        images, labels = train.next()
        figures = {}
        if searched:
            valid_loss, penalty = architect.step(*train.next())
            figures.update(valid_loss=valid_loss, penalty=penalty)
        sgd.zero_grad()
        with fair_darts.frozen(network.alphas if searched else []):
            outputs = network(images)
            loss = F.cross_entropy(outputs if searched else outputs[0], labels)
            loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(weights, 5.0)
        sgd.step()
        run.add(norm, loss=loss.detach(), **figures)

    step()  # which begins a pass, and makes what the optimisers keep
    with CountWaits() as waits:
        step()
    assert waits.found == []
    with CountWaits() as waits:
        float(run.totals.sum())
    assert waits.found  # it does find one


def test_the_faster_memory_format_is_taken(tmp_path, monkeypatch, capsys):
    torch.manual_seed(0)
    network = model_search.Network(2, 10, 3, 2).train()
    before = copy.deepcopy(network.state_dict())
    images, state = torch.randn(2, 3, 8, 8), torch.get_rng_state()
    seconds = kernels.time_formats(network, images)
    assert set(seconds) == set(kernels.FORMATS) and min(seconds.values()) > 0
    assert all(torch.equal(network.state_dict()[name], before[name]) for name in before)
    assert all(p.grad is None for p in network.parameters())
    assert torch.equal(torch.get_rng_state(), state) and kernels._formats["cpu"] == "channels_last"
    monkeypatch.setattr(kernels, "_formats", dict(kernels._formats))
    monkeypatch.setattr(kernels, "time_formats", lambda *_: {"channels_last": 2.0,
                                                             "contiguous": 1.0})
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *shape, device=None: zeros(*shape))
    run = new_run(tmp_path, sync_bn=False, compile=False)
    devices.prepare_network(run, network, torch.device("cuda"), (2, 3, 8, 8))
    assert kernels._formats["cuda"] == "contiguous"
    assert "channels_last 2.0000 s a pass, contiguous 1.0000" in capsys.readouterr().out
    assert folders.read_config(run.folder)["memory_format"] == "contiguous"
    run.config["memory_format"] = "x"
    with pytest.raises(flags.UserError, match="memory_format"):
        devices.prepare_network(run, network, torch.device("cuda"), (2, 3, 8, 8))


@pytest.mark.parametrize("name", ["s1", "cifar", "chain"])
def test_regions_compile(name, monkeypatch):
    # pytest keeps every record, and Dynamo makes many when somebody listens
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "disabled", True)
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "propagate", False)
    torch.manual_seed(0)
    network = (model_search.Network(2, 10, 3, 1, primitives=("skip_connect", "sep_conv_3x3"))
               if name == "s1" else NETWORKS[name]()).train()
    images = torch.randn(4, 3, 8, 8)
    expected = network(images)
    network.compile_regions(backend="eager", fullgraph=name != "s1")
    found = network(images)
    for a, b in zip(expected if name != "s1" else [expected], found if name != "s1" else [found]):
        assert a is None or a.grad_fn is not None and (
            name == "chain" or close(a, b, 1e-5))  # a chain has dropout


def test_compile_is_left_out_on_a_cpu(tmp_path, monkeypatch, capsys):
    assert call(train_search, monkeypatch, *TINY_SEARCH, "--runs", tmp_path, "--compile") == 0
    assert "note: --compile is left out" in capsys.readouterr().err


# ---- fuzz

VALUES = [None, True, False, -1, 0, 1, 2, 3, 10**9, 2**63, 10**400, -0.5, 0.3, 1e308, math.inf,
          math.nan, "", "x", "a\0b", "\ud800", "line\nline", "../..", "1" * 500, [], [1], [[]], {},
          {"x": 1}, deep(50)]


def place(dice, value):
    """The keys that lead to something inside of `value`, at random; everywhere, all alike."""
    keys = []
    while isinstance(value, (dict, list)) and len(value) and (not keys or dice.random() < 0.8):
        keys.append(dice.choice(list(value) if isinstance(value, dict) else range(len(value))))
        value = value[keys[-1]]
    return keys


def other_value(dice, old):
    if torch.is_tensor(old) and dice.random() < 0.7:
        return dice.choice([lambda t: t.double(), lambda t: t.flatten()[:-1], lambda t: t * 0 - 1,
                            lambda t: t[None], lambda t: t.float() * math.nan, lambda t: t.long(),
                            lambda t: t.bool(), lambda t: t.tolist(),
                            lambda t: t.flatten()[torch.arange(t.numel()).flip(0)].view(t.shape)
                            ])(old)
    if isinstance(old, (int, float)) and dice.random() < 0.3:
        return dice.choice([-old, old + 1, str(old), [old], old * 1e30 if old else 1e-300])
    return copy.deepcopy(dice.choice(VALUES))  # or one could come to hold itself


def mutate(dice, folder):
    """Damage one file of a run; what was done, in words."""
    name = dice.choice(sorted(os.listdir(folder)) + ["config.json", "checkpoint.pt"])
    path = folder / name
    whole = path.read_bytes()
    how = dice.choice(["cut", "flip", "delete", "folder", "empty", *["values"] * 12])
    if how == "values" and (name.endswith(".pt") or name.endswith(".json")):
        state = (torch.load(io.BytesIO(whole), weights_only=True) if name.endswith(".pt")
                 else json.loads(whole))
        for _ in range(dice.choice([1, 1, 1, 2, 5])):
            keys, inner = place(dice, state), state
            for key in keys[:-1]:
                inner = inner[key]
            new = ... if dice.random() < 0.1 else other_value(dice, inner[keys[-1]])
            # more epochs are no damage: they would be searched
            if new is ...:
                del inner[keys[-1]]
            elif keys[-1] != "epochs" or type(new) is not int or new < 4:
                inner[keys[-1]] = new
            how += f" {keys}={str(new)[:40]!r}"
        content = sealed(state) if name.endswith(".pt") else json.dumps(state).encode()
        if name.endswith(".json") and dice.random() < 0.2:
            content = content.replace(b"0", dice.choice([b"1e999", b"9" * 5000, b"[", b"-"]), 1)
    elif how in ("flip", "values"):
        content = bytearray(whole)
        for _ in range(dice.choice([1, 3, 20])):
            if content:
                content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        content = bytes(content)
        if name.endswith(".pt") and dice.random() < 0.7:
            content, how = sealed(content[:-32]), how + " sealed"
    else:
        content = whole[:dice.randrange(len(whole))] if how == "cut" else b""
        if name.endswith(".pt") and how == "cut" and dice.random() < 0.5:
            content, how = sealed(content), how + " sealed"
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how != "delete":
        path.write_bytes(content)
    return f"{name}: {how}"


class Complete:
    """In place of reproduce.py: its check of one run."""

    def __init__(self, *arguments):
        self.arguments = arguments

    def __call__(self, entry):
        return lambda: print(many_runs.complete(*self.arguments))


def test_fuzz(finished, tmp_path):
    first, count = int(os.environ.get("FUZZ_SEED", 0)), int(os.environ.get("FUZZ", 24))
    codes, wrong, image = {}, [], tmp_path / "image.png"
    Image.new("L", (8, 8)).save(image)

    def begin(seed):
        dice, base = random.Random(seed), tmp_path / str(seed)
        kind = dice.choice("aad")
        folder = base / kind
        shutil.copytree(finished / kind, folder)
        done = mutate(dice, folder)
        more = ["--epochs", "2"] if dice.random() < 0.7 else []
        script = "train_search" if kind == "a" else "train_eval"
        flags_of = (TINY_SEARCH if kind == "a" else TINY_EVAL)[:-2]
        script, arguments, setup = dice.choice([
            (script, ["--resume", folder, *more], None),
            (script, ["--resume", folder, *more], None),
            ("visualize", [folder], None) if kind == "a" else
            (script, ["--evaluate", folder], None),
            ("visualize", [folder], None) if kind == "a" else ("predict", [folder, image], None),
            ("reproduce", [], Complete(str(folder), script, flags_of))])
        child = fork(base, script, *arguments, seconds=10, setup=setup)
        return seed, base, f"{done}  {script} {arguments[:1]} {more}", script, child

    def end(seed, base, done, script, child):
        code, out, err = ended(*child)
        codes[code] = codes.get(code, 0) + 1
        lines = [line for line in err.splitlines() if not line.startswith("note: ")]
        fine = (code in (0, 1) and not lines or code == 2 and len(lines) == 1
                and lines[0].startswith(script + ".py: error: ")) and "Traceback" not in out
        if not fine:
            wrong.append(f"FUZZ=1 FUZZ_SEED={seed}  {done}: {code} {' | '.join(lines)[-700:]}")
        shutil.rmtree(base)

    for seed in range(first, first + count, 2):  # two side by side
        for started in [begin(s) for s in range(seed, min(seed + 2, first + count))]:
            end(*started)
    print(codes)
    assert not wrong, f"{codes}\n" + "\n".join(wrong)


# ---------------------------------------------------------------- what was trained, in use

@pytest.fixture(scope="module")
def trained(finished):
    """The folder of a training of cells, d, its Classifier, and what it was tested on."""
    digits = data.load("digits")
    return (finished / "d", model_eval.load(str(finished / "d")), digits.test_images,
            digits.test_labels)


def test_weights_stand_alone(trained, tmp_path):
    folder, _, images, labels = trained
    shutil.copy(folder / "weights.pt", tmp_path / "some.pt")  # alone
    classifier = model_eval.load(str(tmp_path / "some.pt"))
    assert classifier.classes == list("0123456789") and classifier.shape == [1, 8, 8]
    assert not classifier.training and classifier.network.auxiliary is None
    with torch.no_grad():
        found = classifier(images)
        assert found.shape == (360, 10) and close(found.sum(1), torch.ones(360), 1e-5)
        accuracy = 100 * (found.argmax(1) == labels).float().mean().item()
        assert accuracy == pytest.approx(float(table(folder)[-1]["test_accuracy"]))
        assert close(classifier(images[:1]), found[:1], 1e-6)  # one picture, or many
        assert close(classifier(images.float() / 255), found, 1e-5)
    state = torch.load(folder / "best.pt", weights_only=True)
    assert state["epoch"] == 1 and state["torch"] == torch.__version__
    assert state["accuracy"] == pytest.approx(accuracy)


def test_predict_gives_the_accuracy_of_the_training(trained, tmp_path, monkeypatch, capsys):
    folder, classifier, images, labels = trained
    shutil.copytree(folder, tmp_path / "run")
    for index, (image, label) in enumerate(zip(images, labels.tolist())):
        path = tmp_path / "test" / str(label) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(path)
    assert call(predict, monkeypatch, tmp_path / "run", tmp_path / "test", "--device", "cpu") == 0
    *lines, last = capsys.readouterr().out.splitlines()
    accuracy = float(table(folder)[-1]["test_accuracy"])
    assert len(lines) == 360 and last.startswith(f"accuracy {accuracy:.2f}%, ")
    assert_picture(tmp_path / "run" / "figures" / "confusion.png")

    one = tmp_path / "test" / str(labels[7].item()) / "7.png"
    (tmp_path / "broken.png").write_text("no picture")
    assert call(predict, monkeypatch, tmp_path / "run" / "best.pt", one, tmp_path / "broken.png",
                tmp_path / "nothing.png", one, "--json", "--top", "20") == 2
    out, err = capsys.readouterr()
    assert [line.split(" cannot")[0] for line in err.splitlines()] == [
        str(tmp_path / "broken.png"), str(tmp_path / "nothing.png")]
    first, second = map(json.loads, out.splitlines())
    assert first == second and first["file"] == str(one) and len(first["classes"]) == 10
    with torch.no_grad():
        expected = classifier(images[7:8])[0]
    for name, probability in first["classes"]:
        assert probability == pytest.approx(expected[int(name)].item(), rel=1e-5)
    found = [probability for _, probability in first["classes"]]
    assert found == sorted(found, reverse=True)
    (tmp_path / "empty").mkdir()
    assert "no picture in" in refused(capsys, monkeypatch, predict, tmp_path / "run",
                                      tmp_path / "empty")


def test_confusion_matrix_counts_by_class_folder(tmp_path):
    classes = ["ant", "bee"]
    assert predict.label_of(str(tmp_path / "bee" / "x" / "1.png"), str(tmp_path), classes) == 1
    assert predict.label_of(str(tmp_path / "cat" / "1.png"), str(tmp_path), classes) is None
    figure = predict.draw_confusion(torch.tensor([[3, 1], [0, 2]]), classes)
    texts = {(text.get_position(), text.get_text()) for text in figure.axes[0].texts}
    assert texts == {((0, 0), "3"), ((1, 0), "1"), ((1, 1), "2")}  # x: predicted


def test_pictures_are_opened_as_a_viewer_shows_them(tmp_path):
    path = tmp_path / "picture.png"

    def opened(picture, **options):
        picture.save(path, **options)
        return pictures_module.open_picture(path)

    deep = np.arange(6, dtype=np.uint16).reshape(2, 3) * 10000
    found = opened(Image.fromarray(deep))
    assert found.mode == "L" and np.array_equal(np.asarray(found), deep // 256)
    clear = np.array([[[200, 0, 0, 255], [9, 9, 9, 0], [0, 0, 0, 128]]], np.uint8)
    found = opened(Image.fromarray(clear))
    assert found.mode == "RGB" and np.allclose(
        np.asarray(found)[0], [[200, 0, 0], [255] * 3, [127] * 3], atol=1)
    grey = opened(Image.fromarray(clear[..., [0, 3]], "LA"))
    assert grey.mode == "L" and np.asarray(grey)[0].tolist()[:2] == [200, 255]
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putdata([0, 1])
    found = opened(palette, transparency=1)
    assert np.asarray(found.convert("RGB"))[0].tolist() == [[10, 20, 30], [255, 255, 255]]
    assert np.asarray(opened(palette).convert("RGB"))[0].tolist() == [[10, 20, 30], [40, 50, 60]]
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    wide = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
    assert np.array_equal(np.asarray(opened(wide, exif=exif)),
                          np.rot90(np.asarray(wide), -1))


def test_what_are_no_weights_is_refused(finished, tmp_path, monkeypatch, capsys):
    path, image = tmp_path / "weights.pt", tmp_path / "image.png"
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(image)
    whole = torch.load(finished / "d" / "weights.pt", weights_only=True)
    first = next(iter(whole["network"]))
    crafted = [sealed(leaves(whole, place)) for place in (
        *[((key,), value) for key in model_eval.WEIGHTS for value in (None, "x", 3j, ...)],
        (("network", first), torch.zeros(2)), (("network", first), ...), (("network", first), "x"),
        (("network", first), whole["network"][first] * math.nan), (("network", "more"), first),
        (("network", 3), torch.zeros(2)), (("network",), {}),
        (("network", first), whole["network"][first].double()), (("classes",), []),
        (("classes",), ["a"] * 11), (("mean",), torch.zeros(2)), (("std",), torch.zeros(1)),
        (("mean",), torch.tensor(1.0)), (("shape",), [1, 8, 9]), (("shape",), [2, 8, 8]),
        (("shape",), [1, 8, 8.0]), (("accuracy",), math.nan), (("settings",), {}),
        (("settings", "init_channels"), 10**6), (("settings", "arch"), "FairDARTS_z"),
        (("version",), 2), (("script",), "train_search"))]
    crafted += [b"", b"no weights", sealed(b"no weights"), sealed([whole]),
                (finished / "d" / "weights.pt").read_bytes()[:-1],
                (finished / "a" / "checkpoint.pt").read_bytes(),
                (finished / "d" / "checkpoint.pt").read_bytes()]
    for bytes_of_file in crafted:
        path.write_bytes(bytes_of_file)
        assert str(path) in refused(capsys, monkeypatch, predict, path, image, "--device", "cpu")

    class Malice:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "run by the file"),)

    path.write_bytes(sealed({**whole, "classes": Malice()}))
    assert str(path) in refused(capsys, monkeypatch, predict, path, image)
    assert not (tmp_path / "run by the file").exists()
    for missing in tmp_path / "nothing", finished / "a":
        assert "weights.pt" in refused(capsys, monkeypatch, predict, missing, image)


@pytest.mark.parametrize("arch", ["FairDARTS_a", "FairNAS_A"])
def test_exported_networks_agree(arch, finished, tmp_path, monkeypatch, capsys):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    folder = tmp_path / "d"
    if arch == "FairDARTS_a":
        shutil.copytree(finished / "d", folder)
    else:
        assert call(train_eval, monkeypatch, "--dataset", "digits", "--arch", arch, "--epochs", 1,
                    "--batch_size", 600, "--runs", tmp_path, "--name", "d") == 0
    assert call(train_eval, monkeypatch, "--export", folder) == 0
    assert capsys.readouterr().out.count("uint8 pictures (batch, 1, 8, 8)") == 2
    program = torch.export.load(folder / "model.pt2").module()
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    classifier = model_eval.load(str(folder))
    for count in (1, 2, 7, 30):
        images = torch.randint(256, (count, 1, 8, 8)).to(torch.uint8)
        with torch.no_grad():
            expected = classifier(images)
        [found] = session.run(["probabilities"], {"pictures": images.numpy()})
        assert close(torch.from_numpy(found), expected, 1e-5)
        assert close(program(images), expected, 1e-5)


def test_what_was_not_exported_well_is_not_kept(finished, tmp_path, monkeypatch, capsys):
    shutil.copytree(finished / "d", tmp_path / "d")
    with monkeypatch.context() as patch:
        patch.setattr(export.importlib.util, "find_spec", lambda name: None)
        assert call(train_eval, patch, "--export", tmp_path / "d") == 0
        out = capsys.readouterr().out
        assert "no model.onnx: it takes onnx, onnxscript, onnxruntime; pip install" in out
    (tmp_path / "d" / "model.pt2").unlink()
    monkeypatch.setattr(export, "random_pictures", lambda *_: torch.zeros(2, 1, 8, 8))
    whole = export.keep

    def other(run, name, content, classifier, restored):
        return whole(run, name, content, classifier, lambda images: restored(images) + 1e-4)

    monkeypatch.setattr(export, "keep", other)
    assert "differ by 1" in refused(capsys, monkeypatch, train_eval, "--export", tmp_path / "d")
    assert not (tmp_path / "d" / "model.pt2").exists()
    assert "--epochs does not go with --export" in refused(
        capsys, monkeypatch, train_eval, "--export", tmp_path / "d", "--epochs", 3)


def test_fine_tuning_starts_from_the_weights(trained, pictures, tmp_path, monkeypatch, capsys):
    folder, *_ = trained
    grey = tmp_path / "grey"
    for path in pictures.rglob("*.png"):
        place = grey / path.relative_to(pictures)
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).convert("L").save(place)
    start, begun = train_eval.start_from, []

    def watched(path, network, run):
        start(path, network, run)
        begun.append(copy.deepcopy(network.state_dict()))

    monkeypatch.setattr(train_eval, "start_from", watched)
    tune = ["--init", folder, "--dataset", "folder", "--data", grey, "--runs", tmp_path,
            "--epochs", "1"]
    assert call(train_eval, monkeypatch, *tune, "--name", "a") == 0
    assert "the head is new, for it was of 10 classes" in capsys.readouterr().out
    weights = torch.load(folder / "weights.pt", weights_only=True)["network"]
    heads = {name for name in weights if "classifier" in name}
    assert len(heads) == 4  # with the auxiliary one
    for name, value in begun[0].items():
        assert torch.equal(value, weights[name]) == (name not in heads)
    assert call(train_eval, monkeypatch, "--resume", tmp_path / "a", "--epochs", 2) == 0
    assert len(begun) == 1  # goes on from its checkpoint
    assert call(train_eval, monkeypatch, "--init", folder / "best.pt", "--dataset", "digits",
                "--epochs", "1", "--runs", tmp_path, "--name", "b") == 0
    assert all(torch.equal(value, weights[name]) for name, value in begun[1].items())

    for more, message in ((["--layers", "4"], "--layers 4 contradicts --init"),
                          (["--arch", "FairDARTS_b"], "contradicts --init"),
                          (["--init", tmp_path], "there is no file")):
        assert message in refused(capsys, monkeypatch, train_eval, *tune, "--name", "c", *more)
    assert "of another network, for pictures (1, 8, 8)" in refused(
        capsys, monkeypatch, train_eval, "--init", folder, "--dataset", "folder", "--data",
        pictures, "--runs", tmp_path)  # of three channels


def test_every_run_ends_with_a_report(finished):
    training = (finished / "d" / "report.md").read_text()
    last = float(table(finished / "d")[-1]["test_accuracy"])
    config = json.loads((finished / "d" / "config.json").read_text())
    for part in ("# d\n", "- command: `python train_eval.py --dataset digits", "- go on: `python "
                 f"predict.py {finished}/d IMAGE`", f"torch {torch.__version__}", "- peak memory: ",
                 f"{last:.2f}% in the last epoch; best {last:.2f}% in epoch 1", " M\n",
                 f"threads: {config['threads']}", config["fingerprint"], "without the auxiliary"):
        assert part in training, part
    network = model_eval.build(Namespace(**config["settings"]), 10, (1, 8, 8))
    assert f"- parameters: {sum(w.numel() for w in network.parameters()):,}, " in training
    search = (finished / "a" / "report.md").read_text()
    assert f"--arch {finished}/a/genotype.json" in search and "- genotype: `Genotype(" in search
    assert int(re.search(r"peak memory: (\d+) MiB", search)[1]) > 100


def test_commit_of_the_code(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "HERE", str(tmp_path))
    assert report.commit() is None
    if shutil.which("git"):
        git = ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b"]
        for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "x"]):
            subprocess.run([*git, *command], check=True)
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout
        assert len(report.commit()) >= 7 and head.startswith(report.commit())


@pytest.mark.parametrize("count, size, search, training", [
    (90, 32, (8, 100, 8, 4), (8, 91, 16, 16, 8)), (5000, 32, (128, 27, 8, 4), (96, 20, 16, 16, 8)),
    (4, 16, (2, 500, 8, 4), (4, 1000, 8, 16, 8)),
    (1000, 128, (32, 34, 8, 4), (96, 100, None, 16, 8))])
def test_recipe_of_a_folder(count, size, search, training):
    found = recipes.of_folder(count, size)
    names = "batch_size", "epochs", "init_channels", "layers"
    assert tuple(found.search[name] for name in names) == search
    batch, epochs, length, channels, layers = training
    assert tuple(found.eval[name] for name in names) == (batch, epochs, channels, layers)
    assert found.padding == (size // 8 if size <= 64 else 0)
    assert found.eval.get("cutout_length") == length and found.eval["gamma"] == 0


def test_recipes_of_all_folders():
    for count in [*range(4, 300), *range(300, 20000, 371)]:
        found = recipes.of_folder(count, 32)
        for settings, pictures, steps, least in ((found.search, count // 2, 500, 25),
                                                 (found.eval, count, 1000, 20)):
            batch, epochs = settings["batch_size"], settings["epochs"]
            assert 2 <= batch <= pictures and epochs >= least
            assert pictures // batch >= 10 or batch <= 8
            assert steps <= epochs * (pictures // batch) or epochs == least
    assert recipes.of_folder(20000, 32) == recipes.Recipe(4, True, {}, {"cutout_length": 16})
    assert recipes.of_folder(20000, 100).eval == recipes.RECIPES["imagenet"].eval


def test_a_folder_is_searched_by_its_rule(pictures, tmp_path, monkeypatch, capsys):
    assert call(train_search, monkeypatch, "--dataset", "folder", "--data", pictures, "--epochs", 1,
                "--nodes", 1, "--image_size", 8, "--runs", tmp_path, "--name", "a",
                "--figures_every", 0) == 1  # too short for a genotype
    out = capsys.readouterr().out
    assert out.startswith("settings for 32 pictures of 8 pixels: ") and "--width" not in out
    assert "--batch_size 8" in out and "--epochs 1" in out  # as given
    settings = json.loads((tmp_path / "a" / "config.json").read_text())["settings"]
    assert (settings["batch_size"], settings["init_channels"], settings["layers"]) == (8, 8, 4)


# ---------------------------------------------------------------- other cures

def test_skips_are_disturbed_as_they_should_be():
    skip, x = cures.Skip(), torch.full((20, 10, 20, 20), 2.0)
    skip.seed = 5
    assert torch.equal(skip(x), x)  # off
    skip.noise = 0.5
    noise = skip(x) - x
    assert abs(noise.mean()) < 5 * 0.5 / math.sqrt(x.numel())
    assert noise.std().item() == pytest.approx(0.5, rel=0.01)
    assert torch.equal(skip(x) - x, noise)  # the seed's
    skip.seed += 1
    assert not torch.equal(skip(x) - x, noise)
    assert torch.equal(skip.eval()(x), x)
    skip.train().noise, skip.dropout = 0.0, 0.3
    dropped = skip(x)
    assert dropped.unique().tolist() == [0, pytest.approx(2 / 0.7)]
    assert dropped.mean().item() == pytest.approx(2, rel=0.02)
    assert (dropped == 0).float().mean().item() == pytest.approx(0.3, rel=0.03)


def test_schedules_of_the_cures():
    skip = cures.Skip()
    network = Namespace(skips=[skip])
    s = Namespace(skip_dropout=0.6, skip_noise=2.0, noise_epochs=0, epochs=12)
    for epochs in (0, 4):
        s.noise_epochs = epochs
        for epoch in range(12):
            cures.set_rates(network, s, epoch)
            assert skip.dropout == pytest.approx(0.6 * (1 - epoch / 12))
            part = min(1, epoch / (epochs or 12))
            assert skip.noise == pytest.approx(2 * (1 + math.cos(math.pi * part)) / 2, abs=1e-12)
    assert skip.noise == 0
    cures.set_rates(network, s, 0)
    with cures.undisturbed(network):
        assert skip.dropout == skip.noise == 0
    assert (skip.dropout, skip.noise) == (0.6, 2.0)


CURED = dict(skip_dropout=0.3, skip_noise=1.0, noise_epochs=0, shared_softmax="", epochs=10)


def cured(space, fast_form, gate="sigmoid", **others):
    s = Namespace(**{**train_search.flags().defaults(), **CURED, "space": space, "plain": not
                     fast_form, "gate": gate, "init_channels": 4, "layers": 3, "nodes": 3,
                     "width": 0.1, **others})
    torch.manual_seed(3)
    network = train_search.build(s, [*"abcd"], (3, 16, 16)).double()
    cures.set_rates(network, s, 2)
    return s, network


@pytest.mark.parametrize("space, gate, shared", [
    ("s1", "sigmoid", ""), ("s1", "softmax", ""),
    ("s1", "sigmoid", "skip_connect,sep_conv_3x3"), ("s2", "sigmoid", "skip_connect,mb3_k3")])
def test_cures_are_the_same_in_both_forms(space, gate, shared):
    images, labels = torch.randn(6, 3, 16, 16).double(), torch.arange(6) % 4
    found = []
    for fast_form in (True, False):
        _, network = cured(space, fast_form, gate, shared_softmax=shared)
        torch.manual_seed(9)
        with kernels.stock(not fast_form):
            network(images)
            logits = network(images)  # disturbed otherwise than before
        F.cross_entropy(logits, labels).backward()
        found.append([logits, *(b for b in network.buffers() if b.is_floating_point()),
                      *(w.grad for w in network.parameters() if w.grad is not None)])
    assert all(close(a, b, 1e-8) for a, b in zip(*found, strict=True))
    torch.manual_seed(9)
    assert close(network(images), found[0][0], 1e-2) is False  # the first of the two passes


def test_only_skips_of_stride_1_are_disturbed():
    _, network = cured("s1", True)
    found = {name for name, module in network.named_modules() if isinstance(module, cures.Skip)}
    column = PRIMITIVES.index("skip_connect")
    rows = range(9)  # of 3 nodes
    assert found == {
        f"cells.{cell}.edges.{row}.operations.{column}" for cell in range(3) for row in rows
        if cell == 0 or row not in (0, 1, 2, 3, 5, 6)}  # from the inputs of a reduction cell
    _, chain = cured("s2", True)
    assert len(chain.skips) == sum(genotypes.SAME_SHAPE)
    for net in network, chain:
        x = torch.randn(4, 3, 16, 16).double()
        with torch.no_grad(), kernels.frozen_statistics(net):
            state = torch.get_rng_state()
            assert not torch.equal(net(x), net(x))
            with cures.undisturbed(net):
                torch.set_rng_state(state)
                assert torch.equal(net(x), net(x))
                assert torch.equal(torch.get_rng_state(), state)  # nothing is drawn
            with cures.same_draws(net):
                assert torch.equal(net(x), net(x))
            assert torch.equal(net.eval()(x), net(x))


def test_unrolled_steps_compare_passes_that_are_disturbed_alike(tmp_path, monkeypatch):
    seeds, steps = [], []
    draw, step = cures.draw_seeds, fair_darts.Architect.step_unrolled

    def watched_draw(network, inputs):
        draw(network, inputs)
        if inputs is not None:  # before a pass
            seeds.append(tuple(skip.seed for skip in network.skips))

    def watched_step(self, *batches):
        first = len(seeds)
        found = step(self, *batches)
        steps.append(seeds[first:])
        return found

    monkeypatch.setattr(cures, "draw_seeds", watched_draw)
    monkeypatch.setattr(fair_darts.Architect, "step_unrolled", watched_step)
    assert call(train_search, monkeypatch, *TINY_SEARCH, "--unrolled", "--skip_noise", "1",
                "--runs", tmp_path) == 0
    assert len(steps) == 2 and all(len(found) == 4 and len(set(found)) == 1 for found in steps)
    assert len(set(seeds)) == 4  # two for the steps on alpha, two for those on the weights


def test_shared_softmax_competes_among_its_own():
    alphas = torch.randn(5, 7, dtype=torch.float64)
    mask = fair_darts.mask_of(["avg_pool_3x3", "skip_connect", "sep_conv_5x5"], PRIMITIVES)
    assert mask.tolist() == [False, True, True, False, True, False, False]
    found = fair_darts.gates(alphas, shared=mask)
    rounded = fair_darts.rounded(found, shared=mask)
    for row, values in enumerate(alphas.tolist()):
        total = sum(math.exp(values[i]) for i in (1, 2, 4))
        best = max((1, 2, 4), key=lambda i: values[i])
        for i, value in enumerate(values):
            expected = math.exp(value) / total if mask[i] else 1 / (1 + math.exp(-value))
            assert found[row, i].item() == pytest.approx(expected, rel=1e-12)
            assert rounded[row, i] == (i == best if mask[i] else value >= 0)
    start = fair_darts.gates(0 * alphas, shared=mask)
    assert fair_darts.encoding_gap(start, shared=mask) == pytest.approx(1)
    assert fair_darts.encoding_gap(rounded, shared=mask) == 0


def settings_of_cures(**others):
    return Namespace(**{**train_search.flags().defaults(), **others})


def test_a_search_ends_with_the_epoch_before_the_skips():
    rows = [dict(epoch=e, skips_normal=n, skips_layers=9, curvature=None)
            for e, n in enumerate((0, 1, 3, 2), 1)]
    s = settings_of_cures(max_skips=2, epochs=10)
    assert cures.outcome(s, rows[:2]) is None
    epoch, why = cures.outcome(s, rows[:3])
    assert epoch == 2 and "3 dominant skip connections after epoch 3, --max_skips 2" in why
    assert cures.outcome(s, rows)[0] == 2
    assert cures.outcome(settings_of_cures(max_skips=2, space="s2"), rows)[0] == 1  # no other
    assert cures.outcome(settings_of_cures(epochs=4), rows) == (4, None)
    assert cures.outcome(settings_of_cures(epochs=5), rows) is None


def test_a_search_ends_when_the_curvature_has_grown():
    """By the rule written anew: means of five, the one 4 measurements earlier, from epoch 10."""
    dice = random.Random(0)
    ended = 0
    for _ in range(300):
        every, ratio = dice.choice((1, 2)), dice.choice((1.3, 1.1))
        values = [math.exp(dice.gauss(0, 0.4) + 0.02 * e) for e in range(1, 51)]
        rows = [dict(epoch=e, skips_normal=0, curvature=values[e - 1] if e % every == 0 else None)
                for e in range(1, 51)]
        s = settings_of_cures(epochs=60, curvature_every=every, max_curvature_ratio=ratio)
        measured = [row["epoch"] for row in rows if row["curvature"]]
        middle = {measured[i]: sum(values[measured[j] - 1] for j in range(i - 2, i + 3)) / 5
                  for i in range(2, len(measured) - 2)}
        expected = [epoch for epoch in middle if epoch >= 10 and epoch + 4 * every in middle
                    and middle[epoch + 4 * every] > ratio * middle[epoch]]
        found = cures.outcome(s, rows)
        assert found is None if not expected else found[0] == expected[0]
        if expected:
            end = expected[0] + 6 * every  # the last of the five that are compared
            assert cures.outcome(s, rows[:end - 1]) is None and cures.outcome(s, rows[:end])
            ended += 1
    assert 50 < ended < 300


def test_derived_cells_keep_few_skips():
    network = model_search.Network(2, 4, 3, nodes=2, primitives=("skip_connect", "sep_conv_3x3"))
    gates = torch.tensor([[0.95, 0.90], [0.99, 0.20], [0.97, 0.86], [0.91, 0.30], [0.1, 0.94]])
    reduce = torch.tensor([[0.95, 0.2]] * 5)

    def normal(keep, **others):
        s = settings_of_cures(keep_skips=keep, **others)
        found = cures.genotype(network, s, [gates, reduce])
        assert [edge.op for edge in found.reduce] == ["skip_connect"] * 4  # the normal cell's alone
        return {(edge.node, edge.source): edge.op[:4] for edge in found.normal}

    full = {(2, 0): "skip", (2, 1): "skip", (3, 0): "skip", (3, 2): "sep_"}
    assert normal(-1) == normal(3) == full
    # the weakest skip, 0.95, gives way to the convolution of its edge
    assert normal(2) == {**full, (2, 0): "sep_"}
    # the next, 0.97: its edge has now 0.86, less than 0.91 of another, a skip, which goes as well
    assert normal(1) == {**full, (2, 0): "sep_", (3, 0): "sep_"}
    # too few others: below the threshold, an edge is left out
    assert normal(0) == {(2, 0): "sep_", (3, 0): "sep_", (3, 2): "sep_"}
    assert normal(0, threshold=0) == {(2, 0): "sep_", (2, 1): "sep_", (3, 0): "sep_",
                                      (3, 2): "sep_"}
    equal = [torch.full((5, 2), 0.9), reduce]
    found = cures.genotype(network, settings_of_cures(keep_skips=3), equal)
    assert [edge.op for edge in found.normal] == ["sep_conv_3x3"] + ["skip_connect"] * 3
    alone = model_search.Network(2, 4, 3, nodes=2, primitives=("skip_connect",))
    ones = [torch.full((5, 1), 0.9)] * 2
    found = cures.genotype(alone, settings_of_cures(keep_skips=1), ones)
    assert len(found.normal) == 1 and len(found.reduce) == 4

    chain = model_search.NetworkS2(4, width=0.1, image_size=16)
    s = settings_of_cures(keep_skips=2, space="s2", threshold=0.85)
    gates = torch.full((19, 7), 0.1)
    found = cures.genotype(chain, s, [gates])  # where no gate is high, identities
    assert sum("skip_connect" in names for names in found.layers) == 2


def test_curvature_is_that_of_the_whole_hessian():
    s, network = cured("s1", True, nodes=2)
    for alpha in network.alphas:
        alpha.data += torch.randn(alpha.shape, generator=torch.Generator().manual_seed(1)).double()
    images, labels = torch.randn(4, 3, 8, 8).double(), torch.arange(4)
    before = copy.deepcopy(network.state_dict())
    state = torch.get_rng_state()
    found = cures.hessian_eigenvalue(network, images, labels, 1e-9)
    assert torch.equal(torch.get_rng_state(), state) and network.training and network.fast
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(w.requires_grad and w.grad is None for w in network.parameters())

    network.fast, alphas = False, list(network.alphas)
    with kernels.stock(), kernels.frozen_statistics(network), cures.undisturbed(network):
        loss = F.cross_entropy(network(images), labels)
        slopes = torch.autograd.grad(loss, alphas, create_graph=True)
        rows = [torch.autograd.grad(slope, alphas, retain_graph=True)
                for slope in torch.cat([slope.flatten() for slope in slopes])]
    hessian = torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])
    assert close(hessian, hessian.T, 1e-8)
    assert found == pytest.approx(torch.linalg.eigvalsh(hessian)[-1].item(), rel=1e-6)


def test_curvature_of_a_chain():
    _, network = cured("s2", True)
    images = torch.randn(2, 3, 8, 8).double()
    assert cures.hessian_eigenvalue(network, images, torch.arange(2), 0.1) > 0
    assert network.fast and network.training


def test_lanczos_finds_the_largest_eigenvalue():
    for seed in range(5):
        g = torch.Generator().manual_seed(seed)
        a = torch.randn(40, 40, dtype=torch.float64, generator=g)
        a, calls = a + a.T - 3 * torch.eye(40) * seed, []

        def product(vector):
            calls.append(1)
            return a @ vector

        exact = torch.linalg.eigvalsh(a)[-1].item()
        assert cures.largest_eigenvalue(product, a[0], 1e-10) == pytest.approx(exact, rel=1e-9)
        assert cures.largest_eigenvalue(product, a[0], 1e-3) == pytest.approx(exact, rel=1e-3)
    assert cures.largest_eigenvalue(lambda v: 0 * v, a[0], 1e-3) == 0
    assert cures.largest_eigenvalue(lambda v: 2 * v, a[0], 1e-3) == pytest.approx(2)


ALL_CURES = ["--skip_dropout", "0.3", "--skip_noise", "1", "--keep_skips", "1", "--single_level",
             "--shared_softmax", "max_pool_3x3,skip_connect", "--curvature_every", "1",
             "--arch_learning_rate", "0.3"]


def test_cures_resume_bit_for_bit(tmp_path, monkeypatch, capsys):
    search = [*SMALL_SEARCH, *ALL_CURES, "--threshold", "0", "--batch_size", "200", "--nodes", "1",
              "--runs", tmp_path]
    assert call(train_search, monkeypatch, *search, "--name", "whole") == 0
    steps = []

    def stop_in_the_second_epoch(self, *others, add=runs.Run.add, **figures):
        add(self, *others, **figures)
        steps.append(1)
        if len(steps) == 5:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(runs.Run, "add", stop_in_the_second_epoch)
        assert call(train_search, patch, *search, "--name", "cut") == 130
    assert call(train_search, monkeypatch, "--resume", tmp_path / "cut") == 0
    assert table(tmp_path / "cut") == table(tmp_path / "whole")
    states = [torch.load(tmp_path / folder / "checkpoint.pt", weights_only=True)["network"]
              for folder in ("cut", "whole")]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[1])
    assert all(float(row["curvature"]) > 0 for row in table(tmp_path / "whole"))
    assert (tmp_path / "whole" / "log.txt").read_text().count("  curvature ") == 2
    found = genotypes.load(str(tmp_path / "whole" / "genotype.json"))
    assert [edge.op for edge in found.normal].count("skip_connect") <= 1


def test_a_search_that_ended_early_is_finished(tmp_path, monkeypatch, capsys):
    search = [*SMALL_SEARCH, "--epochs", "9", "--threshold", "0", "--primitives",
              "skip_connect,sep_conv_3x3", "--batch_size", "300", "--runs", tmp_path, "--name", "a"]
    assert call(train_search, monkeypatch, *search, "--max_skips", "1") == 0
    out = capsys.readouterr().out
    rows = table(tmp_path / "a")
    assert len(rows) < 9 and float(rows[-1]["skips_normal"]) >= 1
    assert "--max_skips 1; the genotype is of epoch" in out
    record = visualize.read(str(tmp_path / "a"))
    assert record.epoch == max(1, len(rows) - 1)
    gates = [torch.from_numpy(record.gates[part][record.epoch - 1]) for part in record.gates]
    assert record.genotype == fair_darts.discretize(*gates, 0, primitives=record.primitives)
    assert many_runs.complete(str(tmp_path / "a"), "train_search", [])
    assert call(train_search, monkeypatch, "--resume", tmp_path / "a", "--keep_skips", "0") == 0
    assert len(table(tmp_path / "a")) == len(rows)
    found = genotypes.load(str(tmp_path / "a" / "genotype.json"))
    assert {edge.op for edge in found.normal} == {"sep_conv_3x3"}
    record = visualize.read(str(tmp_path / "a"))  # skips that are best on their edges, and not kept
    assert "k" in set(visualize.reasons(record, "normal")[:, 0])
    assert not set("kp") & set(visualize.reasons(record, "reduce").flat)


def test_two_layers_have_no_normal_cell(tmp_path, monkeypatch, capsys):
    """Both are reduction cells: the loss knows nothing of the normal alphas."""
    assert call(train_search, monkeypatch, *SMALL_SEARCH, "--runs", tmp_path, "--name", "a",
                "--layers", "2", "--epochs", "1", "--batch_size", "300", "--threshold", "0",
                "--unrolled", "--curvature_every", "1") == 0
    assert float(table(tmp_path / "a")[0]["curvature"]) > 0


def test_too_few_skips_kept_are_said(tmp_path, monkeypatch, capsys):
    assert call(train_search, monkeypatch, *SMALL_SEARCH, "--runs", tmp_path, "--name", "a",
                "--epochs", "1", "--batch_size", "300", "--threshold", "0", "--gap_every", "0",
                "--primitives", "skip_connect", "--keep_skips", "0") == 1
    out = capsys.readouterr().out.strip().split("\n")
    assert "--keep_skips 0 leaves it nothing" in out[-2]
    assert out[-1].endswith("--keep_skips 1")
    assert call(train_search, monkeypatch, *out[-1].split()[2:]) == 0


def test_cures_that_do_not_go_together_are_refused(tmp_path, monkeypatch, capsys):
    for flags_given, message in (
            (["--shared_softmax", "skip_connect"], "two or more of max_pool"),
            (["--shared_softmax", "skip_connect,mb3_k3"], "two or more of max_pool"),
            (["--shared_softmax", "skip_connect,sep_conv_3x3", "--gate", "softmax"], "sigmoid"),
            (["--shared_softmax", "skip_connect,sep"], "unknown 'sep'"),
            (["--max_curvature_ratio", "1.3"], "takes --curvature_every"),
            (["--max_curvature_ratio", "1.3", "--curvature_every", "3"], "takes 9 measurements"),
            (["--skip_dropout", "1"], "--skip_dropout")):
        assert message in refused(capsys, monkeypatch, train_search, "--dataset", "digits",
                                  "--runs", tmp_path / "runs", *flags_given)
    assert not (tmp_path / "runs").exists()


def test_single_level_uses_one_batch_for_both(tmp_path, monkeypatch):
    batches, step = [], fair_darts.Architect.step

    def watched(self, images, labels):
        batches.append(images)
        return step(self, images, labels)

    taken, draw = [], data.Batches.next

    def watched_next(self):
        taken.append(draw(self))
        return taken[-1]

    monkeypatch.setattr(fair_darts.Architect, "step", watched)
    monkeypatch.setattr(data.Batches, "next", watched_next)
    assert call(train_search, monkeypatch, *TINY_SEARCH, "--single_level", "--runs", tmp_path) == 0
    assert len(taken) == len(batches) and all(a[0] is b for a, b in zip(taken, batches))
