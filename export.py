"""Trained networks in the formats of other programs: see `export`."""
import importlib.util
import io
import os
import tempfile
import warnings

import torch

import kernels
import model_eval
from flags import UserError, first_line
from runs import Run

PACKAGES = ("onnx", "onnxscript", "onnxruntime")  # for ONNX; see requirements-export.txt
TOLERANCE = 1e-5  # of probabilities
ANY_BATCH = ({0: torch.export.Dim("batch", min=1)},)


def export(folder):
    """Write RUN/model.pt2, the model_eval.Classifier of the last epoch by torch.export, and where
    its packages are installed RUN/model.onnx: from uint8 pictures (B, C, H, W), any B, to
    probabilities (B, classes). Each is read back and compared before it is kept. Raises
    UserError."""
    run = Run.open(folder, "train_eval")
    classifier = model_eval.load(folder)
    pictures = random_pictures(2, classifier.shape)
    with kernels.stock(), torch.no_grad():  # operations that everybody has
        program = torch.export.export(classifier, (pictures,), dynamic_shapes=ANY_BATCH)
        file = io.BytesIO()
        torch.export.save(program, file)
        content = file.getvalue()
        restored = torch.export.load(io.BytesIO(content)).module()  # just written: not foreign
        keep(run, "model.pt2", content, classifier, restored)
        missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
        if missing:
            print(f"no model.onnx: it takes {', '.join(missing)}; pip install -r "
                  "requirements-export.txt")
            return
        try:
            content = to_onnx(classifier, pictures)
        except Exception as error:  # versions that do not fit together make it raise anything
            raise UserError(f"model.onnx is not written: {first_line(error)}; try newer packages, "
                            "pip install -U -r requirements-export.txt") from None
    import onnxruntime
    session = onnxruntime.InferenceSession(content)
    keep(run, "model.onnx", content, classifier, lambda images: torch.from_numpy(
        session.run(None, {"pictures": images.numpy()})[0]))


def to_onnx(classifier, pictures):
    """The bytes of the ONNX file."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = os.path.join(folder, "model.onnx")
        torch.onnx.export(classifier, (pictures,), path, dynamo=True, external_data=False,
                          input_names=["pictures"], output_names=["probabilities"],
                          dynamic_shapes=ANY_BATCH, verbose=False)
        with open(path, "rb") as file:
            return file.read()


def keep(run, name, content, classifier, restored):
    """Write the file where `restored` gives what the classifier does. Raises UserError."""
    difference = 0.0
    for count in (1, 2, 7):
        images = random_pictures(count, classifier.shape)
        difference = max(difference, (restored(images) - classifier(images)).abs().max().item())
    if not difference <= TOLERANCE:
        raise UserError(f"{name} is not written: its probabilities differ by {difference:.1e} from "
                        f"the network's, more than {TOLERANCE}")
    run.write(name, content)
    print(f"{run.path(name)}: uint8 pictures (batch, {', '.join(map(str, classifier.shape))}) to "
          f"probabilities, within {difference:.0e} of PyTorch")


def random_pictures(count, shape):
    generator = torch.Generator().manual_seed(count)
    return torch.randint(256, (count, *shape), generator=generator, dtype=torch.uint8)
