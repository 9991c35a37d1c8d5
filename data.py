"""Datasets as one uint8 tensor each; a whole batch is augmented at once.

    digits      scikit-learn's 1,797 handwritten digits, 8x8; needs no download
    cifar10, cifar100, svhn, fashionmnist
                by torchvision, downloaded into the data folder
    folder      your pictures: <data>/train/<class>/*, <data>/test/<class>/*
    imagenet    the same with val/ in place of test/, read from the files as they are asked for
"""
import functools
import hashlib
from collections import namedtuple

import torch
import torch.nn.functional as F

import parallel
from flags import UserError, first_line
from pictures import LARGE, Files, read_folder
from recipes import RECIPES

# images: uint8 (N, C, H, W), or pictures.Files; labels: int64 (N,)
# mean, std: of each channel of the training pictures, 0 to 255
Dataset = namedtuple("Dataset", "name images labels test_images test_labels classes mean std")


def load(name, root="data", image_size=None, skip_bad_images=False, stream=False, workers=2):
    """The Dataset `name`, on the CPU. Raises UserError.

    All but name and root matter for "folder" and "imagenet" alone. stream: read the files as
    they are asked for, which is always done for pictures of more than 64 pixels.
    """
    if name == "digits":
        parts = _digits()
    elif name in ("folder", "imagenet"):
        size = image_size or RECIPES[name].search.get("image_size", 32)
        stream = workers if stream or name == "imagenet" or size > LARGE else None
        parts = read_folder(root, "val" if name == "imagenet" else "test", size, skip_bad_images,
                            stream)
        if stream is not None:  # the usual figures of ImageNet
            mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]) * 255
            return Dataset(name, *parts, mean, std)
    else:
        with parallel.first():
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
        names = "image_size", "skip_bad_images", "stream", "workers"
        return load(given["dataset"], root,
                    **{name: given[name] for name in names if name in given}), None
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
                f"({first_line(error)}): name its folder by --data, or use --dataset digits or "
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


def generator(seed, stream=0):
    """A seeded generator; `stream` tells apart the independent uses of one seed."""
    return torch.Generator().manual_seed(1000 * seed + stream)


def split(count, portion, seed):
    """0 .. count - 1 at random in two index tensors, `portion` of them in the first."""
    order = torch.randperm(count, generator=generator(seed, 1))
    return order[:int(portion * count)], order[int(portion * count):]


def balanced(labels, first, second, seed):
    """Two index tensors of the shares `first` and `second` of each class, at random."""
    g, parts = generator(seed, 1), ([], [])
    for label in range(int(labels.max()) + 1):
        of_class = (labels == label).nonzero().flatten()
        order = of_class[torch.randperm(len(of_class), generator=g)]
        if len(order) < 2:
            raise UserError("a class has one picture, too few for --train_fraction and "
                            "--valid_fraction")
        counts = [max(1, int(share * len(order))) for share in (first, second)]
        for part, chosen in zip(parts, order.split([*counts, len(order) - sum(counts)])):
            part.append(chosen)
    return [torch.cat(part) for part in parts]


def check_batch(batch_size, count):
    """Raises UserError if a batch is larger than the number of pictures, `count`, or is not a
    multiple of the number of processes."""
    if batch_size % parallel.size() or batch_size < 2 * parallel.size():
        raise UserError(f"--batch_size {batch_size} is that of all {parallel.size()} processes: "
                        f"give a multiple of {parallel.size()}, {2 * parallel.size()} or more")
    if count < 2:
        raise UserError(f"there are {count} pictures to draw batches from: it takes 2 or more")
    if batch_size > count:
        raise UserError(f"--batch_size {batch_size} is larger than the {count} pictures it is "
                        f"drawn from: give --batch_size {count} or less")


def normalize(images, mean, std):
    """uint8 (B, C, H, W) -> float32 of mean 0 and deviation 1 in each channel."""
    return images.float().sub_(mean[:, None, None]).div_(std[:, None, None])


def random_crop_flip(images, chosen, padding, flip):
    """Each picture padded with black and cropped, and if `flip` perhaps mirrored: chosen, (B,),
    says which of all such pictures it is. (B, C, H, W) -> (B, C, H, W)"""
    crops = _crops(*images.shape[2:], padding, flip, images.device)
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


def cutout(images, y, x, length):
    """Sets a square of `length` pixels around row y and column x, (B,), of each picture to 0, in
    place (DeVries & Taylor, 2017)."""
    rows = _intervals(images.shape[2], length, images.device).index_select(0, y)[:, None, :, None]
    columns = _intervals(images.shape[3], length, images.device).index_select(0, x)
    return images.mul_(1 - rows * columns[:, None, None, :])


@functools.lru_cache
def _intervals(size, length, device):
    """(size, size): row i is 1 on the `length` places around i, 0 elsewhere."""
    places = torch.arange(size, device=device)
    distance = places - places[:, None] + length // 2
    return ((distance >= 0) & (distance < length)).float()


class Batches:
    """An endless stream of augmented batches; len: batches in a pass over the pictures.

    Every pass has a new random order, and leaves out the remainder that fills no batch. All its
    random numbers are drawn at its start, so that none has to travel in a step. Of several
    processes, each gets its part of every batch. state_dict holds the generator's state before
    the pass and the position in it: a stream that loads it continues exactly there.
    """

    def __init__(self, images, labels, mean, std, batch_size, padding, flip, cutout_length,
                 generator):
        check_batch(batch_size, len(images))
        self.images, self.labels, self.mean, self.std = images, labels, mean, std
        self.batch_size, self.generator = batch_size, generator
        self.padding, self.flip, self.cutout_length = padding, flip, cutout_length
        self.before, self.position, self.parts = generator.get_state(), 0, []
        self.pictures = iter(())

    def __len__(self):
        return len(self.images) // self.batch_size

    def begin_pass(self, position=0):
        self.before, self.position = self.generator.get_state(), position
        count, _, height, width = self.images.shape
        crops = (2 * self.padding + 1) ** 2 * (2 if self.flip else 1)
        draws = [torch.randint(high, (count,), generator=self.generator)
                 for high in (crops, height, width, 2 ** 62)]
        order = torch.randperm(count, generator=self.generator)
        plan = torch.stack([order, *draws], 1).to(self.labels.device)  # (N, 5)
        self.close()
        self.parts = [parallel.mine(part) for part in plan[position:].split(self.batch_size)
                      if len(part) == self.batch_size]
        self.pictures = read(self.images, self.parts, random=True)

    def next(self):
        """-> images (B, C, H, W) float32, labels (B,)"""
        if not self.parts:
            self.begin_pass()
        self.position += self.batch_size
        chosen, crops, y, x, _ = self.parts.pop(0).unbind(1)
        images = random_crop_flip(next(self.pictures), crops, self.padding, self.flip)
        images = normalize(images, self.mean, self.std)
        if self.cutout_length:
            images = cutout(images, y, x, self.cutout_length)
        return images, self.labels.index_select(0, chosen)

    def close(self):
        """End the processes that read ahead."""
        if hasattr(self.pictures, "close"):
            self.pictures.close()

    def state_dict(self):
        return {"generator": self.before, "position": self.position}

    def load_state_dict(self, state):
        if type(state["position"]) is not int or not 0 <= state["position"] <= len(self.images):
            raise ValueError(f"{state['position']!r} is no place among the pictures")
        self.generator.set_state(state["generator"])
        self.begin_pass(state["position"])


def read(images, parts, random=False):
    """The pictures of each part, whose rows begin with their index."""
    if isinstance(images, Files):
        return images.read([part.cpu() for part in parts], random)
    return (images.index_select(0, part[:, 0]) for part in list(parts))


def in_order(images, labels, mean, std, batch_size=256):
    """All pictures once, as they are, in batches of (images, labels). Of several processes, each
    gets its share of the batches."""
    indices = torch.arange(len(labels), device=labels.device)[:, None]
    parts = indices.split(batch_size)[parallel.rank()::parallel.size()]
    for pictures, part in zip(read(images, parts), parts):
        yield normalize(pictures, mean, std), labels.index_select(0, part[:, 0])
