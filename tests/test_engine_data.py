"""Datasets, batches, picture folders and files, and the recipes of sets."""
import json
import multiprocessing
import os
import re
import shutil
import signal
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision import datasets, transforms

import model_eval
import train_eval
import train_search
from engine import batches, data, flags, loop, processes, recipes
from engine import pictures as pictures_module
from test_fair_darts import close
from tests.common import TINY_EVAL, Malicious, call, pictures_of, refused, same, table
from use import predict


def test_halves_and_shares_are_disjoint_and_seeded():
    labels = torch.tensor([0] * 40 + [1] * 20 + [2] * 2)[torch.randperm(62)]
    def halves(seed):
        return batches.parts(Namespace(train_portion=0.4, train_fraction=0, valid_fraction=0,
                                       seed=seed), labels)

    first, second = halves(3)
    assert len(first) == 24 and sorted(torch.cat([first, second]).tolist()) == list(range(62))
    shares = batches.balanced(labels, 0.5, 0.25, 3)
    assert [labels[part].bincount().tolist() for part in shares] == [[20, 10, 1], [10, 5, 1]]
    assert not set(shares[0].tolist()) & set(shares[1].tolist())
    # in no order of the classes, of which statistics of a batch would know one each
    assert {*labels[shares[0]][:8].tolist()} > {0} < {*labels[shares[0]][-8:].tolist()}
    for one, again, other in ((first, halves(3), halves(4)),
                              (shares[0], batches.balanced(labels, 0.5, 0.25, 3),
                               batches.balanced(labels, 0.5, 0.25, 4))):
        assert torch.equal(one, again[0]) and not torch.equal(one, other[0])
    with pytest.raises(flags.UserError, match="one picture"):
        batches.balanced(torch.tensor([0, 0, 1]), 0.5, 0.5, 0)


def test_digits():
    d = data.load("digits")
    assert d.images.shape == (1437, 1, 8, 8) and d.test_images.shape == (360, 1, 8, 8)
    assert {*d.labels.tolist()} == {*d.test_labels.tolist()} == {*map(int, d.classes)}
    x = torch.cat([images for images, _ in batches.Pictures(d, torch.device("cpu")).in_order()])
    assert x.mean().abs() < 1e-5 and abs(x.std(unbiased=False) - 1) < 1e-5
    from sklearn.datasets import load_digits
    original = {bytes(np.round(i * 255 / 16).astype("uint8")) for i in load_digits().images}
    assert {bytes(i.numpy()) for i in torch.cat([d.images, d.test_images])} == original
    others = [d, d._replace(classes=d.classes[::-1]), *[
        d._replace(**{part: getattr(d, part).flip(0)})
        for part in ("images", "labels", "test_images", "test_labels")]]
    assert len({data.fingerprint(other) for other in others}) == 6


def test_random_crop_flip():
    images = torch.arange(1, 65, dtype=torch.uint8).view(1, 1, 8, 8).repeat(500, 1, 1, 1)
    images = torch.cat([images, images + 64], 1)
    chosen = torch.randint(50, (500,), generator=batches.generator(0))
    out = batches.random_crop_flip(images, chosen, 2, True)
    padded = F.pad(images[0], [2] * 4)
    wanted = {}  # every crop that may be drawn
    for top in range(5):
        for left in range(5):
            crop = padded[:, top:top + 8, left:left + 8]
            wanted[bytes(crop.numpy())] = (top, left, False)
            wanted[bytes(crop.flip(2).numpy())] = (top, left, True)
    drawn = [wanted[bytes(i.contiguous().numpy())] for i in out]
    assert set(drawn) == set(wanted.values()) and len(wanted) == 50  # all of them, and nothing else
    assert 200 < sum(flip for _, _, flip in drawn) < 300
    still = batches.random_crop_flip(images, chosen * 0, 0, False)
    assert torch.equal(still, images)


def test_cutout():
    y, x = torch.randint(12, (2, 400), generator=batches.generator(0))
    out = batches.cutout(torch.ones(400, 2, 12, 12), y, x, 4)
    assert torch.equal(out[:, 0], out[:, 1])
    holes = (out[:, 0] == 0)
    sizes = holes.sum((1, 2))
    assert sizes.max() == 16 and sizes.min() >= 4  # cut at the border, down to a quarter
    for hole in holes[:50]:
        rows, columns = hole.any(1).nonzero(), hole.any(0).nonzero()
        assert hole.sum() == len(rows) * len(columns)  # a rectangle
        assert rows[-1] - rows[0] < 4 and columns[-1] - columns[0] < 4
    assert holes.float().mean(0).min() > 0  # every pixel is reached


def test_batches_go_through_all_pictures_and_resume():
    images = torch.arange(20, dtype=torch.uint8).view(20, 1, 1, 1).repeat(1, 1, 4, 4)
    pictures = pictures_of(images, torch.arange(20))

    def stream(seed):
        return batches.Batches(pictures, 5, 0, True, 0, batches.generator(seed))

    one, other = stream(1), stream(1)
    passes = [torch.cat([one.next()[1] for _ in range(len(one))]).tolist() for _ in range(2)]
    assert sorted(passes[0]) == sorted(passes[1]) == list(range(20)) and passes[0] != passes[1]
    x, y = other.next()
    assert (torch.equal(x, y.view(5, 1, 1, 1).expand(5, 1, 4, 4).float())
            and y.tolist() == passes[0][:5])
    assert same(list(other.last()), [x, y])
    assert stream(2).next()[1].tolist() != passes[0][:5]
    state = {key: value.clone() if torch.is_tensor(value) else value
             for key, value in one.state_dict().items()}
    expected = [list(one.next()) for _ in range(6)]
    resumed = stream(7)
    resumed.load_state_dict(state)
    assert same([list(resumed.next()) for _ in range(6)], expected)


def test_folder(pictures, tmp_path):
    d = data.load("folder", str(pictures), 16)
    for name in "val", "valid":  # so is the test called as well
        shutil.copytree(pictures / "train", tmp_path / name / "train")
        (tmp_path / name / name).symlink_to(pictures / "test")
        assert torch.equal(data.load("folder", str(tmp_path / name), 16)[3], d.test_images)
    assert d.images.shape == (32, 3, 16, 16) and d.test_images.shape == (12, 3, 16, 16)
    assert d.classes == ["blue", "red"]
    assert min(d.images[d.labels == label, 2 - 2 * label].float().mean() for label in (0, 1)) > 140
    for place in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / place).mkdir(parents=True)
        Image.new("L", (9, 9), 77).save(tmp_path / place / "grey.png")
    grey = data.load("folder", str(tmp_path), 8)
    assert grey.images.shape == (2, 1, 8, 8) and (grey.images == 77).all()
    Image.new("RGB", (9, 9), "grey").save(tmp_path / "train" / "a" / "grey.png")
    assert data.load("folder", str(tmp_path), 8).images.shape == (2, 3, 8, 8)  # stored in colour
    for part in "train", "test":
        with pytest.raises(flags.UserError, match=rf"only {part}/ has 1 class \(c\)"):
            data.load("folder", str(touch(tmp_path / part, f"{part}/c/0.png")), 8)


def touch(root, *names):
    """Two pictures each of classes a and b, for training and the test, and these."""
    common = [f"{part}/{name}/{i}.png" for part in ("train", "test") for name in "ab" for i in "01"]
    for name in [*common, *names]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(root / name, {"e": "JPEG", "o": "JPEG"}.get(name[-1]))
    return root


def test_which_files_of_a_folder_count(tmp_path, monkeypatch):
    root = touch(tmp_path, "train/b\u00e4r/1.gif", "test/ba\u0308r/1.avif",  # one name, two forms
                 "train/a/2.jpe", "train/a/deep/3.TIF", "train/a/4.jp2", "train/a/5.mpo",
                 "train/a/.ipynb_checkpoints/0-checkpoint.png", "train/.ipynb_checkpoints/x.png",
                 "train/a/._0.png", "train/__MACOSX/a/._0.png", "train/a/@eaDir/0.png/thumb.jpg",
                 "train/loose.png")
    for name in "x.heic", "y.heic", "notes.txt", "film.mpg", "drawing.eps", "LICENSE":
        (root / "train" / "a" / name).write_text("x")
    (root / "train" / "b" / "gone.png").symlink_to("nowhere")
    with pytest.warns(UserWarning) as found:
        d = data.load("folder", str(root), 8)
    line, loose = [str(warning.message).removeprefix(f"{root}/train: ") for warning in found]
    assert line.startswith("7 left out, which are no pictures to Pillow: 2 of .heic, ")
    assert {*line.split(", ")[2:]} == {f"1 {what}" for what in (
        "of .txt", "of .mpg", "of .eps", "of no ending", "that is no file")}
    assert loose == "left out pictures in no class: 1" and d.classes == ["a", "b", "b\u00e4r"]
    assert [d.labels.tolist(), d.test_labels.tolist()] == [[0] * 6 + [1] * 2 + [2], [0, 0, 1, 1, 2]]
    assert "9 pictures of 8 pixels in 3 classes (a, b, b\u00e4r): " in recipes.describe(d, None, [])
    assert recipes.count_classes(["x"] * 1000) == "1,000 classes"
    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: scan(str(path).replace("deep", "gone")))
    with pytest.raises(OSError, match="gone"):  # a folder that cannot be read is no empty one
        data.load("folder", str(root), 8)


def test_hostile_folders(tmp_path, monkeypatch, capsys):
    root = touch(tmp_path / "pict\nures", "outside.png")
    a, b = root / "train" / "a", root / "train" / "b"
    os.mkfifo(a / "x.png")  # would be waited for, for ever
    (b / "y.png").symlink_to("/dev/zero")
    (a / "outside.png").symlink_to(root / "outside.png")
    for make, path, message in (
            (lambda p: p.mkdir(), a / "empty", "--batch_size 300 is larger than the 2"),  # of 5
            (lambda p: p.symlink_to(root / "train"), a / "up", "is a link to a folder"),
            (lambda p: p.symlink_to(a), root / "train" / "c", "is a link to a folder"),
            (lambda p: p.write_text("x"), a / "x\ny.png", "1 of 6 files cannot be used"),
            (lambda p: p.mkdir(), root / "train" / "new\nclass", "has no picture")):
        make(path)
        assert message in refused(
            capsys, monkeypatch, train_search, "--dataset", "folder", "--image_size", 8, "--runs",
            tmp_path / "runs", "--data", root, "--batch_size", 300)
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    assert not (tmp_path / "runs").exists()


STREAMED = ["--dataset", "imagenet", "--image_size", 72, "--epochs", 2, "--device", "cpu",
            "--arch", "FairNAS_A", "--width", 0.1, "--accumulate", 2, "--batch_size", 8]


def test_a_training_on_imagenet(imagenet, tmp_path, monkeypatch, capsys):
    """Stopped in the middle of an epoch; whatever the workers."""
    common = [*STREAMED, "--data", imagenet, "--runs", tmp_path, "--name"]
    assert call(train_eval, monkeypatch, *common, "whole", "--workers", 2) == 0
    assert "48 pictures of 72 pixels in 6 classes (class 0, class 1, " in capsys.readouterr().out
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert config["shape"] == [3, 72, 72] and len(config["classes"]) == 6
    assert {row["drop_path_prob"] for row in table(tmp_path / "whole")} == {""}  # a chain has none
    assert "--batch_size 25 times --accumulate 2 is larger than the 48" in refused(
        capsys, monkeypatch, train_eval, *common, "b", "--batch_size", 25)
    assert refused(capsys, monkeypatch, train_eval, *common, "b", "--accumulate", 48).endswith(
        "is larger than the 48 pictures it is drawn from: lower --accumulate")
    with monkeypatch.context() as patch:
        add, calls = loop.Run.add, []

        def stop(self, *others, **figures):
            add(self, *others, **figures)
            calls.append(1)
            if len(calls) == 2:
                os.kill(os.getpid(), signal.SIGTERM)

        patch.setattr(loop.Run, "add", stop)
        assert call(train_eval, patch, *common, "a", "--workers", 0) == 143
    assert call(train_eval, monkeypatch, "--resume", tmp_path / "a", "--workers", 1) == 0
    assert not multiprocessing.active_children()
    rows = table(tmp_path / "a")
    assert rows == table(tmp_path / "whole")
    one, other = (torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)["network"]
                  for name in ("a", "whole"))
    assert same(dict(one), dict(other))
    assert all(float(row["test_top5"]) >= float(row["test_accuracy"]) for row in rows)
    assert config["settings"]["gamma"] == 0.97
    assert [float(row["learning_rate"]) for row in rows] == [0.1, 0.1 * 0.97]
    assert call(train_eval, monkeypatch, "--evaluate", tmp_path / "a") == 0
    assert "top-5" in capsys.readouterr().out


def as_arrays(size=(8, 8), channels=(), **others):
    made = {}
    for part, count in ("train", 40), ("test", 20):
        made[f"{part}_images"] = np.random.default_rng(0).integers(
            0, 256, (count, *size, *channels), np.uint8)
        made[f"{part}_labels"] = np.arange(count) % 4
    return {**made, **others}


@pytest.mark.parametrize("size, channels, shape, padding", [
    ((8, 8), (), (1, 8, 8), 1), ((9, 19), (1,), (1, 9, 19), 1), ((22, 16), (3,), (3, 22, 16), 2),
    ((72, 72), (), (3, 72, 72), 4)])
def test_arrays(size, channels, shape, padding, tmp_path):
    given = as_arrays(size, channels)
    column = np.uint8(given["train_labels"])[:, None]  # as in MedMNIST
    np.savez(tmp_path / "a.npz", **{**given, "train_labels": column}, val_images=column, x=column)
    with pytest.warns(UserWarning, match="a.npz: left aside val_images, x"):
        d = data.load("npz", str(tmp_path / "a.npz"))
    np.savez(tmp_path / "b.npz", **dict(zip(("x_train", "y_train", "x_test", "y_test"),
                                            given.values())))  # as Keras has them
    assert data.fingerprint(data.load("npz", str(tmp_path / "b.npz"))) == data.fingerprint(d)
    for images, name in (d.images, "train_images"), (d.test_images, "test_images"):
        wanted = given[name].reshape(len(images), *size, -1).transpose(0, 3, 1, 2)
        assert images.shape[1:] == shape and images.dtype == torch.uint8
        assert np.array_equal(images, np.broadcast_to(wanted, images.shape))
    assert d.labels.tolist() == [0, 1, 2, 3] * 10 and d.classes == ["0", "1", "2", "3"]
    assert recipes.recipe(d)[:2] == (padding, True)
    assert recipes.recipe(d).eval == recipes.of_folder(40, min(size)).eval


def test_arrays_that_cannot_be_used(tmp_path, monkeypatch, capsys):
    path, labels = tmp_path / "a.npz", np.arange(40) % 4
    for name, array, message in (
            ("train_images", np.zeros((40, 8, 8)), "train_images is float64 (40, 8, 8), not uint8"),
            ("test_images", np.zeros((20, 3, 8, 8), np.uint8), "uint8 (20, 3, 8, 8), not"),
            ("train_images", np.zeros((40, 8, 7), np.uint8), "of 8 x 8 pixels or more"),
            ("train_images", np.zeros((0, 8, 8), np.uint8), "(0, 8, 8), not"),
            ("test_images", np.zeros((20, 8, 9), np.uint8), "two shapes, [(1, 8, 8), (1, 8, 9)]"),
            ("train_labels", np.arange(39), "train_labels is int64 (39,), not 40 whole numbers"),
            ("train_labels", np.eye(4, dtype=int)[labels], "int64 (40, 4), not 40 whole numbers"),
            ("train_labels", labels / 1, "is float64"), ("train_labels", labels * 0, "1 class (0)"),
            ("train_labels", labels + 1, "4 classes (1, 2, 3, 4), test 4 classes (0, 1, 2, 3)"),
            ("test_labels", np.arange(20), "test 20 classes"),
            ("train_labels", np.array([Malicious()] * 40), "Object arrays cannot be loaded")):
        np.savez(path, **as_arrays(**{name: array}))
        line = refused(capsys, monkeypatch, train_search, "--dataset", "npz", "--data", path)
        assert message in line and "a.npz': " in line and "of numpy.savez with" in line, line
    np.save(tmp_path / "b.npy", labels)
    (tmp_path / "c.npz").write_bytes(path.read_bytes()[:500])
    for name in "b.npy", "c.npz", "", "d.npz":
        assert "of numpy.savez with train_images" in refused(
            capsys, monkeypatch, train_search, "--dataset", "npz", "--data", tmp_path / name)


def test_arrays_as_the_page_makes_them_are_searched_trained_and_predicted(tmp_path, monkeypatch,
                                                                          capsys):
    page = (Path(__file__).parent.parent / "docs" / "your-pictures.md").read_text()
    code = re.search("```python\n(import numpy.*?)```", page, re.S)[1]
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    fakes = [datasets.FakeData(count, (3, 20, 28), 4, random_offset=count) for count in (60, 30)]
    exec(code.replace("(32, 32)", "(28, 20)"), {"training": fakes[0], "test": fakes[1]})
    common = ["--dataset", "npz", "--data", "~/mine.npz", "--epochs", 1, "--runs", "~/runs"]
    assert call(train_search, monkeypatch, *common, "--nodes", 1, "--threshold", 0, "--name", "a",
                "--figures_every", 0) == 0
    found = capsys.readouterr().out
    assert f"--dataset npz --data {tmp_path}/mine.npz" in found.splitlines()[-1]
    assert "60 pictures of 20x28 pixels in 4 classes (0, 1, 2, 3)" in found
    assert call(train_eval, monkeypatch, *common, "--arch", "FairDARTS_a", "--name", "b") == 0
    fakes[0][0][0].save("one.png")
    assert call(predict, monkeypatch, "runs/b", "one.png", "--device", "cpu") == 0
    assert re.search(r"^one.png  [0-3] \d", capsys.readouterr().out, re.M)


def test_bad_files_are_left_out_and_streamed_pictures_are_those_in_memory(pictures, tmp_path,
                                                                          monkeypatch):
    """Each with its own label, for any number of workers and ranks, after --resume."""
    root = shutil.copytree(pictures, tmp_path / "data")
    for name in *[f"train/blue/{i}" for i in range(9)], "train/red/3", *[
            f"test/blue/{i}" for i in range(5)]:
        (root / f"{name}.png").write_bytes(b"")

    def load(**options):
        with pytest.warns(UserWarning) as found:
            loaded = data.load("folder", str(root), 16, True, **options)
        train, test = [line for line in (str(w.message) for w in found) if "files cannot" in line]
        assert "data/train: 10 of 32 files cannot be used as pictures: blue/0.png (" in train
        assert "data/test: 5 of 12 files cannot be used as pictures: blue/0.png (" in test
        return loaded

    tensors = load()
    for labels, images in tensors[1:3][::-1], tensors[3:5][::-1]:
        pixels = images.float().mean((2, 3))
        assert torch.equal(pixels[:, 0] > pixels[:, 2], labels == 1)  # red is red
    assert (len(tensors.labels), len(tensors.test_labels)) == (22, 7)
    for workers in (0, 2):
        files = load(stream=True, workers=workers)
        files = files._replace(mean=tensors.mean, std=tensors.std)
        assert isinstance(files.images, pictures_module.Files)

        def stream(dataset, seed):
            return batches.Batches(batches.Pictures(dataset, torch.device("cpu")), 7, 2, True, 3,
                                   batches.generator(seed))

        one, other = stream(tensors, 0), stream(files, 0)
        for _ in range(7):  # over two passes
            assert same(list(one.next()), list(other.next()))
        state = other.state_dict()
        assert same(list(other.next()), list(other.last()))
        expected, resumed = other.last(), stream(files, 9)
        resumed.load_state_dict(state)
        assert same(list(resumed.next()), list(expected))
        found, wanted = ([*batches.Pictures(d, torch.device("cpu"), test=True).in_order(5)]
                         for d in (files, tensors))
        assert same([list(pair) for pair in found], [list(pair) for pair in wanted])
    shares = []
    monkeypatch.setattr(processes, "size", lambda: 2)
    monkeypatch.setattr(processes, "gather", lambda found: shares.append(found) or shares[-3::2])
    for rank in 0, 1, 0:  # each tries half of the files, and hears of the other half
        monkeypatch.setattr(processes, "rank", lambda: rank)
        last = data.load("folder", str(root), 16, True, True, 0).images.paths
    assert last == files.images.paths and [len(found) for found in shares[:4]] == [5, 3, 5, 2]
    monkeypatch.undo()
    (root / "test" / "blue" / "5.png").write_bytes(b"")
    with pytest.raises(flags.UserError, match="test: class 'blue' has no picture"):
        data.load("folder", str(root), 16, True, True, 0)


def test_large_pictures_are_cropped_at_random(imagenet):
    d = data.load("imagenet", str(imagenet), 72)
    files, figures = d.images, torch.stack([d.mean, d.std]) / 255
    assert close(figures, torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]), 1e-6)
    rows = torch.tensor([[4, 1], [4, 2], [4, 1]])
    [drawn], [still] = files.read([rows], random=True), files.read([rows], random=False)
    assert drawn.shape == (3, 3, 72, 72) and drawn.dtype == torch.uint8
    assert torch.equal(drawn[0], drawn[2]) and not torch.equal(drawn[0], drawn[1])
    assert torch.equal(still[0], still[1])
    picture = Image.open(files.paths[4]).convert("RGB")
    fit = transforms.Compose([transforms.Resize(72 * 256 // 224), transforms.CenterCrop(72)])
    wanted = transforms.functional.pil_to_tensor(fit(picture)).int()
    assert (still[0].int() - wanted).abs().float().mean() < 1  # another resize, the same crop


def test_a_broken_file_of_a_stream_is_named(imagenet, tmp_path, monkeypatch, capsys):
    shutil.copytree(imagenet, tmp_path / "data")
    broken = tmp_path / "data" / "train" / "class 3" / "0.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    error = refused(capsys, monkeypatch, train_eval, *STREAMED, "--data", tmp_path / "data",
                    "--runs", tmp_path)
    assert str(broken) in error and "--skip_bad_images" in error


def test_accumulated_steps_equal_whole_ones(tmp_path, monkeypatch):
    train = model_eval.NetworkCIFAR.train
    monkeypatch.setattr(model_eval.NetworkCIFAR, "train", lambda net, mode=True: train(net, False))
    common = [*TINY_EVAL, "--no-auxiliary", "--drop_path_prob", 0, "--runs", tmp_path,
              "--epochs", 1]
    weights = []
    for name, size, times in (("a", 600, 1), ("b", 300, 2), ("c", 200, 3)):
        assert call(train_eval, monkeypatch, *common, "--name", name, "--batch_size", size,
                    "--accumulate", times) == 0
        weights.append(torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)["network"])
    for other in weights[1:]:
        assert all(close(other[name], weights[0][name], 1e-5) for name in other)


def test_recipe_of_a_folder():
    names = "batch_size", "epochs", "init_channels", "layers"
    for count, size, search, training, padding, length in (
            (90, 32, (8, 100, 8, 4), (8, 91, 16, 8), 4, 16),
            (5000, 32, (128, 27, 8, 4), (96, 20, 16, 8), 4, 16),
            (4, 16, (2, 500, 8, 4), (4, 1000, 16, 8), 2, 8),
            (1000, 128, (32, 34, 8, 4), (96, 100, 16, 8), 0, None)):
        found = recipes.of_folder(count, size)
        assert tuple(found.search[name] for name in names) == search
        assert tuple(found.eval[name] for name in names) == training
        assert (found.padding, found.eval.get("cutout_length")) == (padding, length)
        assert found.eval["gamma"] == 0
    assert recipes.of_folder(20000, 32) == recipes.Recipe(4, True, {}, {"cutout_length": 16})
    large = {**recipes.RECIPES["imagenet"].eval, "image_size": 100}
    assert recipes.of_folder(20000, 100).eval == large
    for size, augmentation in ((224, (0, False)), (32, (4, True))):  # as its files are read
        images = pictures_module.Files(["a"], size, 0)
        found = recipes.recipe(Namespace(name="imagenet", images=images))
        assert (found.padding, found.flip) == augmentation


def test_a_folder_is_searched_by_its_rule_and_streamed_on_request(pictures, tmp_path, monkeypatch,
                                                                   capsys):
    monkeypatch.setattr(os, "sysconf", lambda name: 150)  # 22,500 bytes of memory
    with pytest.raises(flags.UserError, match="do not fit into this machine's memory.* --stream"):
        data.load("folder", str(pictures), 16)
    assert call(train_search, monkeypatch, "--dataset", "folder", "--data", pictures, "--epochs", 1,
                "--nodes", 1, "--image_size", 8, "--runs", tmp_path, "--name", "a", "--stream",
                "--threshold", 0, "--figures_every", 0) == 0
    out = capsys.readouterr().out
    assert out.startswith("settings for 32 pictures of 8 pixels in 2 classes (blue, red): ")
    assert "--width" not in out
    assert "--batch_size 8" in out and "--epochs 1" in out  # as given
    assert "--stream" in out.strip().split("\n")[-1]  # in the command that trains what was found
    settings = json.loads((tmp_path / "a" / "config.json").read_text())["settings"]
    assert (settings["batch_size"], settings["init_channels"], settings["layers"]) == (8, 8, 4)


@pytest.mark.parametrize("name, attribute, shape, labels", [
    ("cifar10", "CIFAR10", (50, 32, 32, 3), "targets"),
    ("svhn", "SVHN", (50, 3, 32, 32), "labels"),
    ("fashionmnist", "FashionMNIST", (50, 28, 28), "targets")])
def test_downloaded_sets_as_torchvision_holds_them(name, attribute, shape, labels, monkeypatch):
    pixels, asked = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8), []

    def read(root, download, **part):
        asked.append(download)
        if not download:  # it is not there
            raise RuntimeError
        return SimpleNamespace(**{"data": pixels, labels: np.arange(50) % 10})

    monkeypatch.setattr(datasets, attribute, read)
    d = data.load(name)
    whole = pixels if name == "svhn" else (
        pixels.transpose(0, 3, 1, 2) if name == "cifar10" else pixels[:, None])
    assert np.array_equal(d.images.numpy(), whole) and d.images.dtype == torch.uint8
    assert d.labels.dtype == torch.int64 and d.test_labels.tolist() == [*range(10)] * 5
    assert asked == [False, True] * 2 and d.classes == list("0123456789")
    for found, expected in (d.mean, whole.mean((0, 2, 3))), (d.std, whole.std((0, 2, 3))):
        assert close(found, torch.from_numpy(expected), 1e-4)


def test_default_dataset_and_downloads_that_fail(tmp_path, monkeypatch):
    def offline(root, train, download):
        raise OSError("no network")

    monkeypatch.setattr(datasets, "CIFAR10", offline)
    given = {"data": str(tmp_path)}
    for device, asked, reason in (("cpu", {}, "no GPU"),
                                  ("cuda", given, "cannot be downloaded (no network)")):
        dataset, why = data.load_asked(asked, torch.device(device))
        assert dataset.name == "digits" and reason in why and "--dataset cifar10" in why
    (tmp_path / "train").mkdir()  # one's own pictures: no other set is taken instead
    for device, root in (("cpu", "elsewhere"), ("cuda", str(tmp_path))):
        with pytest.raises(flags.UserError, match="^--data .* without --dataset: .* folder"):
            data.load_asked({"data": root}, torch.device(device))
    whole = np.zeros((4, 32, 32, 3), np.uint8)
    damaged = [SimpleNamespace(data=pixels, targets=labels) for pixels, labels in (
        (whole.astype(float), [0] * 4), (None, [0] * 4), (whole, ["a"] * 4), (whole, [0] * 5),
        (whole[:0], []))]
    for make in [offline, *[lambda *_, found=found, **__: found for found in damaged]]:
        monkeypatch.setattr(datasets, "CIFAR10", make)
        with pytest.raises(flags.UserError, match="^cifar10 .*damaged, and cannot be downloaded"):
            data.load_asked({"dataset": "cifar10", "data": str(tmp_path)}, torch.device("cuda"))
