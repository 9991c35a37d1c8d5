"""Picture folders: read into one tensor, or, where that does not fit, on demand.

`Files` stands in for the uint8 tensor of a data.Dataset. Worker processes decode and
crop whole batches ahead of time; every picture's random crop has a seed of its own, so
that the number of workers and of ranks changes nothing, and a run goes on in the middle
of an epoch.
"""
import hashlib
import os
import signal
import warnings

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import v2

from engine.flags import UserError, first_line
from model_eval import LARGE  # larger pictures are cropped and coloured as on ImageNet


def read_folder(root, test, size, skip_bad, workers):
    """The pictures and labels of root/train, those of root/`test`, and the classes.
    workers: None for tensors, else a number for Files. Raises UserError."""
    (images, labels, classes, grey), (test_images, test_labels, test_classes, test_grey) = [
        _pictures(root, part, test, size, skip_bad, workers) for part in ("train", test)]
    different = sorted(set(classes) ^ set(test_classes))
    if different:
        raise UserError(f"{root}: class {different[0]!r} is in only one of train/ and {test}/")
    if grey and test_grey:
        images, test_images = images[:, :1], test_images[:, :1]
    return images, labels, test_images, test_labels, classes


def _pictures(root, part, test, size, skip_bad, workers):
    """All pictures of a folder, the shorter side resized to `size`, then cropped:
    (N, 3, size, size); labels, class names, whether all are grey."""
    folder = os.path.join(root, part)
    if not os.path.isdir(folder):
        raise UserError(f"there is no folder {folder!r}: --data must name a folder that holds "
                        f"train/<class>/* and {test}/<class>/*")
    classes, samples = list_pictures(folder)
    if len(classes) < 2:
        found = f"only one class, {classes[0]!r}" if classes else "no class"
        raise UserError(f"{folder}: {found}; a folder for each of two or more classes is needed")
    if workers is None:
        need = 6 * len(samples) * size ** 2  # bytes, of the pictures and the tensor of them all
        if hasattr(os, "sysconf") and need > os.sysconf("SC_PAGE_SIZE") * os.sysconf(
                "SC_PHYS_PAGES"):
            raise UserError(f"{folder}: {len(samples):,} pictures of {size}x{size} do not fit into "
                            "this machine's memory: read them as they are asked for, --stream")
        images, samples, grey = _read_all(folder, samples, size, skip_bad)
    else:
        grey, images = False, Files([path for path, _ in samples], size, workers, skip_bad)
    labels = torch.tensor([label for _, label in samples])
    for label, name in enumerate(classes):
        if label not in labels:
            raise UserError(f"{folder}: class {name!r} has no picture that can be used")
    return images if workers is not None else torch.stack(images), labels, classes, grey


def _read_all(folder, samples, size, skip_bad):
    """The pictures of all samples, the samples that could be read, whether all are
    grey."""
    images, good, grey, bad, fit = [], [], True, [], transform(size)
    for sample in samples:
        try:
            picture = open_picture(sample[0])
            images.append(fit(picture.convert("RGB")))
        except Exception as error:  # a damaged file makes Pillow raise nearly anything
            bad.append(f"{os.path.relpath(sample[0], folder)} ({first_line(error)})")
            continue
        grey = grey and picture.mode in ("1", "L")
        good.append(sample)
    if bad:
        named = ", ".join(bad[:5] + ["..."] * (len(bad) > 5))
        found = f"{folder}: {len(bad)} of {len(samples)} files cannot be used as pictures: {named}"
        if not skip_bad:
            raise UserError(f"{found}; repair or remove them, or leave them out with "
                            "--skip_bad_images")
        warnings.warn(f"{found}; left out")
    return images, good, grey


def list_pictures(folder):
    """The classes in a folder, and (path, label) of every picture, in the order of
    ImageFolder, which follows links in a circle. Raises UserError."""
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    samples = []
    for label, name in enumerate(classes):
        for parent, folders, files in sorted(os.walk(os.path.join(folder, name))):
            for path in (parent, *(os.path.join(parent, inner) for inner in folders)):
                if os.path.islink(path):
                    raise UserError(f"{path} is a link to a folder, which may lead back up: put "
                                    "the folder itself there, or links to its files")
            paths = [os.path.join(parent, file) for file in sorted(files)]
            samples += [(path, label) for path in paths  # and no pipe, which would wait
                        if path.lower().endswith(IMG_EXTENSIONS) and os.path.isfile(path)]
    return classes, samples


# ---------------------------------------------------------------- as they are asked for

class Files:
    """Pictures in files, as (N, 3, size, size). paths: theirs; workers: processes that
    read ahead; skip_bad: a picture that cannot be read is replaced by the next that
    can."""

    def __init__(self, paths, size, workers, skip_bad=False, device=torch.device("cpu")):
        self.paths, self.workers, self.skip_bad, self.device = paths, workers, skip_bad, device
        self.shape = torch.Size((len(paths), 3, size, size))

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, indices):
        return Files([self.paths[i] for i in indices.tolist()], self.shape[2], self.workers,
                     self.skip_bad, self.device)

    def to(self, device):
        self.device = device
        return self

    def fingerprint(self):
        """Of the files' names and sizes."""
        digest = hashlib.sha256()
        for path in self.paths:
            place = os.path.relpath(path, os.path.dirname(os.path.dirname(path)))
            digest.update(f"{place} {os.path.getsize(path)}\n".encode(errors="surrogateescape"))
        return digest.digest()

    def read(self, batches, random):
        """The pictures of each batch, uint8 (B, 3, size, size), on the device. batches:
        rows (picture, ..., seed); random: whether large pictures are cropped and
        coloured at random. Raises UserError."""
        loader = DataLoader(Decoder(self, random), batch_size=None, sampler=batches,
                            num_workers=self.workers, worker_init_fn=ignore_interrupts,
                            pin_memory=self.device.type == "cuda", generator=torch.Generator())
        for images in loader:
            if isinstance(images, str):
                raise UserError(images)
            yield images.to(self.device, non_blocking=True)


def ignore_interrupts(worker):
    """The process that they work for decides when to stop, and ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


class Decoder(torch.utils.data.Dataset):
    """Whole batches of Files; in place of one that cannot be read, why."""

    def __init__(self, files, random):
        self.files = files
        self.transform = transform(files.shape[2], random)

    def __getitem__(self, rows):
        pictures = []
        for index, seed in rows[:, [0, -1]].tolist():
            for offset in range(len(self.files)):
                path = self.files.paths[(index + offset) % len(self.files)]
                try:
                    with torch.random.fork_rng(devices=[]):
                        torch.default_generator.manual_seed(seed)  # not the GPU's as well
                        pictures.append(self.transform(open_picture(path).convert("RGB")))
                    break
                except Exception as error:  # a damaged file makes Pillow raise nearly anything
                    if not self.files.skip_bad:
                        return (f"{path} cannot be used as a picture ({first_line(error)}): repair "
                                "or remove it, or use the next one with --skip_bad_images")
        return torch.stack(pictures)


def transform(size, random=False):
    """From a PIL picture to uint8 (3, size, size). Large ones as DARTS on ImageNet."""
    if size <= LARGE:
        return v2.Compose([v2.Resize(size), v2.CenterCrop(size), v2.PILToTensor()])
    if random:
        return v2.Compose([v2.PILToTensor(), v2.RandomResizedCrop(size, antialias=True),
                           v2.RandomHorizontalFlip(), v2.ColorJitter(0.4, 0.4, 0.4, 0.2)])
    return v2.Compose([v2.PILToTensor(), v2.Resize(size * 256 // 224, antialias=True),
                       v2.CenterCrop(size)])


def open_picture(path):
    """The PIL picture in a file, wholly read, as a viewer shows it: turned as its EXIF
    data say, on white where it is transparent, in 8 bits. Raises what Pillow does,
    ValueError."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        picture = Image.open(path)
    with picture:
        picture.load()
    try:
        ImageOps.exif_transpose(picture, in_place=True)
    except Exception:  # damaged EXIF data make it raise nearly anything; the picture is whole
        pass
    if picture.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(picture) // 256).astype(np.uint8))
    if picture.mode.startswith(("I", "F")):
        raise ValueError(f"mode {picture.mode}: more than 16 bits a channel")
    if picture.has_transparency_data:
        mode, picture = "L" if picture.mode in ("L", "LA") else "RGB", picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert(mode)
    return picture
