"""Datasets as one uint8 tensor each.

    digits      scikit-learn's 1,797 handwritten digits, 8x8; needs no download
    cifar10, cifar100, svhn, fashionmnist
                by torchvision, downloaded into the data folder
    folder      your pictures: <data>/train/<class>/*, and test/ or val/ or valid/
    imagenet    the same with val, read as they are asked for
    npz         your arrays, in one file: train_images, train_labels, test_images, ...
"""
import hashlib
import os
import warnings
from collections import namedtuple

import numpy as np
import torch

from engine import processes
from engine.flags import UserError, first_line, number, one_of
from engine.pictures import Files, read_folder
from engine.recipes import RECIPES, count_classes
from spaces.space import LARGE

DATA_FLAGS = {
    "dataset": (None, one_of(RECIPES), f"one of {', '.join(RECIPES)}"),
    "data": ("data", os.path.expanduser, "folder of downloaded sets, of pictures; file of arrays"),
    "image_size": (32, number(int, 8), "side to which your pictures are brought, in pixels"),
    "skip_bad_images": (False, bool, "leave out files that cannot be used as pictures"),
    "stream": (False, bool, "read your pictures from their files as they are asked for"),
    "workers": (2, number(int, 0, 256), "processes that read them"),
}

# images: uint8 (N, C, H, W), or pictures.Files; labels: int64 (N,)
# mean, std: of each channel of the training pictures, 0 to 255
Dataset = namedtuple("Dataset", "name images labels test_images test_labels classes mean std")


def load(name, root="data", image_size=None, skip_bad_images=False, stream=False, workers=2):
    """The Dataset `name`, on the CPU. Raises UserError.

    All but name and root matter for "folder" and "imagenet" alone. stream: read files
    as they are asked for, which is always done for pictures of more than 64 pixels.
    """
    if name == "digits":
        parts = _digits()
    elif name in ("folder", "imagenet"):
        tests = ["val"] if name == "imagenet" else ["test", "val", "valid"]
        test = next((part for part in tests if os.path.isdir(os.path.join(root, part))), tests[0])
        size = image_size or RECIPES[name].search.get("image_size", 32)
        stream = workers if stream or name == "imagenet" or size > LARGE else None
        parts = read_folder(root, test, size, skip_bad_images, stream)
        if stream is not None:  # the usual figures of ImageNet
            mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]) * 255
            return Dataset(name, *parts, mean, std)
    elif name == "npz":
        parts = _npz(root)
    else:
        with processes.rank_0_first():
            parts = _torchvision(name, root)
    # from how often each of the 256 values occurs in each channel: exact, and in little memory
    counts = torch.stack([channel.flatten().bincount(minlength=256)
                          for channel in parts[0].unbind(1)])
    values = torch.arange(256, dtype=torch.float64)
    mean = (counts * values).sum(1) / counts.sum(1)
    std = ((counts * (values - mean[:, None]) ** 2).sum(1) / counts.sum(1)).sqrt().clamp(min=1)
    return Dataset(name, *parts, mean.float(), std.float())


def load_asked(given, device):
    """The Dataset that the flags `given` name, and None. Raises UserError.

    Where they name none: CIFAR-10 if there is a GPU and it can be had, else digits; and
    a text that says which and why. Pictures of one's own have to be named.
    """
    root = given.get("data", "data")
    if "dataset" in given:
        names = "image_size", "skip_bad_images", "stream", "workers"
        return load(given["dataset"], root,
                    **{name: given[name] for name in names if name in given}), None
    if "data" in given and (device.type == "cpu" or os.path.isdir(os.path.join(root, "train"))):
        raise UserError(f"--data {root} without --dataset: give that as well, folder for pictures "
                        "in folders of their classes, npz for arrays, or cifar10")
    reason = "there is no GPU"
    if device.type != "cpu":
        try:
            dataset = load("cifar10", root)
            return dataset, "cifar10, since there is a GPU; --dataset digits asks for the other"
        except UserError as error:
            reason = str(error)
    return load("digits"), f"digits, since {reason}; --dataset cifar10 asks for the other"


def load_again(run):
    """Give the Run the Dataset that it began with. Raises UserError if that has
    changed."""
    run.dataset, _ = load_asked(vars(run.s), run.device)
    found, expected = fingerprint(run.dataset), run.config["fingerprint"]
    if found != expected:
        raise UserError(f"the dataset is not the one that the run {run.folder!r} began with: its "
                        f"fingerprint is {found}, not {expected}; name the right folder by --data")


def fingerprint(dataset):
    """A short text that changes with the pictures, their labels, order or classes."""
    digest = hashlib.sha256(repr(dataset.classes).encode())
    for part in (dataset.images, dataset.labels, dataset.test_images, dataset.test_labels):
        digest.update(repr(part.shape).encode())
        digest.update(part.fingerprint() if isinstance(part, Files) else part.contiguous().numpy())
    return digest.hexdigest()[:16]


def _digits():
    from sklearn.datasets import load_digits
    digits = load_digits()
    images = torch.from_numpy(digits.images * 255 / 16).round().to(torch.uint8)[:, None]
    labels = torch.from_numpy(digits.target).long()
    # the set has no test part: take 360 pictures, always the same
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    test, train = order[:360], order[360:]
    return images[train], labels[train], images[test], labels[test], list("0123456789")


def _torchvision(name, root):
    from torchvision import datasets
    tensors = []
    for train in (True, False):
        make = getattr(datasets, "FashionMNIST" if name == "fashionmnist" else name.upper())
        part = {"split": "train" if train else "test"} if name == "svhn" else {"train": train}
        try:
            try:
                found = make(root, **part, download=False)
            except RuntimeError:  # not there, or damaged; downloading prints to the screen
                found = make(root, **part, download=True)
            images = torch.as_tensor(found.data)
            labels = torch.as_tensor(found.labels if name == "svhn" else found.targets).long()
            if not len(images) == len(labels) > 0 or images.dtype != torch.uint8:
                raise ValueError(f"{len(labels)} labels for {len(images)} pictures")
        except Exception as error:  # torchvision reads FashionMNIST without verifying it
            raise UserError(
                f"{name} is not in {root!r} or is damaged, and cannot be downloaded "
                f"({first_line(error)}): name its folder by --data, or use --dataset digits or "
                "folder") from None
        if images.ndim == 3:
            images = images[:, None]
        elif images.shape[-1] == 3:
            images = images.permute(0, 3, 1, 2).contiguous()
        tensors += [images, labels]
    return *tensors, getattr(found, "classes", list("0123456789"))


def _npz(path):
    """The arrays of a file, as MedMNIST or Keras names them."""
    parts = []
    try:
        file = np.load(path, allow_pickle=False)
        names = ("x_{}", "y_{}") if "x_train" in file else ("{}_images", "{}_labels")
        names = [name.format(part) for part in ("train", "test") for name in names]
        for images, labels in zip(names[::2], names[1::2]):
            x, y = file[images], file[labels]
            if (x.dtype != np.uint8 or x.ndim not in (3, 4) or x.shape[3:] not in ((), (1,), (3,))
                    or min(x.shape[1:3]) < 8 or not len(x)):
                raise ValueError(f"{images} is {x.dtype} {x.shape}, not uint8 (N, H, W), (N, H, W, "
                                 "1) or (N, H, W, 3) of 8 x 8 pixels or more")
            if y.dtype.kind not in "iu" or y.shape not in ((len(x),), (len(x), 1)):
                raise ValueError(f"{labels} is {y.dtype} {y.shape}, not {len(x)} whole numbers")
            x = torch.from_numpy(x.reshape(*x.shape[:3], -1)).permute(0, 3, 1, 2)
            x = x.expand(-1, 3 if max(x.shape[2:]) > LARGE else -1, -1, -1)  # as networks for them
            parts += x.contiguous(), torch.from_numpy(y.astype(np.int64).reshape(-1))
        if parts[0].shape[1:] != parts[2].shape[1:]:
            raise ValueError(f"two shapes, {[tuple(x.shape[1:]) for x in parts[::2]]}")
        found, tested = ([*map(str, y.unique().tolist())] for y in parts[1::2])
        if found != [*map(str, range(max(2, len(found))))] or not {*tested} <= {*found}:
            raise ValueError("labels are not 0, 1, 2, ... without a gap, those of the test among "
                             f"them: {count_classes(found)}, test {count_classes(tested)}")
    except Exception as error:  # a damaged file makes NumPy raise nearly anything
        raise UserError(f"{path!r}: {first_line(error)}; --data must name a file of numpy.savez "
                        "with train_images, train_labels, test_images, test_labels") from None
    others = [name for name in file if name not in names]
    if others:
        warnings.warn(f"{path}: left aside {', '.join(others)}")
    return *parts, found
