"""Several processes, one run: they compute what one does, stay equal, stop and go on
together."""
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
import torch.nn.functional as F

import fair_darts
import genotypes
import model_eval
import model_search
import train_eval
from engine import batches, devices, loop, processes
from engine.precision import Precision
from speed import accelerate
from test_fair_darts import batch, close
from tests.common import ENTRIES, TINY_EVAL, TINY_SEARCH, ended, fork, same, table


# ---------------------------------------------------------------- several processes

class Rank:
    """Makes a child of `fork` one of several ranks."""

    def __init__(self, rank, size, port):
        self.environment = dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size),
                                MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))

    def __call__(self, entry):
        os.environ.update(self.environment)
        return entry


class Call(Rank):
    """The same, which calls `function` in place of a script."""

    def __init__(self, rank, size, port, function, *arguments):
        super().__init__(rank, size, port)
        self.function, self.arguments = function, arguments

    def __call__(self, entry):
        os.environ.update(self.environment)
        return lambda: self.function(*self.arguments)


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start_ranks(tmp_path, size, script, *arguments):
    port = free_port()
    return [fork(tmp_path, script, *arguments, setup=Rank(rank, size, port))
            for rank in range(size)]


def on_ranks(tmp_path, size, function, *arguments):
    """Call function(*arguments, folder) on `size` ranks; what each saved as
    `rank`.pt."""
    folder = tmp_path / f"{function.__name__}_{size}_{secrets.token_hex(4)}"
    folder.mkdir()
    port = free_port()
    children = [fork(tmp_path, "train_search", setup=Call(rank, size, port, function, *arguments,
                                                          folder)) for rank in range(size)]
    for child in children:
        assert ended(*child)[::2] == (0, "")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(size)]


def two_level_steps(folder):
    """Gradients of first and second order, and the weights after three steps, in
    float64."""
    device = devices.choose_device("cpu")
    torch.manual_seed(0)
    network = accelerate(model_search.Network(2, 10, 3, 2).double()).eval()
    with torch.no_grad():  # so that batch norm in eval mode is no identity
        for buffer in network.buffers():
            buffer.copy_(torch.rand(buffer.shape) + 0.5)
    sgd = torch.optim.SGD(network.weights(), 0.1, 0.9, weight_decay=3e-4)
    precision = Precision(device, False, network)
    architect = fair_darts.Architect(network, 0.1, gradients=precision.gradients)
    images, labels = batch(8, 12)
    (x, valid_x), (y, valid_y) = images.split(6), labels.split(6)
    x, valid_x, y, valid_y = (processes.local_part(t) for t in (x, valid_x, y, valid_y))
    result = []
    for step in range(3):
        if step in (0, 2):
            result += architect.unrolled(valid_x, valid_y, x, y, sgd)[0]
        with fair_darts.frozen(architect.weights):
            loss = F.cross_entropy(network(valid_x), valid_y)
            result += architect.gradients(loss + network.alphas[0].sum(), architect.alphas)
        architect.step(valid_x, valid_y)
        sgd.zero_grad()
        precision.backward(F.cross_entropy(network(x), y), sgd)
        result += [w.grad.clone() for w in network.weights()]
        precision.step(sgd)
    processes.average_statistics(network)
    result += [t.detach() for t in network.state_dict().values()]
    torch.save(result, folder / f"{processes.rank()}.pt")


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_compute_what_one_process_does(size, tmp_path):
    """In eval mode: in training, batch norm is of each rank's own pictures."""
    torch.set_num_threads(1)
    two_level_steps(tmp_path)
    expected = torch.load(tmp_path / "0.pt", weights_only=True)
    every = on_ranks(tmp_path, size, two_level_steps)
    for found in every:
        assert len(found) == len(expected)
        for a, b, first in zip(found, expected, every[0]):
            assert close(a, b, 1e-10) and torch.equal(a, first)


def script_on_a_rank(script, arguments, folder):
    """A search or a training whose networks are saved after each epoch."""
    end_epoch = loop.Run.end_epoch

    def save(run, row, lines):
        torch.save([run.tracked["network"].state_dict(), torch.get_rng_state(),
                    {key: value for key, value in row.items() if "accuracy" in key}],
                   folder / f"{processes.rank()}.pt")
        end_epoch(run, row, lines)

    loop.Run.end_epoch = save
    sys.argv = [script + ".py", *arguments]
    getattr(*ENTRIES[script])()


def first_epoch_on_a_rank(script, arguments, folder):
    loop.Run.epochs = lambda run: range(1)
    script_on_a_rank(script, arguments, folder)


@pytest.mark.parametrize("script, tiny", [
    ("train_search", TINY_SEARCH), ("train_eval", [*TINY_EVAL, "--drop_path_prob", "0.5"])])
def test_ranks_stay_equal(script, tiny, tmp_path):
    every = on_ranks(tmp_path, 2, script_on_a_rank, script,
                     [*map(str, tiny), "--runs", str(tmp_path), "--name", "a", "--epochs", "2"])
    (first, random_state, accuracies), *others = every
    for state, other_state, other_accuracies in others:
        assert all(torch.equal(state[name], first[name]) for name in first)
        assert not torch.equal(other_state, random_state)  # each draws its own
        assert {k: v for k, v in other_accuracies.items() if "train" not in k} == {
            k: v for k, v in accuracies.items() if "train" not in k}


def test_ranks_go_on_bit_for_bit(tmp_path):
    """With drop path, whose random numbers every rank draws for itself."""
    tiny = [*map(str, TINY_EVAL), "--drop_path_prob", "0.5", "--epochs", "2",
            "--runs", str(tmp_path), "--name"]
    whole = on_ranks(tmp_path, 2, script_on_a_rank, "train_eval", [*tiny, "whole"])
    on_ranks(tmp_path, 2, first_epoch_on_a_rank, "train_eval", [*tiny, "stopped"])
    assert len(table(tmp_path / "stopped")) == 1
    resumed = on_ranks(tmp_path, 2, script_on_a_rank, "train_eval",
                       ["--resume", str(tmp_path / "stopped")])
    assert same(resumed, whole)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_parts_of_ranks_are_the_whole(size, monkeypatch):
    images = torch.randint(256, (50, 3, 8, 8), dtype=torch.uint8)
    mean, std = torch.zeros(3), torch.ones(3)

    def stream():
        return batches.Batches(images, torch.arange(50), mean, std, 12, 2, True, 3,
                               batches.generator(0))

    def of_rank(rank, make):
        monkeypatch.setenv("WORLD_SIZE", str(size))
        monkeypatch.setenv("RANK", str(rank))
        made = make()
        monkeypatch.undo()
        return made

    whole, parts = stream(), [of_rank(rank, stream) for rank in range(size)]
    for _ in range(9):  # over two passes
        x, y = whole.next()
        found = [of_rank(rank, part.next) for rank, part in enumerate(parts)]
        assert torch.equal(torch.cat([x for x, _ in found]), x)
        assert torch.equal(torch.cat([y for _, y in found]), y)
    found = [of_rank(rank, lambda: list(batches.in_order(images, torch.arange(50), mean, std, 12)))
             for rank in range(size)]
    seen = torch.cat([labels for part in found for _, labels in part])
    assert sorted(seen.tolist()) == list(range(50)) and not all(len(part) == 5 for part in found)


def accuracies_on_a_rank(folder):
    devices.choose_device("cpu")
    torch.manual_seed(0)
    network = model_eval.NetworkCIFAR(genotypes.FairDARTS_a, 4, 10, 3, False)
    images = torch.randint(256, (1000, 3, 8, 8), dtype=torch.uint8)  # four batches of at most 256
    labels, mean, std = torch.randint(10, (1000,)), torch.full((3,), 99.), torch.full((3,), 50.)
    torch.save(train_eval.test(network, batches.in_order(images, labels, mean, std)),
               folder / f"{processes.rank()}.pt")


def test_evaluation_over_ranks(tmp_path):
    accuracies_on_a_rank(tmp_path)
    expected = torch.load(tmp_path / "0.pt", weights_only=True)
    for found in on_ranks(tmp_path, 3, accuracies_on_a_rank):
        assert found[1:] == expected[1:] and abs(found[0] - expected[0]) < 1e-5


@pytest.mark.slow
def test_a_killed_rank_ends_the_job_and_it_goes_on(tmp_path, monkeypatch, capsys):
    tiny = [*TINY_SEARCH, "--runs", tmp_path, "--name", "a", "--epochs", 500]
    children = start_ranks(tmp_path, 2, "train_search", *tiny)
    while not (tmp_path / "a" / "checkpoint.pt").exists():
        time.sleep(0.05)
    os.kill(children[1][0].pid, signal.SIGKILL)
    code, _, error = ended(*children[0])
    ended(*children[1])
    assert code == 2 and error.count("\n") == 1
    assert "rank 0 has lost another one" in error and "is whole, go on with: torchrun" in error
    assert not list((tmp_path / "a").glob("*.part"))
    done = len(table(tmp_path / "a"))
    for size in (2, 3, 1):
        done += 1
        path = tmp_path / "a" / "config.json"
        config = json.loads(path.read_text())
        config["settings"]["epochs"] = done
        path.write_text(json.dumps(config))
        state = torch.load(tmp_path / "a" / "checkpoint.pt", weights_only=True)
        state["settings"]["epochs"] = done
        for child in start_ranks(tmp_path, size, "train_search", "--resume", tmp_path / "a"):
            code, _, error = ended(*child)
            assert code == 0, error
            assert ("not bit for bit" in error) == (size != 2 and "note" in error)
        assert len(table(tmp_path / "a")) == done


@pytest.mark.slow
def test_errors_on_ranks(tmp_path):
    for arguments, message in ((["--batch_size", "301"], "give a multiple of 2"),
                               (["--w01", "x"], "--w01")):
        children = start_ranks(tmp_path, 2, "train_search", *TINY_SEARCH, "--runs", tmp_path,
                               *arguments)
        for rank, child in enumerate(children):
            code, _, error = ended(*child)
            assert code == 2 and error.count("\n") == 1 and message in error
            assert ("rank 1: " in error) == (rank == 1)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_torchrun_is_stopped_and_goes_on(number, tmp_path):
    tiny = [*TINY_SEARCH, "--runs", tmp_path, "--name", "a", "--epochs", "500"]
    child = subprocess.Popen([sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2",
                              "--master-port", str(free_port()), "train_search.py",
                              *map(str, tiny)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                             text=True)
    while not (tmp_path / "a" / "checkpoint.pt").exists() and child.poll() is None:
        time.sleep(0.05)
    child.send_signal(number)
    out, error = child.communicate(timeout=60)
    assert child.returncode and "stopped in epoch" in out, error
    assert f"torchrun --nproc-per-node=2 train_search.py --resume {tmp_path / 'a'}" in out
    state = torch.load(tmp_path / "a" / "checkpoint.pt", weights_only=True)
    assert len(state["rows"]) >= 1
