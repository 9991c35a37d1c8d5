"""What each dataset changes of CIFAR-10's recipe, which the flags' defaults are."""
import math
from collections import namedtuple

from spaces.space import LARGE

# padding: pixels of the random crop; flip: whether half of the pictures are mirrored
# search, eval: the settings that differ from CIFAR-10's recipe
Recipe = namedtuple("Recipe", "padding flip search eval")
RECIPES = {
    "digits": Recipe(
        1, False,
        search=dict(init_channels=8, layers=4, stage_cells=1, epochs=25, batch_size=64,
                    learning_rate=0.025, arch_learning_rate=0.05, width=0.1, threads=1),
        eval=dict(init_channels=16, layers=8, stage_cells=2, epochs=20, cutout_length=2,
                  drop_path_prob=0.1, width=0.1, threads=1)),
    "cifar10": Recipe(4, True, {}, {}),
    "cifar100": Recipe(4, True, {}, {}),
    "svhn": Recipe(4, False, {}, {}),
    "fashionmnist": Recipe(4, True, {}, {}),
    "folder": Recipe(4, True, {}, {}),  # see of_folder
    "npz": Recipe(4, True, {}, {}),
    # files are cropped and mirrored when they are read
    "imagenet": Recipe(
        0, False,
        search=dict(train_fraction=0.1, valid_fraction=0.025, image_size=224),
        eval=dict(epochs=250, batch_size=128, init_channels=48, layers=14, learning_rate=0.1,
                  gamma=0.97, weight_decay=3e-5, label_smooth=0.1, drop_path_prob=0.0,
                  cutout=False, image_size=224)),
}
MANY = 20000  # training pictures
RULE = """
The defaults for a folder or arrays follow from the number of training pictures and their side:
  always          crops padded by 1/8 of the side, cutout of 1/2 of it; above 64 pixels
                  crops, colours and regularisation of ImageNet's recipe (arrays: padded by 4)
  20,000 or more  CIFAR-10's recipe, above 64 pixels ImageNet's
  fewer           a search of 8 channels and 4 cells (nasbench201: 1 in a stage), a training of
                  16 and 8 (2), chains of width 0.25, at the rates of the digits; batches of 128
                  (training: 96), halved until a pass has 10 or they are of 8; 25 epochs
                  (training: 20), or as many as make 500 steps (training: 1,000)
"""


def recipe(dataset):
    """The Recipe of a data.Dataset."""
    if dataset.name in ("folder", "npz"):
        return of_folder(len(dataset.labels), min(dataset.images.shape[2:]), dataset.name == "npz")
    found = RECIPES[dataset.name]
    if dataset.name == "imagenet":  # cropped and mirrored as a folder of that size
        padding, flip, *_ = of_folder(MANY, dataset.images.shape[2])
        return found._replace(padding=padding, flip=flip)
    return found


def of_folder(count, size, arrays=False):
    """The Recipe of `count` training pictures of `size` pixels a side, by RULE."""
    found = Recipe(size // 8, True, {}, dict(cutout_length=max(1, size // 2)))
    if size > LARGE:
        large = {**RECIPES["imagenet"].eval, "image_size": size}
        found = Recipe(4 * arrays, arrays, {}, large)
    if count >= MANY:
        return found
    search = dict(init_channels=8, layers=4, stage_cells=1, width=0.25, learning_rate=0.025,
                  arch_learning_rate=0.05, **passes(count // 2, 128, 25, 500))
    train = dict(init_channels=16, layers=8, stage_cells=2, width=0.25, learning_rate=0.025,
                 gamma=0.0, **passes(count, 96, 20, 1000))
    return found._replace(search=search, eval={**found.eval, **train})


def passes(count, most, epochs, steps):
    """The batch size and the epochs for `count` pictures."""
    batch = most
    while count // batch < 10 and batch > 8:
        batch = max(8, batch // 2)
    batch = max(2, min(batch, count))
    return dict(batch_size=batch, epochs=max(epochs, math.ceil(steps / max(1, count // batch))))


def describe(dataset, s, names):
    """The line of a new run, of the settings `names` that its recipe changes."""
    sides = "x".join(map(str, dict.fromkeys(dataset.images.shape[2:])))
    return (f"settings for {len(dataset.labels):,} pictures of {sides} pixels in "
            f"{count_classes(dataset.classes)}: "
            + " ".join(f"--{name} {getattr(s, name)}" for name in sorted(names)))


def count_classes(names):
    """How many, and if they are few, which."""
    return (f"{len(names):,} class" + "es" * (len(names) != 1)
            + f" ({', '.join(names)})" * (0 < len(names) <= 10))
