"""Picture folders: read into one tensor, or, where that does not fit, on demand.

`Files` stands in for the uint8 tensor of a data.Dataset. Worker processes decode and
crop whole batches ahead of time; every picture's random crop has a seed of its own, so
that the number of workers and of ranks changes nothing, and a run goes on in the middle
of an epoch.
"""
import functools
import hashlib
import os
import re
import signal
import unicodedata
import warnings
from collections import Counter

import numpy as np
import torch
from PIL import Image, ImageOps, PngImagePlugin
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from engine import processes
from engine.flags import UserError, first_line
from engine.recipes import count_classes
from spaces.space import LARGE  # larger pictures are cropped and coloured as on ImageNet

Image.preinit()  # the usual formats are tried first
Image.init()
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # a long text is no reason
# Of the others Pillow reads the head alone, or starts another program
FORMATS = [name for name in Image.ID
           if name not in ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")]
ENDINGS = {ending for ending, name in Image.registered_extensions().items()
           if name in (*FORMATS, "MPO")}
nfc = functools.partial(unicodedata.normalize, "NFC")  # one form of letters with accents
is_visible = re.compile(r"(?!\.|(__MACOSX|@eaDir)$)").match  # a name of the user's, not a system's


def read_folder(root, test, size, skip_bad, workers):
    """The pictures and labels of root/train, those of root/`test`, and the classes.
    workers: None for tensors, else a number for Files. Raises UserError."""
    (images, labels, classes, grey), (test_images, test_labels, test_classes, test_grey) = [
        _pictures(root, part, test, size, skip_bad, workers) for part in ("train", test)]
    for part, own, other in ("train", classes, test_classes), (test, test_classes, classes):
        alone = [name for name in own if name not in other]
        if alone:
            raise UserError(f"{root}: only {part}/ has {count_classes(alone)}; train/ and {test}/ "
                            "must have the same")
    if grey and test_grey:
        images, test_images = images[:, :1], test_images[:, :1]
    return images, labels, test_images, test_labels, classes


def _pictures(root, part, test, size, skip_bad, workers):
    """All pictures of a folder, the shorter side resized to `size`, then cropped:
    (N, 3, size, size); labels, class names, whether all are stored in grey."""
    folder = os.path.join(root, part)
    if not os.path.isdir(folder):
        raise UserError(f"there is no folder {folder!r}: --data must name a folder that holds "
                        f"train/<class>/* and {test}/<class>/*")
    classes, samples = list_pictures(folder)
    if len(classes) < 2:
        found = f"only one class, {classes[0]!r}" if classes else "no class"
        raise UserError(f"{folder}: {found}; a folder for each of two or more classes is needed")
    paths, streamed = [path for path, _ in samples], workers is not None
    need = 6 * len(paths) * size ** 2  # bytes, of the pictures and the tensor of them all
    if not streamed and hasattr(os, "sysconf") and need > os.sysconf("SC_PAGE_SIZE") * os.sysconf(
            "SC_PHYS_PAGES"):
        raise UserError(f"{folder}: {len(paths):,} pictures of {size}x{size} do not fit into this "
                        "machine's memory: read them as they are asked for, --stream")
    images, faults, grey = [], {}, not streamed
    rows = torch.arange(len(paths))[:, None].expand(-1, 2)
    if streamed and skip_bad:  # every rank tries its share
        warnings.warn(f"{folder}: reads all {len(paths):,} files once, to leave out bad ones")
        rows = rows[processes.rank()::processes.size()]
    if skip_bad or not streamed:
        for part, bad, note, of_grey in Files(paths, size, workers or 0).load(rows.split(64)):
            faults.update(bad)
            say_once(note)
            grey = grey and of_grey
            images += [] if streamed else [part]
    if streamed:
        faults = {path: why for part in processes.gather(faults) for path, why in part.items()}
    bad = [f"{os.path.relpath(path, folder)} ({faults[path]})" for path in paths if path in faults]
    if bad:
        named = ", ".join(bad[:5] + ["..."] * (len(bad) > 5))
        found = f"{folder}: {len(bad)} of {len(paths)} files cannot be used as pictures: {named}"
        if not skip_bad:
            raise UserError(f"{found}; repair or remove them, or leave them out with "
                            "--skip_bad_images")
        warnings.warn(f"{found}; left out")
    samples = [sample for sample in samples if sample[0] not in faults]
    labels = torch.tensor([label for _, label in samples])
    for label, name in enumerate(classes):
        if label not in labels:
            raise UserError(f"{folder}: class {name!r} has no picture that can be used")
    images = Files([p for p, _ in samples], size, workers) if streamed else torch.cat(images)
    return images, labels, classes, grey


def list_pictures(folder):
    """The classes in a folder, and (path, label) of every picture, in the order of
    ImageFolder, which follows links in a circle. Raises UserError, OSError."""
    found = files_below(folder)
    classes = sorted({nfc(entry.name) for entry in os.scandir(folder)
                      if entry.is_dir() and is_visible(entry.name)})
    labels = {name: label for label, name in enumerate(classes)}
    samples = [(path, labels[nfc(top)]) for top, _, path in found if top]
    if len(samples) < len(found):
        warnings.warn(f"{folder}: left out pictures in no class: {len(found) - len(samples)}")
    return classes, sorted(samples, key=lambda sample: sample[1])


def files_below(root):
    """Of every picture below a folder (the folder of root that it is in, or "", its own
    folder, its path), sorted; warns of other files. Raises UserError, OSError."""
    found, others = [], Counter()
    for parent, folders, names in os.walk(root):
        folders[:] = filter(is_visible, folders)
        for path in (os.path.join(parent, inner) for inner in folders):
            if os.path.islink(path):
                raise UserError(f"{path} is a link to a folder, which may lead back up: put the "
                                "folder itself there, or links to its files")
            os.scandir(path).close()  # what may not be read os.walk leaves out in silence
        top = "" if parent == root else os.path.relpath(parent, root).split(os.sep)[0]
        for name in filter(is_visible, names):
            path, ending = os.path.join(parent, name), os.path.splitext(name)[1].lower()
            if not os.path.isfile(path):  # a pipe would wait
                others["that is no file"] += 1
            elif ending in ENDINGS:
                found.append((top, parent, path))
            else:
                others["of " + (ending or "no ending")] += 1
    if others:
        warnings.warn(f"{root}: {others.total()} left out, which are no pictures to Pillow: "
                      + ", ".join(f"{count} {what}" for what, count in others.most_common()))
    return sorted(found)


# ---------------------------------------------------------------- as they are asked for

class Files:
    """Pictures in files, as (N, 3, size, size). paths: theirs; workers: processes that
    read ahead."""

    def __init__(self, paths, size, workers, device=torch.device("cpu")):
        self.paths, self.workers, self.device = paths, workers, device
        self.shape = torch.Size((len(paths), 3, size, size))

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, indices):
        return Files([self.paths[i] for i in indices.tolist()], self.shape[2], self.workers,
                     self.device)

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
        for images, faults, note, _ in self.load(batches, random):
            for path, why in faults.items():
                raise UserError(f"{path} cannot be used as a picture ({why}): repair or remove it, "
                                "or leave out all such files with --skip_bad_images")
            say_once(note)
            yield images.to(self.device, non_blocking=True)

    def load(self, batches, random=False):
        """What Decoder gives for each batch."""
        return DataLoader(Decoder(self, random), batch_size=None, sampler=batches,
                          num_workers=self.workers, worker_init_fn=ignore_interrupts,
                          pin_memory=self.device.type == "cuda", generator=torch.Generator())


def ignore_interrupts(worker):
    """The process that they work for decides when to stop, and ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


class Decoder(torch.utils.data.Dataset):
    """Whole batches of Files: the pictures that can be used, {path: why one cannot}, a
    note on one or "", whether all are stored in grey."""

    def __init__(self, files, random):
        self.paths, self.size = files.paths, files.shape[2]
        self.transform = transform(self.size, random)

    def __getitem__(self, rows):
        pictures = [torch.empty(0, 3, self.size, self.size).byte()]
        faults, note, grey = {}, "", True
        for index, seed in rows[:, [0, -1]].tolist():
            path = self.paths[index]
            try:
                picture = open_picture(path)
                with torch.random.fork_rng(devices=[]):
                    torch.default_generator.manual_seed(seed)  # not the GPU's as well
                    pictures.append(self.transform(picture.convert("RGB"))[None])
            except Exception as error:  # a damaged file makes Pillow raise nearly anything
                faults[path] = first_line(error)
                continue
            note = note or picture.info.get("note", "")
            grey = grey and picture.mode in ("1", "L")
        return torch.cat(pictures), faults, note, grey


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
    data say, on white where it is transparent, in 8 bits; a JPEG of more pixels than
    Pillow allows at an eighth. .info["note"]: what its user should know, if anything.
    Raises what Pillow does, ValueError."""
    most, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # opening reads the head alone
    try:
        picture = Image.open(path, formats=FORMATS)
    finally:
        Image.MAX_IMAGE_PIXELS = most
    with picture:
        if most and np.prod(picture.size) > most:
            given = "{:,} x {:,}".format(*picture.size)
            if "progressive" not in picture.info:  # or all of it would be in memory
                picture.draft(None, (picture.width // 8, picture.height // 8))
            if np.prod(picture.size) > most:
                raise ValueError(f"{given} pixels, more than {most:,}: make it smaller")
        deep = ";16" in str(picture.tile)
        picture.load()
    try:
        ImageOps.exif_transpose(picture, in_place=True)
    except Exception:  # damaged EXIF data make it raise nearly anything; the picture is whole
        pass
    if picture.mode.startswith(("I", "F")):  # "I;16", or "I", which is 16 bits in some formats
        if picture.mode == "F" or picture.mode == "I" and picture.format not in ("PNG", "PPM"):
            raise ValueError(f"mode {picture.mode}: more than 16 bits a channel")
        deep, picture = True, Image.fromarray((np.asarray(picture) // 256).astype(np.uint8))
    elif picture.has_transparency_data:
        mode, picture = "L" if picture.mode in ("L", "LA") else "RGB", picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture).convert(mode)
    if deep and np.asarray(picture).max() < 16:
        picture.info["note"] = (f"{path} has 16 bits a value, but none above 4,095, so it keeps 16 "
                                "levels of 256 at most: if it is of 12 bits, multiply it by 16")
    return picture


SAID = []


def say_once(note):
    """Warn of the first picture that has a note."""
    if note and not SAID:
        SAID.append(note)
        warnings.warn(note)
