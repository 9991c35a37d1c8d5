"""Fixtures that several files use. Every worker has one thread: pytest-xdist starts one
a core."""
import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, and for child processes

import numpy as np
import pytest
import torch.nn as nn
from PIL import Image

import operations


def pytest_configure(config):
    """But by -m gpu, tests do not see GPUs, which children and limits would meet."""
    if "gpu" not in config.option.markexpr.replace("not gpu", ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


# Fixtures import what they use, so that test_fair_darts.py needs torch, torchvision and numpy alone


@pytest.fixture
def own_operations(monkeypatch):
    """Two operations of DARTS that the paper's space does not have, a line each."""
    from tests.common import Zero
    monkeypatch.setitem(operations.OPS, "none", lambda channels, stride, affine: Zero(stride))
    monkeypatch.setitem(operations.OPS, "conv_7x1_1x7", lambda c, stride, affine: nn.Sequential(
        nn.ReLU(), nn.Conv2d(c, c, (1, 7), (1, stride), (0, 3), bias=False),
        nn.Conv2d(c, c, (7, 1), (stride, 1), (3, 0), bias=False), nn.BatchNorm2d(c, affine=affine)))


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished search, a, and a training, d."""
    import train_eval
    import train_search
    from tests.common import TINY_EVAL, TINY_SEARCH, call
    root = tmp_path_factory.mktemp("finished")
    for script, tiny, name in (train_search, TINY_SEARCH, "a"), (train_eval, TINY_EVAL, "d"):
        with pytest.MonkeyPatch.context() as patch:
            assert call(script, patch, *tiny, "--runs", root, "--name", name) == 0
    return root


# ---------------------------------------------------------------- pictures read from files

@pytest.fixture(scope="session")
def imagenet(tmp_path_factory):
    """Six classes of pictures of odd sizes, grey, in CMYK, with a palette."""
    root, dice = tmp_path_factory.mktemp("imagenet"), np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 3)):
        for label in range(6):
            folder = root / part / f"class {label}"
            folder.mkdir(parents=True)
            for i in range(count):
                size = dice.integers(20, 130, 2)
                pixels = dice.integers(0, 99, (*size, 3), dtype=np.uint8) + 15 * np.uint8(label)
                picture = Image.fromarray(pixels).convert(["RGB", "L", "CMYK", "P"][i % 4])
                picture.save(folder / f"{i}.{'png' if i % 4 == 3 else 'jpg'}")
    return root


# ---------------------------------------------------------------- what was trained, in use

@pytest.fixture(scope="session")
def trained(finished):
    """The folder of a training of cells, d, its Classifier, and what it was tested
    on."""
    from engine import data
    from use import classifier
    digits = data.load("digits")
    return (finished / "d", classifier.load(str(finished / "d")), digits.test_images,
            digits.test_labels)
