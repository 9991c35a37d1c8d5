"""Hostile files, names, settings and machines: one line each, nothing changed, no code
run."""
import argparse
import errno
import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import torch
from PIL import Image

import train_eval
import train_search
from engine import flags, folders
from study import visualize
from tests.common import TINY_EVAL, Malicious, content, ended, fork, new_run, refused
from use import predict

DIGITS = ["--dataset", "digits"]


# ---------------------------------------------------------------- the command line

def test_kinds_of_flags():
    names = flags.some_of(["a", "b", "c"])
    assert [flags.number(int, 2, 5)("2"), flags.number(float, 0, 1)("1")] == [2, 1]
    assert names("c,a") == "a,c"
    for kind, text, message in (
            (flags.number(int, 1), "-3", "expected a whole number from 1 up, got '-3'"),
            (flags.number(int, 0), "9" * 9999, "a whole number"),
            (flags.number(float, 0, 1, open_ends=True), "1", "a number above 0 and below 1"),
            *[(flags.number(float, 0), text, "a number from 0") for text in ("x", "nan", "1e31")],
            (names, "a,x", "unknown 'x'"), (names, "a,b,a", "twice in 'a,b,a'")):
        with pytest.raises(argparse.ArgumentTypeError, match=re.escape(message)) as error:
            kind(text)
        assert len(str(error.value)) < 250


OUT_OF_BOUNDS = {  # flags, each with a value that it does not take
    train_search: """epochs=0 epochs=1e3 threshold=1.5 train_portion=1 gate= w01=-1 w01=inf nodes=5
        zero_one_loss=l3 arch_beta1=1 space=s3 width=0 primitives= threads=1025 seed=2147483649
        image_size=7 dataset=digit workers=257 gap_every=-1 batch_size=1""",
    train_eval: """drop_path_prob=1 layers=0 init_channels=1000001 auxiliary=yes momentum=nan
        grad_clip=0 gamma=1.1 label_smooth=1 accumulate=0 drop_path_on=cell"""}


@pytest.mark.parametrize("script", OUT_OF_BOUNDS)
def test_values_out_of_bounds_are_refused_by_their_flag(script):
    for word in OUT_OF_BOUNDS[script].split():
        with pytest.raises(flags.UserError, match="--" + word.split("=")[0]):
            script.PARSER.parse_args(["--" + word])
    for table in script.FLAGS.values():  # and all defaults are taken
        for default, kind, _ in table.values():
            assert default in (None, "", True, False) or kind(str(default)) == default


EVAL = ["--arch", "FairDARTS_a"]
REFUSED = [  # (script, arguments, what its one line says)
    (train_eval, [], "--arch is missing"), (train_eval, ["--arch"], "expected one argument"),
    (train_eval, [*EVAL, *DIGITS, "--batch_size", "2000"], "--batch_size 1437 or less"),
    (train_eval, [*EVAL, "--auxilary"], "did you mean '--auxiliary'"),
    (train_eval, [*EVAL, "--squeeze"], "--squeeze is for architectures of the space s2"),
    (train_eval, ["--evaluate", "\ud800"], "config.json"),
    (train_eval, ["--evaluate", "A", "--resume", "B"], "two things"),
    *[(train_search, ["--resume", name], "") for name in ("", ".", "a\0b", "x" * 5000)],
    (train_search, ["--dataset", "folder", "--data", "x\ny"], "there is no folder"),
    (train_search, [*DIGITS, "--batch_size", "719"], "--batch_size 718 or less"),
    (train_search, [*DIGITS, "--train_portion", "1e-5"], "at least 2 are needed"),
    (train_search, [*DIGITS, "--runs", "/dev/null", "--name", "x"], "/dev/null"),
    (train_search, ["--width", "0.5"], "--width belongs to --space s2"),
    (train_search, [*DIGITS, "--primitives", "skip_connect,nor_conv_3x3"],
     "--primitives nor_conv_3x3 is no operation of --space s1"),
    *[(train_search, words, "unknown argument") for words in (["--x\ny"], ["x\ny"])],
    *[(train_search, ["--device", name], "this machine has:") for name in ("gpu", "\n", "meta")],
    (visualize, ["x\ny"], ""), (visualize, ["FairDARTS_a", "--output", "/dev/null"], "/dev/null")]


def test_arguments_are_refused_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for script, arguments, message in REFUSED:
        assert message in refused(capsys, monkeypatch, script, *arguments), arguments
        assert list(tmp_path.iterdir()) == [], arguments  # nothing half-written


# ---------------------------------------------------------------- files of a run

def test_damaged_files_of_a_run_end_in_one_line(finished, tmp_path, monkeypatch, capsys):
    """Whatever reading them raises; nothing of the run changes, and no code runs."""
    shutil.copytree(finished, tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    torch.save(Malicious(), tmp_path / "code")
    torch.save([1, 2], tmp_path / "list")
    image = tmp_path / "image.png"
    Image.new("L", (8, 8)).save(image)
    code, other = ((tmp_path / name).read_bytes() for name in ("code", "list"))
    for run, name, script, *words in (
            ("a", "config.json", train_search, "--resume"), ("d", "config.json", train_eval,
                                                             "--evaluate"),
            ("a", "checkpoint.pt", train_search, "--resume"),
            ("d", "checkpoint.pt", train_eval, "--resume"), ("d", "best.pt", train_eval,
                                                             "--evaluate"),
            ("d", "weights.pt", predict), ("a", "config.json", visualize),
            ("a", "gates.npz", visualize), ("a", "metrics.csv", visualize)):
        path = tmp_path / "runs" / run / name
        whole, more = path.read_bytes(), [code, other] if name.endswith(".pt") else []
        for damaged in (b"", b"\0x\xff", whole[:len(whole) // 4], b"[" * 99999, *more):
            path.write_bytes(damaged)
            before = content(tmp_path)
            line = refused(capsys, monkeypatch, script, *words, path.parent,
                           *[image] * (script is predict))
            assert str(path.parent) in line and len(line) < 400, (damaged[:9], line)
            assert content(tmp_path) == before
        path.write_bytes(whole)
    state = torch.load(tmp_path / "runs" / "a" / "checkpoint.pt", weights_only=True)
    for changed, message in (({"adam": ...}, "it lacks 'adam'"), ({"rows": ...}, "it lacks 'rows'"),
                             ({"network": {}}, "loading state_dict")):
        torch.save({key: value for key, value in {**state, **changed}.items() if value is not ...},
                   tmp_path / "runs" / "a" / "checkpoint.pt")
        assert message in refused(capsys, monkeypatch, train_search, "--resume",
                                  tmp_path / "runs" / "a", "--epochs", 2)


def test_runs_that_cannot_go_on(finished, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "a\nb"
    shutil.copytree(finished / "a", folder)
    config = json.loads((folder / "config.json").read_text())
    for script, changed, message in (
            (train_eval, {}, "is a run of train_search.py"),
            (train_search, {"version": 0}, "is a run of train_search.py, version 0, not of"),
            (train_search, {"fingerprint": "0"}, "the dataset is not the one")):
        (folder / "config.json").write_text(json.dumps({**config, **changed}))
        assert message in refused(capsys, monkeypatch, script, "--resume", folder, "--epochs", 2)


def test_a_failed_creation_leaves_no_folder(tmp_path, monkeypatch):
    def full(*arguments, **more):
        raise OSError(errno.ENOSPC, "No space left on device", "config.json")

    for owner, name in ((os, "replace"), (os, "fsync"), (folders, "open"), (os, "mkdir")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, full, raising=False)
            with pytest.raises(OSError, match="No space left"):
                new_run(tmp_path)
        assert list(tmp_path.iterdir()) == []


def test_an_unexpected_error_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    run = new_run(tmp_path)
    with pytest.raises(ZeroDivisionError, match="of a test"), run:
        run.track()
        raise ZeroDivisionError("of a test")
    first = capsys.readouterr().err.split("\n")[0]
    assert "the last checkpoint is whole" in first
    assert f"python train_search.py --resume {run.folder}" in first


# ---------------------------------------------------------------- streams and memory

@pytest.mark.parametrize("streams", [">&- 2>&-", ""])  # closed; of few characters
def test_streams(streams, finished, tmp_path):
    folder = tmp_path / "é\udcff"
    shutil.copytree(finished / "a", folder)
    (folder / "genotype.json").unlink()
    command = shlex.join([sys.executable, train_search.__file__, "--resume", str(folder)])
    child = subprocess.run(f"{command} {streams}", shell=True, capture_output=True, timeout=120,
                           env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert child.returncode == 0 and child.stderr == b"" and (folder / "genotype.json").exists()
    assert (rb"\xe9\udcff" in child.stdout) == (streams == "")


def test_a_reader_that_has_gone():
    """In a process of its own, at whose end Python could complain once more."""
    code = "from engine.flags import main; main(lambda: print('x' * 10**6))"
    child = subprocess.run(f"{shlex.join([sys.executable, '-c', code])} | true", shell=True,
                           capture_output=True, timeout=120)
    assert child.stderr == b"-c: error: Broken pipe\n"


def test_out_of_memory_is_one_line(tmp_path):
    code, _, error = ended(*fork(tmp_path, "train_eval", *TINY_EVAL, "--init_channels", 100000,
                                 "--runs", tmp_path, memory=400 << 20))
    assert code == 2 and error.count("\n") == 1, error
    assert all(flag in error for flag in ("--batch_size", "--init_channels", "--recompute"))
    with pytest.raises(RuntimeError) as real:
        torch.empty(2**60)
    for error in (real.value, MemoryError(), torch.OutOfMemoryError("CUDA out of memory")):
        assert flags.is_out_of_memory(error)
    assert not flags.is_out_of_memory(RuntimeError("CUDA error: an illegal memory access"))
