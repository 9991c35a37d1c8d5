"""Datasets as one uint8 tensor each, cut, flipped and augmented for a whole batch at once on their device.

    digits                            scikit-learn's 1,797 handwritten digits, 8x8; needs no download
    cifar10 cifar100 svhn fashionmnist  by torchvision, downloaded into the data folder
    folder                            your pictures: <data>/train/<class>/*, <data>/test/<class>/*
"""
import functools
import hashlib
import os
import warnings
from collections import namedtuple

import torch
import torch.nn.functional as F

from flags import UserError

# images: uint8 (N, C, H, W); labels: int64 (N,); mean, std: of each channel of the training pictures, 0 to 255
Dataset = namedtuple("Dataset", "name images labels test_images test_labels classes mean std")

# padding: pixels of the random crop; flip: mirrored or not; search, eval: what differs from CIFAR-10's recipe, in both spaces
Recipe = namedtuple("Recipe", "padding flip search eval")
RECIPES = {
    "digits": Recipe(1, False, dict(init_channels=8, layers=4, epochs=25, batch_size=64, learning_rate=0.025,
                                    arch_learning_rate=0.05, width=0.1),
                     dict(init_channels=16, layers=8, epochs=20, cutout_length=2, drop_path_prob=0.1, width=0.1)),
    "cifar10": Recipe(4, True, {}, {}),
    "cifar100": Recipe(4, True, {}, {}),
    "svhn": Recipe(4, False, {}, {}),
    "fashionmnist": Recipe(4, True, {}, {}),
    "folder": Recipe(4, True, {}, {}),
}


def load(name, root="data", image_size=32, skip_bad_images=False):
    """The Dataset `name` on the CPU; `image_size` and `skip_bad_images` count for "folder" alone. Raises UserError."""
    if name == "digits":
        parts = _digits()
    elif name == "folder":
        parts = _folder(root, image_size, skip_bad_images)
    else:
        parts = _torchvision(name, root)
    images = parts[0]
    counts = torch.stack([torch.bincount(images[:, c].flatten(), minlength=256) for c in range(images.shape[1])])
    values = torch.arange(256, dtype=torch.float64)
    mean = (counts * values).sum(1) / counts.sum(1)
    std = ((counts * (values - mean[:, None]) ** 2).sum(1) / counts.sum(1)).sqrt().clamp(min=1)
    return Dataset(name, *parts, mean.float(), std.float())


def load_asked(given, device):
    """The Dataset that the flags `given` ask for, and None; or, where they name none, CIFAR-10 if there is a GPU and
    it can be had and digits otherwise, and the reason. Raises UserError."""
    root, ask = given.get("data", "data"), "--dataset {} asks for the other".format
    if "dataset" in given:
        return load(given["dataset"], root, given.get("image_size", 32), given.get("skip_bad_images", False)), None
    if device.type == "cpu":
        return load("digits"), f"digits, since there is no GPU; {ask('cifar10')}"
    try:
        return load("cifar10", root), f"cifar10, since there is a GPU; {ask('digits')}"
    except UserError as error:
        return load("digits"), f"digits, since {error}; {ask('cifar10')}"


def load_again(run, settings, device):
    """The Dataset that `run` began with. Raises UserError where it has changed."""
    dataset, _ = load_asked(settings, device)
    run.check_fingerprint(fingerprint(dataset))
    return dataset


def fingerprint(dataset):
    """A text that any change of the pictures, their labels, their order or the classes changes."""
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
    order = torch.randperm(len(images), generator=generator(0))  # the set has no test part: 360 of it, always the same
    train, test = order[360:], order[:360]
    return images[train], labels[train], images[test], labels[test], [str(c) for c in range(10)]


def _torchvision(name, root):
    from torchvision import datasets
    make = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100, "fashionmnist": datasets.FashionMNIST,
            "svhn": lambda root, train, download: datasets.SVHN(root, "train" if train else "test",
                                                                download=download)}[name]
    tensors = []
    for train in (True, False):
        try:  # the checksum of every file is verified before it is read
            part = _quietly(make, root, train)
        except (OSError, RuntimeError) as error:
            raise UserError(f"{name} is not in {root!r} and cannot be downloaded ({_line(error)}): name its folder by "
                            "--data, or use --dataset digits or folder") from None
        images = torch.as_tensor(part.data)
        if images.ndim == 3:
            images = images[:, None]
        elif images.shape[-1] == 3:
            images = images.permute(0, 3, 1, 2).contiguous()
        tensors += [images, torch.as_tensor(part.labels if name == "svhn" else part.targets).long()]
    return *tensors, getattr(part, "classes", [str(c) for c in range(10)])


def _quietly(make, root, train):
    try:
        return make(root, train=train, download=False)
    except RuntimeError:  # not there, or damaged
        return make(root, train=train, download=True)


def _folder(root, size, skip):
    train, test = (_pictures(os.path.join(root, part), size, skip) for part in ("train", "test"))
    for name in sorted(set(train[2]) ^ set(test[2])):
        raise UserError(f"{root}: class {name!r} is in only one of train/ and test/")
    channels = 1 if train[3] and test[3] else 3
    return train[0][:, :channels], train[1], test[0][:, :channels], test[1], train[2]


def _pictures(folder, size, skip):
    """All pictures of an image folder, resized so that the shorter side is `size`, then cropped to a square.

    Returns images (N, 3, size, size), labels, class names, whether all are grey.
    """
    from torchvision import transforms
    from torchvision.datasets import ImageFolder
    fit = transforms.Compose([transforms.Resize(size), transforms.CenterCrop(size), transforms.PILToTensor()])
    if not os.path.isdir(folder):
        raise UserError(f"there is no folder {folder!r}: --data must name a folder that holds train/<class>/* and "
                        "test/<class>/*")
    try:
        listing = ImageFolder(folder)
    except FileNotFoundError as error:
        raise UserError(_line(error)) from None
    if len(listing.classes) < 2:
        raise UserError(f"{folder}: only one class, {listing.classes[0]!r}; a folder for each of two or more classes "
                        "is needed")
    images, labels, grey, bad = [], [], True, []
    for path, label in listing.samples:
        try:
            picture = _open_picture(path)
            images.append(fit(picture.convert("RGB")))
        except Exception as error:  # a damaged file makes Pillow raise nearly anything
            bad.append(f"{os.path.relpath(path, folder)} ({_line(error) or type(error).__name__})")
            continue
        grey = grey and picture.mode in ("1", "L", "LA")
        labels.append(label)
    if bad:
        found = (f"{folder}: {len(bad)} of {len(listing.samples)} files cannot be used as pictures: "
                 + ", ".join(bad[:5]) + ", ..." * (len(bad) > 5))
        if not skip:
            raise UserError(found + "; mend or remove them, or leave them out with --skip_bad_images")
        warnings.warn(found + "; left out")
    for label, name in enumerate(listing.classes):
        if label not in labels:
            raise UserError(f"{folder}: class {name!r} has no picture that can be used")
    return torch.stack(images), torch.tensor(labels), listing.classes, grey


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


def _line(error):
    return str(error).strip().split("\n")[0]


def generator(seed, stream=0):
    """A seeded generator; `stream` tells apart the independent uses of one seed."""
    return torch.Generator().manual_seed(1000 * seed + stream)


def split(count, portion, seed):
    """Two disjoint index tensors that together are 0 .. count - 1, `portion` of them in the first."""
    order = torch.randperm(count, generator=generator(seed, 1))
    return order[:int(portion * count)], order[int(portion * count):]


def check_batch(batch_size, count):
    """Raises UserError where a batch is larger than the `count` pictures that it is drawn from."""
    if batch_size > count:
        raise UserError(f"--batch_size {batch_size} is larger than the {count} pictures it is drawn from: give "
                        f"--batch_size {count} or less")


def normalize(images, mean, std):
    """uint8 (B, C, H, W) -> float32 of mean 0 and deviation 1 in each channel."""
    return images.float().sub_(mean[:, None, None]).div_(std[:, None, None])


def random_crop_flip(images, padding, flip, generator):
    """Each picture padded with black by `padding`, cropped at a place of its own, mirrored half of the time if
    `flip`. (B, C, H, W) -> (B, C, H, W)"""
    crops = _crops(*images.shape[2:], padding, flip, images.device)
    chosen = torch.randint(len(crops), (len(images),), generator=generator).to(images.device)
    pixels = crops.index_select(0, chosen)[:, None].expand(-1, images.shape[1], -1)  # (B, C, H * W)
    return F.pad(images, [padding] * 4).flatten(2).gather(2, pixels).view(images.shape)


@functools.lru_cache
def _crops(height, width, padding, flip, device):
    """Every crop that may be drawn, as the places of its pixels in the padded picture: (crops, H * W)"""
    places = torch.arange((height + 2 * padding) * (width + 2 * padding), device=device)
    crops = places.view(-1, width + 2 * padding).unfold(0, height, 1).unfold(1, width, 1).flatten(0, 1)
    return torch.cat([crops, crops.flip(2)] if flip else [crops]).flatten(1)


def cutout(images, length, generator):
    """Set a square of `length` pixels around a random pixel of each picture to 0, in place (DeVries & Taylor, 2017)."""
    rows, columns = [_intervals(size, length, images.device).index_select(0, torch.randint(
        size, (len(images),), generator=generator).to(images.device)) for size in images.shape[2:]]
    return images.mul_((1 - rows[:, :, None] * columns[:, None, :])[:, None])


@functools.lru_cache
def _intervals(size, length, device):
    """(size, size): row i is 1 on the `length` places around i, 0 elsewhere."""
    distance = torch.arange(size, device=device) - torch.arange(size, device=device)[:, None] + length // 2
    return ((distance >= 0) & (distance < length)).float()


class Batches:
    """An endless stream of augmented batches, reshuffled whenever it has been through; len: batches a pass.

    A pass leaves out the remainder that fills no batch; the next order is another one. state_dict holds the
    generator's state, the order and the position in it: a stream that loads it goes on exactly there.
    """

    def __init__(self, images, labels, mean, std, batch_size, padding, flip, cutout_length, generator):
        self.images, self.labels, self.mean, self.std, self.batch_size = images, labels, mean, std, batch_size
        self.padding, self.flip, self.cutout_length, self.generator = padding, flip, cutout_length, generator
        self.order, self.position = torch.empty(0, dtype=torch.long), 0

    def __len__(self):
        return len(self.images) // self.batch_size

    def next(self):
        """-> images (B, C, H, W) float32, labels (B,)"""
        if self.position + self.batch_size > len(self.order):
            self.order, self.position = torch.randperm(len(self.images), generator=self.generator), 0
        chosen = self.order[self.position:self.position + self.batch_size].to(self.images.device)
        self.position += self.batch_size
        images = random_crop_flip(self.images.index_select(0, chosen), self.padding, self.flip, self.generator)
        images = normalize(images, self.mean, self.std)
        if self.cutout_length:
            images = cutout(images, self.cutout_length, self.generator)
        return images, self.labels[chosen]

    def state_dict(self):
        return {"generator": self.generator.get_state(), "order": self.order, "position": self.position}

    def load_state_dict(self, state):
        self.generator.set_state(state["generator"])
        self.order, self.position = state["order"], state["position"]


def in_order(images, labels, mean, std, batch_size=256):
    """All pictures once, as they are, in batches of (images, labels)."""
    for part, targets in zip(images.split(batch_size), labels.split(batch_size)):
        yield normalize(part, mean, std), targets
