"""Classify pictures with a network that train_eval.py has trained.

    python -m use.predict RUN cat.jpg dog.png          # a line a picture
    python -m use.predict RUN FOLDER --top 3           # all pictures in it
    python -m use.predict RUN FOLDER --json            # one line of JSON a picture
    python -m use.predict RUN data/test                # accuracy, confusion matrix

RUN: the folder of a training, whose last weights are used, or a file of weights
(RUN/best.pt). Pictures are brought to the network's size as in training. A file that
cannot be used is named on stderr, and the exit code is 2.
"""
import json
import os
import sys
from collections import Counter

import torch
from PIL import ImageOps
from torchvision.transforms.functional import pil_to_tensor

from engine.devices import choose_device
from engine.flags import Parser, UserError, first_line, main, number, tell
from engine.pictures import files_below, nfc, open_picture, say_once, transform
from use.classifier import load

BATCH = 64  # pictures at once
MANY = 100  # classes: more of them are drawn without names and numbers


def list_files(paths):
    """The files among `paths`, and all pictures in the folders among them, by name."""
    files = []
    for path in paths:
        found = sorted(f for _, _, f in files_below(path)) if os.path.isdir(path) else [path]
        if not found:
            raise UserError(f"there is no picture in {path!r}")
        files += found
    return files


def predict(classifier, files, device):
    """Yields each file and its probabilities (classes,), or why it has none."""
    channels, height, width = classifier.shape
    mode = "L" if channels == 1 else "RGB"
    fit = transform(height) if height == width else (  # or it was trained on arrays
        lambda picture: pil_to_tensor(ImageOps.fit(picture, (width, height))))

    def read(file):
        try:
            picture = open_picture(file)
            say_once(picture.info.get("note"))
            return fit(picture.convert(mode))
        except Exception as error:  # a damaged file makes Pillow raise nearly anything
            return first_line(error)

    for start in range(0, len(files), BATCH):
        found = [(file, read(file)) for file in files[start:start + BATCH]]
        pictures = [picture for _, picture in found if torch.is_tensor(picture)]
        if pictures:
            probabilities = iter(classifier(torch.stack(pictures).to(device)).cpu())
        for file, picture in found:
            yield file, next(probabilities) if torch.is_tensor(picture) else picture


def draw_confusion(labels, found, classes, path):
    """The confusion matrix, in % of each class, as a picture."""
    from matplotlib.figure import Figure
    from sklearn.metrics import ConfusionMatrixDisplay
    few, side = len(classes) <= MANY, 2.5 + 0.35 * min(len(classes), MANY)
    axes = Figure((side, side)).subplots()
    shown = ConfusionMatrixDisplay.from_predictions(
        labels, found, labels=range(len(classes)), normalize="true",
        display_labels=[name.replace("$", r"\$") for name in classes],  # no mathematics
        values_format=".0%", xticks_rotation="vertical", cmap="cividis", colorbar=False, ax=axes,
        include_values=few, text_kw={"fontsize": 7}, im_kw={"vmin": 0, "vmax": 1})
    if not few:
        axes.set(xticks=[], yticks=[])
    for text in shown.text_.flat if few else []:
        text.set_visible(text.get_text() != "0%")
    axes.set_title("% of the true class")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    axes.figure.savefig(path, dpi=110, bbox_inches="tight")


def predict_pictures():
    parser = Parser(__doc__)
    parser.add_argument("run", metavar="RUN", help="a training, or a file of weights")
    parser.add_argument("pictures", nargs="+", metavar="IMAGE", help="pictures, or folders of them")
    parser.add_argument("--top", type=number(int, 1), metavar="N",
                        help="classes a picture, the most probable first (default 5)")
    parser.add_argument("--json", action="store_true", help="a line of JSON a picture")
    parser.add_argument("--device", help="auto, cpu, cuda, cuda:1, mps")
    given = parser.parse_args()
    device = choose_device(given.get("device", "auto"))
    classifier = load(given["run"]).to(device)
    classes, paths, as_json = classifier.classes, given["pictures"], given.get("json")
    files, top = list_files(paths), min(given.get("top", 5), len(classes))
    folder = paths[0] if len(paths) == 1 and os.path.isdir(paths[0]) else None
    labels, guesses, code, width = [], [], 0, max(map(len, files))
    names, strangers = [*map(nfc, classes)], Counter()
    for file, found in predict(classifier, files, device):
        if not torch.is_tensor(found):
            print(f"{file} cannot be used as a picture: {found}", file=sys.stderr)
            code = 2
            continue
        best = [(classes[i], p) for p, i in zip(*(t.tolist() for t in found.topk(top)))]
        line = f"{file:{width}}  " + "  ".join(f"{name} {100 * p:.1f} %" for name, p in best)
        print(json.dumps({"file": file, "classes": best}) if as_json else line)
        name, *below = nfc(os.path.relpath(file, folder)).split(os.sep) if folder else [""]
        if below and name in names:
            labels.append(names.index(name))
            guesses.append(int(found.argmax()))
        elif below:
            strangers[name] += 1
    if strangers:
        what = "folder that names" if len(strangers) == 1 else "folders that name"
        tell(f"note: {strangers.total()} picture{'s' * (strangers.total() > 1)} in "
             f"{len(strangers)} {what} no class of the network: {', '.join([*strangers][:10])}")
    if labels:
        right = sum(a == b for a, b in zip(labels, guesses))
        home = given["run"] if os.path.isdir(given["run"]) else os.path.dirname(given["run"])
        drawn = os.path.join(home, "figures", "confusion.png")
        try:
            draw_confusion(labels, guesses, classes, drawn)
        except ImportError as error:
            drawn = f"no confusion matrix, for {error.name} is not installed"
        print(f"accuracy {100 * right / len(labels):.2f}%, {right} of {len(labels)}; {drawn}",
              file=sys.stderr if as_json else sys.stdout)  # JSON stays alone on stdout
    return code


if __name__ == "__main__":
    main(predict_pictures)
