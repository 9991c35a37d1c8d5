"""A trained network in the formats of other programs.

    python -m use.export RUN   # RUN/model.pt2, and model.onnx if its packages are there
    python -m use.export RUN/best.pt    # of the epoch that was best on the test set
"""
import importlib.util
import io
import os
import warnings

import torch

from engine.flags import Parser, UserError, first_line, main
from engine.loop import Run
from use.classifier import load

PACKAGES = ("onnx", "onnxscript", "onnxruntime")  # for ONNX; see requirements-export.txt
TOLERANCE = 1e-5  # of probabilities
ANY_BATCH = ({0: torch.export.Dim("batch", min=1)},)


def export(path):
    """Write RUN/model.pt2, a classifier.Classifier by torch.export, and where its
    packages are installed RUN/model.onnx: from uint8 pictures (B, C, H, W), any B, to
    probabilities (B, classes). Each is read back and compared before it is kept. path:
    as of classifier.load, in a run's folder. Raises UserError."""
    folder = os.path.dirname(path) or "." if os.path.isfile(path) else path
    run = Run.open(folder, "train_eval")
    classifier = load(path)
    pictures = random_pictures(2, classifier.shape)
    with torch.no_grad():
        file = io.BytesIO()
        torch.export.save(
            torch.export.export(classifier, (pictures,), dynamic_shapes=ANY_BATCH), file)
        restored = torch.export.load(io.BytesIO(file.getvalue())).module()
        keep(run, "model.pt2", file.getvalue(), classifier, restored)
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        print(f"no model.onnx: it requires {', '.join(missing)}; pip install -r "
              "requirements-export.txt")
        return
    import onnxruntime
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.onnx.export(
                classifier, (pictures,), dynamo=True, input_names=["pictures"],
                output_names=["probabilities"], dynamic_shapes=ANY_BATCH,
                verbose=False).model_proto.SerializeToString()
    except Exception as error:  # versions that do not fit together make it raise anything
        raise UserError(f"model.onnx is not written: {first_line(error)}; try newer packages, pip "
                        "install -U -r requirements-export.txt") from None
    session = onnxruntime.InferenceSession(content)
    keep(run, "model.onnx", content, classifier, lambda images: torch.from_numpy(
        session.run(None, {"pictures": images.numpy()})[0]))


def keep(run, name, content, classifier, restored):
    """Write the file if `restored` gives what the classifier does. Raises UserError."""
    pairs = [(restored(images), classifier(images)) for images in (
        random_pictures(count, classifier.shape) for count in (1, 2, 7))]
    difference = torch.cat([found - own for found, own in pairs]).abs().max()  # or NaN
    if not difference <= TOLERANCE:
        raise UserError(f"{name} is not written: its probabilities differ by {difference:.1e} from "
                        f"the network's, more than {TOLERANCE}")
    run.write(name, content)
    print(f"{run.path(name)}: uint8 pictures (batch, {', '.join(map(str, classifier.shape))}) to "
          f"probabilities, within {difference:.0e} of PyTorch")


def random_pictures(count, shape):
    generator = torch.Generator().manual_seed(count)
    return torch.randint(256, (count, *shape), generator=generator, dtype=torch.uint8)


def export_run():
    parser = Parser(__doc__)
    parser.add_argument("run", metavar="RUN", help="a training, or its best.pt")
    export(parser.parse_args()["run"])


if __name__ == "__main__":
    main(export_run)
