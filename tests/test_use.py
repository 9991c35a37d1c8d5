"""What was trained, in use: weights, prediction, export, fine-tuning, reports."""
import copy
import json
import re
import shutil
import subprocess
from argparse import Namespace

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

import train_eval
import train_search
from engine import batches, data, loop, report
from engine import pictures as pictures_module
from engine.flags import UserError
from study import visualize
from test_fair_darts import close
from tests.common import TINY_SEARCH, Malicious, assert_picture, call, refused, table
from use import classifier, export, finetune, predict


def test_weights_stand_alone(trained, tmp_path):
    """They need no other file; a folder means its weights.pt."""
    folder, _, images, labels = trained
    shutil.copy(folder / "weights.pt", tmp_path)
    some = classifier.load(str(tmp_path))
    assert some.classes == list("0123456789") and some.shape == [1, 8, 8]
    assert not some.training and some.network.auxiliary is None
    with torch.no_grad():
        found = some(images)
        assert found.shape == (360, 10) and close(found.sum(1), torch.ones(360), 1e-5)
        accuracy = 100 * (found.argmax(1) == labels).float().mean().item()
        assert accuracy == pytest.approx(float(table(folder)[-1]["test_accuracy"]))
        assert close(some(images[:1]), found[:1], 1e-6)  # one picture, or many
        assert close(some(images.float() / 255), found, 1e-5)
    pixels = data.load("digits").images.double()
    values = (images - pixels.mean()) / pixels.std(correction=0)
    # as logits the squares: a softmax of the pixels would not see the mean
    del some.network
    some.network = lambda images: (images.flatten(1)[:, :10] ** 2, None)
    assert close(some(images), (values.flatten(1)[:, :10] ** 2).softmax(1), 1e-5)
    state = torch.load(folder / "best.pt", weights_only=True)
    assert state["epoch"] == 1 and state["accuracy"] == pytest.approx(accuracy)


def test_predict_gives_the_accuracy_of_the_training(trained, tmp_path, monkeypatch, capsys):
    folder, loaded, images, labels = trained
    shutil.copytree(folder, tmp_path / "run")
    for index, (image, label) in enumerate(zip(images, labels.tolist())):
        path = tmp_path / "test" / str(label) / "more" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(path)
    for name in "other/1.png", "other/2.png", "Two/3.png", ".trash/4.png", "notes.txt":
        (tmp_path / "test" / name).parent.mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "test" / name)
    drawn = []
    monkeypatch.setattr(predict, "draw_confusion", lambda *given: drawn.append(given))
    assert call(predict, monkeypatch, tmp_path / "run", tmp_path / "test", "--device", "cpu") == 0
    [(true, guesses, classes, path)] = drawn
    assert np.bincount(true).tolist() == labels.bincount().tolist() and len(classes) == 10
    out, err = capsys.readouterr()
    assert err.splitlines() == [
        f"note: {tmp_path / 'test'}: 1 left out, which are no pictures to Pillow: 1 of .txt",
        "note: 3 pictures in 2 folders that name no class of the network: Two, other"]
    *lines, last = out.splitlines()
    accuracy, right = float(table(folder)[-1]["test_accuracy"]), np.equal(true, guesses).sum()
    assert len(lines) == 363 and last == f"accuracy {accuracy:.2f}%, {right} of 360; {path}"
    assert path == str(tmp_path / "run" / "figures" / "confusion.png")

    one = tmp_path / "test" / str(labels[7].item()) / "more" / "7.png"
    (tmp_path / "broken.png").write_text("no picture")
    assert call(predict, monkeypatch, tmp_path / "run" / "best.pt", one, tmp_path / "broken.png",
                tmp_path / "nothing.png", one, "--json", "--top", "20") == 2
    out, err = capsys.readouterr()
    assert [line.split(" cannot")[0] for line in err.splitlines()] == [
        str(tmp_path / "broken.png"), str(tmp_path / "nothing.png")]
    first, second = map(json.loads, out.splitlines())
    assert first == second and first["file"] == str(one) and len(first["classes"]) == 10
    with torch.no_grad():
        expected = loaded(images[7:8])[0]
    for name, probability in first["classes"]:
        assert probability == pytest.approx(expected[int(name)].item(), rel=1e-5)
    assert first["classes"] == sorted(first["classes"], key=lambda pair: -pair[1])
    (tmp_path / "empty").mkdir()
    assert "no picture in" in refused(capsys, monkeypatch, predict, tmp_path / "run",
                                      tmp_path / "empty")
    for script, words in (predict, [one]), (export, []), (visualize, []):
        for path in "empty", "broken.png":  # no runs
            refused(capsys, monkeypatch, script, tmp_path / path, *words)


def test_the_confusion_matrix_is_of_true_rows(tmp_path, monkeypatch):
    """In percent of each; a class of which nothing was tested is there, too."""
    figure = pytest.importorskip("matplotlib.figure").Figure
    save, seen = figure.savefig, []
    monkeypatch.setattr(figure, "savefig", lambda self, *given, **options: (
        seen.append(self.axes[0]) or save(self, *given, **options)))
    predict.draw_confusion([0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1], ["ant", "bee", "$x$"],
                           str(tmp_path / "figures" / "a.png"))
    texts = {(text.get_position(), text.get_text()) for text in seen[0].texts
             if text.get_visible()}
    assert texts == {((0, 0), "75%"), ((1, 0), "25%"), ((1, 1), "100%")}  # x: predicted
    assert [text.get_text() for text in seen[0].get_yticklabels()] == ["ant", "bee", r"\$x\$"]
    assert_picture(tmp_path / "figures" / "a.png")


def test_pictures_are_opened_as_a_viewer_shows_them(tmp_path):
    def opened(picture, kind="png", **options):
        picture.save(tmp_path / f"picture.{kind}", **options)
        return pictures_module.open_picture(tmp_path / f"picture.{kind}")

    deep = np.arange(6, dtype=np.uint16).reshape(2, 3) * 10000
    for kind in "png", "tif", "pgm":
        found = opened(Image.fromarray(deep), kind)
        assert found.mode == "L" and np.array_equal(np.asarray(found), deep // 256)
        assert "note" not in found.info
        twelve = opened(Image.fromarray(deep // 16), kind)
        assert "none above 4,095" in twelve.info["note"] and np.asarray(twelve).max() == 12
    with pytest.raises(ValueError, match="more than 16 bits"):
        opened(Image.fromarray(np.int32([[200]])), "tif")
    text = PngImagePlugin.PngInfo()
    text.add_text("XML:com.adobe.xmp", "x" * 3_000_000, zip=True)
    assert opened(Image.new("L", (3, 2), 7), pnginfo=text).getpixel((2, 1)) == 7
    clear = np.array([[[200, 0, 0, 255], [9, 9, 9, 0], [0, 0, 0, 128]]], np.uint8)
    found = opened(Image.fromarray(clear))
    assert found.mode == "RGB" and np.allclose(found, [[[200, 0, 0], [255] * 3, [127] * 3]], atol=1)
    grey = opened(Image.fromarray(clear[..., [0, 3]], "LA"))
    assert grey.mode == "L" and np.asarray(grey)[0].tolist()[:2] == [200, 255]
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putdata([0, 1])
    for options, second in (dict(transparency=1), [255] * 3), ({}, [40, 50, 60]):
        found = opened(palette, **options).convert("RGB")
        assert np.asarray(found)[0].tolist() == [[10, 20, 30], second]
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    wide = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert np.array_equal(opened(Image.fromarray(wide), exif=exif), np.rot90(wide, -1))
    (tmp_path / "picture.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")
    with pytest.raises(OSError, match="cannot identify"):  # nor is a program started
        pictures_module.open_picture(tmp_path / "picture.jpg")


def test_very_large_pictures(tmp_path, monkeypatch):
    rows = np.linspace(0, 255, 640).astype(np.uint8)[:, None].repeat(400, 1)
    for name, options in ("a.jpg", {}), ("b.jpg", {"progressive": True}), ("c.png", {}):
        Image.fromarray(rows).save(tmp_path / name, **options)
    before = np.asarray(pictures_module.open_picture(tmp_path / "a.jpg"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)  # Pillow raises at its double
    small = pictures_module.open_picture(tmp_path / "a.jpg")
    assert small.size == (50, 80) and Image.MAX_IMAGE_PIXELS == 100_000
    assert np.abs(np.asarray(small).astype(int) - before[4::8, 4::8]).max() < 4
    for name in "b.jpg", "c.png":
        with pytest.raises(ValueError, match="400 x 640 pixels, more than 100,000: make it"):
            pictures_module.open_picture(tmp_path / name)


def test_twelve_bits_are_said_once(pictures, tmp_path, monkeypatch):
    root = shutil.copytree(pictures, tmp_path / "data")
    for path in root.rglob("*.png"):
        Image.fromarray(np.full((8, 8), 4095, np.uint16)).save(path)
    for stream, workers in (False, 0), (True, 0), (True, 2):
        monkeypatch.setattr(pictures_module, "SAID", [])
        with pytest.warns(UserWarning, match="train/blue/0.png has 16 bits a value") as found:
            d = data.load("folder", str(root), 8, False, stream, workers)
            for test in False, True, True:
                [*batches.Pictures(d, torch.device("cpu"), test).in_order()]
        assert len(found) == 1


def test_what_are_no_weights_is_refused(finished, tmp_path, monkeypatch, capsys):
    path, image = tmp_path / "weights.pt", tmp_path / "image.png"
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(image)
    whole = torch.load(finished / "d" / "weights.pt", weights_only=True)
    first = next(iter(whole["network"]))
    torch.save({**whole, "network": {**whole["network"], first: torch.zeros(2)}}, path)
    for content in (path.read_bytes(), b"", b"no weights",
                    (finished / "d" / "weights.pt").read_bytes()[:-1],
                    (finished / "a" / "checkpoint.pt").read_bytes()):
        path.write_bytes(content)
        assert f"{path} cannot be read: " in refused(capsys, monkeypatch, predict, path, image)
    torch.save({**whole, "classes": Malicious()}, path)
    monkeypatch.chdir(tmp_path)
    assert str(path) in refused(capsys, monkeypatch, predict, path, image)
    assert not (tmp_path / "owned").exists()
    for missing in tmp_path / "nothing", finished / "a":
        assert "weights.pt" in refused(capsys, monkeypatch, predict, missing, image)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["FairDARTS_a", "FairNAS_A"])
def test_exported_networks_agree(arch, tmp_path, monkeypatch, capsys):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    folder = tmp_path / "d"
    assert call(train_eval, monkeypatch, "--dataset", "digits", "--arch", arch, "--epochs", 1,
                "--batch_size", 600, "--runs", tmp_path, "--name", "d") == 0
    assert call(export, monkeypatch, folder) == 0
    assert capsys.readouterr().out.count("uint8 pictures (batch, 1, 8, 8)") == 2
    program = torch.export.load(folder / "model.pt2").module()
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    loaded = classifier.load(str(folder))
    for count in (1, 2, 7, 30):
        images = torch.randint(256, (count, 1, 8, 8)).to(torch.uint8)
        with torch.no_grad():
            expected = loaded(images)
        [found] = session.run(["probabilities"], {"pictures": images.numpy()})
        assert close(torch.from_numpy(found), expected, 1e-5)
        assert close(program(images), expected, 1e-5)


def test_what_was_not_exported_well_is_not_kept(finished, tmp_path, monkeypatch, capsys):
    shutil.copytree(finished / "d", tmp_path / "d")
    keep, written, seen = export.keep, tmp_path / "d" / "model.pt2", []

    def watched(run, name, content, whole, restored):
        with pytest.raises(UserError, match="differ by 1.0e-04"):
            keep(run, name, content, whole, lambda images: restored(images) + 1e-4)
        assert not written.exists()
        keep(run, name, content, whole, restored)
        seen.append(name)

    monkeypatch.setattr(export, "keep", watched)
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    assert call(export, monkeypatch, tmp_path / "d" / "best.pt") == 0
    assert seen == ["model.pt2"] and written.exists()
    out = capsys.readouterr().out
    assert "no model.onnx: it requires onnx, onnxscript, onnxruntime; pip install" in out
    for words, message in ((["x", "--epochs", 3], "unknown argument '--epochs'"), ([], "RUN"),
                           ([tmp_path], "is not the folder of a run"),
                           ([finished / "a"], "is a run of train_search.py")):
        assert message in refused(capsys, monkeypatch, export, *words)


def test_fine_tuning_starts_from_the_weights(trained, pictures, tmp_path, monkeypatch, capsys):
    folder, *_ = trained
    grey = shutil.copytree(pictures, tmp_path / "grey")
    for path in grey.rglob("*.png"):
        Image.open(path).convert("L").save(path)
    start, begun = finetune.start_from, []

    def watched(path, network, run):
        start(path, network, run)
        begun.append(copy.deepcopy(network.state_dict()))

    monkeypatch.setattr(finetune, "start_from", watched)
    tune = ["--init", folder, "--dataset", "folder", "--data", grey, "--runs", tmp_path,
            "--epochs", "1"]
    assert call(train_eval, monkeypatch, *tune, "--name", "a") == 0
    assert "the head is new, for it was of 10 classes" in capsys.readouterr().out
    weights = torch.load(folder / "weights.pt", weights_only=True)["network"]
    heads = {name for name in weights if "classifier" in name}
    assert len(heads) == 4  # with the auxiliary one
    for name, value in begun[0].items():
        assert torch.equal(value, weights[name]) == (name not in heads)
    assert call(train_eval, monkeypatch, "--resume", tmp_path / "a", "--epochs", 2) == 0
    assert len(begun) == 1  # goes on from its checkpoint
    assert call(train_eval, monkeypatch, "--init", folder / "best.pt", "--dataset", "digits",
                "--epochs", "1", "--runs", tmp_path, "--name", "b") == 0
    assert all(torch.equal(value, weights[name]) for name, value in begun[1].items())

    for more, message in ((["--layers", "4"], "--layers 4 contradicts --init"),
                          (["--arch", "FairDARTS_b"], "contradicts --init"),
                          (["--init", tmp_path], "there is no file")):
        assert message in refused(capsys, monkeypatch, train_eval, *tune, "--name", "c", *more)
    assert "of another network, for pictures (1, 8, 8)" in refused(
        capsys, monkeypatch, train_eval, "--init", folder, "--dataset", "folder", "--data",
        pictures, "--runs", tmp_path)  # of three channels


def test_every_run_ends_with_a_report(finished):
    training = (finished / "d" / "report.md").read_text()
    last = float(table(finished / "d")[-1]["test_accuracy"])
    config = json.loads((finished / "d" / "config.json").read_text())
    for part in ("# d\n", "- command: `python train_eval.py --dataset digits",
                 f"- go on: `python -m use.predict {finished}/d IMAGE`",
                 f"torch {torch.__version__}", "- peak memory: ", " M\n",
                 f"{last:.2f}% in the last epoch; best {last:.2f}% in epoch 1",
                 f"threads: {config['threads']}", config["fingerprint"], "without the auxiliary"):
        assert part in training, part
    network = classifier.build(Namespace(**config["settings"]), 10, (1, 8, 8))
    assert f"- parameters: {sum(w.numel() for w in network.parameters()):,}, " in training
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=report.ROOT, capture_output=True,
                          text=True).stdout or "no commit"
    assert head.startswith(re.search(r"- code: (no commit|[0-9a-f]{7,})", training)[1])
    search = (finished / "a" / "report.md").read_text()
    assert f"--arch {finished}/a/genotype.json" in search and "- genotype: `Genotype(" in search
    assert int(re.search(r"peak memory: (\d+) MiB", search)[1]) > 100


def test_a_report_is_of_what_searched(tmp_path, monkeypatch):
    """Also after another genotype was derived, by another process."""
    for memory, flags in ((111, [*TINY_SEARCH, "--runs", tmp_path, "--name", "a"]),
                          (999, ["--resume", tmp_path / "a", "--threshold", "0.1"])):
        monkeypatch.setattr(loop, "peak_memory", lambda device: memory)
        monkeypatch.setattr(loop, "name_of", lambda device: f"{device}, card {memory}")
        assert call(train_search, monkeypatch, *flags) == 0
        text = (tmp_path / "a" / "report.md").read_text()
        assert "- device: cpu, card 111; " in text and "- peak memory: 111 MiB" in text
