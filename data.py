"""Datasets as one uint8 tensor each; a whole batch is augmented at once.

    digits      scikit-learn's 1,797 handwritten digits, 8x8; needs no download
    cifar10, cifar100, svhn, fashionmnist
                by torchvision, downloaded into the data folder
    folder      your pictures: <data>/train/<class>/*, <data>/test/<class>/*
"""
import functools
import hashlib
import os
import warnings
from collections import namedtuple

import torch
import torch.nn.functional as F

from flags import UserError

# images: uint8 (N, C, H, W); labels: int64 (N,)
# mean, std: of each channel of the training pictures, 0 to 255
Dataset = namedtuple("Dataset", "name images labels test_images test_labels classes mean std")

# padding: pixels of the random crop; flip: whether half of the pictures are mirrored
# search, eval: the settings that differ from CIFAR-10's recipe
Recipe = namedtuple("Recipe", "padding flip search eval")
RECIPES = {
    "digits": Recipe(
        1, False,
        search=dict(init_channels=8, layers=4, epochs=25, batch_size=64, learning_rate=0.025,
                    arch_learning_rate=0.05, width=0.1),
        eval=dict(init_channels=16, layers=8, epochs=20, cutout_length=2, drop_path_prob=0.1,
                  width=0.1)),
    "cifar10": Recipe(4, True, {}, {}),
    "cifar100": Recipe(4, True, {}, {}),
    "svhn": Recipe(4, False, {}, {}),
    "fashionmnist": Recipe(4, True, {}, {}),
    "folder": Recipe(4, True, {}, {}),
}


def load(name, root="data", image_size=32, skip_bad_images=False):
    """The Dataset `name`, on the CPU. Raises UserError.

    image_size and skip_bad_images matter for "folder" alone.
    """
    if name == "digits":
        parts = _digits()
    elif name == "folder":
        parts = _folder(root, image_size, skip_bad_images)
    else:
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
    a text that says which and why.
    """
    root = given.get("data", "data")
    if "dataset" in given:
        return load(given["dataset"], root, given.get("image_size", 32),
                    given.get("skip_bad_images", False)), None
    reason = "there is no GPU"
    if device.type != "cpu":
        try:
            dataset = load("cifar10", root)
            return dataset, "cifar10, since there is a GPU; --dataset digits asks for the other"
        except UserError as error:
            reason = str(error)
    return load("digits"), f"digits, since {reason}; --dataset cifar10 asks for the other"


def load_again(run, settings, device):
    """The Dataset that `run` began with. Raises UserError if it has changed."""
    dataset, _ = load_asked(settings, device)
    run.check_fingerprint(fingerprint(dataset))
    return dataset


def facts(dataset):
    """What a run's config.json keeps of its dataset."""
    return {"fingerprint": fingerprint(dataset), "classes": dataset.classes,
            "shape": list(dataset.images.shape[1:])}


def fingerprint(dataset):
    """A short text that changes with the pictures, their labels, order or classes."""
    digest = hashlib.sha256(repr(dataset.classes).encode())
    for tensor in (dataset.images, dataset.labels, dataset.test_images, dataset.test_labels):
        digest.update(repr(tensor.shape).encode())
        digest.update(tensor.contiguous().numpy())
    return digest.hexdigest()[:16]


def _digits():
    from sklearn.datasets import load_digits
    digits = load_digits()
    images = torch.from_numpy(digits.images * 255 / 16).round().to(torch.uint8)[:, None]
    labels = torch.from_numpy(digits.target).long()
    # the set has no test part: take 360 pictures, always the same
    test, train = torch.randperm(len(images), generator=generator(0)).tensor_split([360])
    return images[train], labels[train], images[test], labels[test], list("0123456789")


def _torchvision(name, root):
    from torchvision import datasets
    make = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100,
            "fashionmnist": datasets.FashionMNIST, "svhn": _svhn}[name]
    tensors = []
    for train in (True, False):
        try:
            part = _quietly(make, root, train)
            images = torch.as_tensor(part.data)
            labels = torch.as_tensor(part.labels if name == "svhn" else part.targets)
        except Exception as error:  # torchvision reads FashionMNIST without verifying it
            raise UserError(
                f"{name} is not in {root!r} or is damaged, and cannot be downloaded "
                f"({_first_line(error)}): name its folder by --data, or use --dataset digits or "
                "folder") from None
        if images.ndim == 3:
            images = images[:, None]
        elif images.ndim == 4 and images.shape[-1] == 3:
            images = images.permute(0, 3, 1, 2).contiguous()
        classes = getattr(part, "classes", list("0123456789"))
        shape = (len(labels.flatten()), *((1, 28, 28) if name == "fashionmnist" else (3, 32, 32)))
        if (images.dtype != torch.uint8 or images.shape != shape or labels.ndim != 1
                or labels.is_floating_point() or not len(labels)
                or not 0 <= labels.min() <= labels.max() < len(classes)):
            raise UserError(f"{name} in {root!r} is damaged: it has {labels.numel()} labels for "
                            f"pictures {tuple(images.shape)}; remove it to download it again")
        tensors += [images, labels.long()]
    return *tensors, classes


def _svhn(root, train, download):
    from torchvision.datasets import SVHN
    return SVHN(root, "train" if train else "test", download=download)


def _quietly(make, root, train):
    """Reads the set; only if that fails, downloads it, which prints to the screen."""
    try:
        return make(root, train=train, download=False)
    except RuntimeError:  # not there, or damaged
        return make(root, train=train, download=True)


def _folder(root, size, skip_bad):
    images, labels, classes, grey = _pictures(os.path.join(root, "train"), size, skip_bad)
    test_images, test_labels, test_classes, test_grey = _pictures(
        os.path.join(root, "test"), size, skip_bad)
    different = sorted(set(classes) ^ set(test_classes))
    if different:
        raise UserError(f"{root}: class {different[0]!r} is in only one of train/ and test/")
    channels = 1 if grey and test_grey else 3
    return images[:, :channels], labels, test_images[:, :channels], test_labels, classes


def _pictures(folder, size, skip_bad):
    """All pictures of a folder, the shorter side resized to `size`, then cropped.

    Returns images (N, 3, size, size), labels, class names, whether all are grey.
    """
    from torchvision import transforms
    fit = transforms.Compose([transforms.Resize(size), transforms.CenterCrop(size),
                              transforms.PILToTensor()])
    if not os.path.isdir(folder):
        raise UserError(f"there is no folder {folder!r}: --data must name a folder that holds "
                        "train/<class>/* and test/<class>/*")
    classes, samples = _list_pictures(folder)
    if len(classes) < 2:
        found = f"only one class, {classes[0]!r}" if classes else "no class"
        raise UserError(f"{folder}: {found}; a folder for each of two or more classes is needed")
    images, labels, grey, bad = [], [], True, []
    for path, label in samples:
        try:
            picture = _open_picture(path)
            images.append(fit(picture.convert("RGB")))
        except Exception as error:  # a damaged file makes Pillow raise nearly anything
            reason = _first_line(error) or type(error).__name__
            bad.append(f"{os.path.relpath(path, folder)} ({reason})")
            continue
        grey = grey and picture.mode in ("1", "L", "LA")
        labels.append(label)
    if bad:
        named = bad if len(bad) <= 5 else [*bad[:5], "..."]
        found = (f"{folder}: {len(bad)} of {len(samples)} files cannot be used as "
                 f"pictures: {', '.join(named)}")
        if not skip_bad:
            raise UserError(f"{found}; mend or remove them, or leave them out with "
                            "--skip_bad_images")
        warnings.warn(f"{found}; left out")
    for label, name in enumerate(classes):
        if label not in labels:
            raise UserError(f"{folder}: class {name!r} has no picture that can be used")
    return torch.stack(images), torch.tensor(labels), classes, grey


def _list_pictures(folder):
    """The classes, and (path, label) of every picture, in the order of ImageFolder."""
    from torchvision.datasets.folder import IMG_EXTENSIONS
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    samples, seen = [], set()
    for label, name in enumerate(classes):
        for parent, folders, files in sorted(os.walk(os.path.join(folder, name))):
            for path in (parent, *(os.path.join(parent, inner) for inner in folders)):
                if os.path.islink(path):
                    raise UserError(f"{path} is a link to a folder, which may lead back up: put "
                                    "the folder itself there, or links to its files")
            for path in (os.path.join(parent, file) for file in sorted(files)):
                real = os.path.realpath(path)
                if path.lower().endswith(IMG_EXTENSIONS) and os.path.isfile(real):
                    if real in seen:
                        raise UserError(f"{path}: this picture is in {folder} twice, by a link")
                    seen.add(real)
                    samples.append((path, label))
    return classes, samples


def _open_picture(path):
    from PIL import Image
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        picture = Image.open(path)
    with picture:
        picture.load()
    if picture.mode.startswith(("I", "F")):
        raise ValueError(f"mode {picture.mode}: more than 8 bits a channel")
    return picture


def _first_line(error):
    return str(error).strip().split("\n")[0]


def generator(seed, stream=0):
    """A seeded generator; `stream` tells apart the independent uses of one seed."""
    return torch.Generator().manual_seed(1000 * seed + stream)


def split(count, portion, seed):
    """0 .. count - 1 at random in two index tensors, `portion` of them in the first."""
    order = torch.randperm(count, generator=generator(seed, 1))
    return order[:int(portion * count)], order[int(portion * count):]


def check_batch(batch_size, count):
    """Raises UserError if a batch is larger than the number of pictures, `count`."""
    if count < 2:
        raise UserError(f"there are {count} pictures to draw batches from: it takes 2 or more")
    if batch_size > count:
        raise UserError(f"--batch_size {batch_size} is larger than the {count} pictures it is "
                        f"drawn from: give --batch_size {count} or less")


def normalize(images, mean, std):
    """uint8 (B, C, H, W) -> float32 of mean 0 and deviation 1 in each channel."""
    return images.float().sub_(mean[:, None, None]).div_(std[:, None, None])


def random_crop_flip(images, padding, flip, generator):
    """Each picture padded with black, cropped at a random place, and if `flip` mirrored
    half of the time. (B, C, H, W) -> (B, C, H, W)"""
    crops = _crops(*images.shape[2:], padding, flip, images.device)
    chosen = torch.randint(len(crops), (len(images),), generator=generator).to(images.device)
    pixels = crops.index_select(0, chosen)[:, None].expand(-1, images.shape[1], -1)  # (B, C, H * W)
    return F.pad(images, [padding] * 4).flatten(2).gather(2, pixels).view(images.shape)


@functools.lru_cache
def _crops(height, width, padding, flip, device):
    """Every possible crop, as the places of its pixels in the padded picture.

    -> (crops, H * W)
    """
    rows, columns = height + 2 * padding, width + 2 * padding
    places = torch.arange(rows * columns, device=device).view(rows, columns)
    crops = places.unfold(0, height, 1).unfold(1, width, 1).flatten(0, 1)
    return torch.cat([crops, crops.flip(2)] if flip else [crops]).flatten(1)


def cutout(images, length, generator):
    """Sets a square of `length` pixels around a random pixel of each picture to 0, in
    place (DeVries & Taylor, 2017)."""
    height, width = images.shape[2:]
    y = torch.randint(height, (len(images),), generator=generator).to(images.device)
    x = torch.randint(width, (len(images),), generator=generator).to(images.device)
    rows = _intervals(height, length, images.device).index_select(0, y)[:, None, :, None]
    columns = _intervals(width, length, images.device).index_select(0, x)[:, None, None, :]
    return images.mul_(1 - rows * columns)


@functools.lru_cache
def _intervals(size, length, device):
    """(size, size): row i is 1 on the `length` places around i, 0 elsewhere."""
    places = torch.arange(size, device=device)
    distance = places - places[:, None] + length // 2
    return ((distance >= 0) & (distance < length)).float()


class Batches:
    """An endless stream of augmented batches; len: batches in a pass over the pictures.

    Every pass has a new random order, and leaves out the remainder that fills no batch.
    state_dict holds the generator's state, the order and the position in it: a stream
    that loads it continues exactly there.
    """

    def __init__(self, images, labels, mean, std, batch_size, padding, flip, cutout_length,
                 generator):
        check_batch(batch_size, len(images))
        self.images, self.labels, self.mean, self.std = images, labels, mean, std
        self.batch_size, self.generator = batch_size, generator
        self.padding, self.flip, self.cutout_length = padding, flip, cutout_length
        self.order, self.position = torch.empty(0, dtype=torch.long), 0

    def __len__(self):
        return len(self.images) // self.batch_size

    def next(self):
        """-> images (B, C, H, W) float32, labels (B,)"""
        if self.position + self.batch_size > len(self.order):
            self.order = torch.randperm(len(self.images), generator=self.generator)
            self.position = 0
        chosen = self.order[self.position:self.position + self.batch_size].to(self.images.device)
        self.position += self.batch_size
        images = self.images.index_select(0, chosen)
        images = random_crop_flip(images, self.padding, self.flip, self.generator)
        images = normalize(images, self.mean, self.std)
        if self.cutout_length:
            images = cutout(images, self.cutout_length, self.generator)
        return images, self.labels[chosen]

    def state_dict(self):
        return {"generator": self.generator.get_state(), "order": self.order,
                "position": self.position}

    def load_state_dict(self, state):
        order, position = state["order"], state["position"]
        everything = torch.arange(len(self.images) if len(order) else 0)
        if type(position) is not int or not 0 <= position <= len(order) or (
                order.dtype != torch.long or not torch.equal(order.sort().values, everything)):
            raise ValueError("no order of the pictures, or no place in it")
        self.generator.set_state(state["generator"])
        self.order, self.position = order, position


def in_order(images, labels, mean, std, batch_size=256):
    """All pictures once, as they are, in batches of (images, labels)."""
    for part, targets in zip(images.split(batch_size), labels.split(batch_size)):
        yield normalize(part, mean, std), targets
