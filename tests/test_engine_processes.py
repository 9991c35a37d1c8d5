"""Several processes, one run: they compute what one does, stay equal, stop and go on
together."""
import functools
import json
import os
import secrets
import signal
import socket
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
from tests.common import (ENTRIES, TINY_EVAL, TINY_SEARCH, ended, fork, pictures_of, same,
                          table)


class Rank:
    """Makes a child of `fork` one of several ranks, which calls `function`, or the
    script."""

    def __init__(self, rank, size, port, function=None, *arguments):
        self.environment = dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size),
                                MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        self.function, self.arguments = function, arguments

    def __call__(self, entry):
        os.environ.update(self.environment)
        return functools.partial(self.function, *self.arguments) if self.function else entry


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
    children = [fork(tmp_path, "train_search", setup=Rank(rank, size, port, function, *arguments,
                                                          folder)) for rank in range(size)]
    for child in children:
        assert ended(*child)[::2] == (0, "")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(size)]


def two_level_steps(folder):
    """Gradients of first and second order, and the weights after three steps, in
    float64; the accuracies of another network."""
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
    pictures = pictures_of(torch.randint(256, (1100, 3, 8, 8), dtype=torch.uint8),
                           torch.randint(10, (1100,)), 99., 50.)
    network = model_eval.NetworkCIFAR(genotypes.FairDARTS_a, 4, 10, 3, False)
    loss, *accuracies = train_eval.test(network, pictures.in_order())  # of five batches
    result.append(torch.tensor([round(loss, 4), *accuracies]))
    torch.save(result, folder / f"{processes.rank()}.pt")


def test_ranks_compute_what_one_process_does(tmp_path):
    """In eval mode: in training, batch norm is of each rank's own pictures."""
    torch.set_num_threads(1)
    two_level_steps(tmp_path)
    expected = torch.load(tmp_path / "0.pt", weights_only=True)
    every = on_ranks(tmp_path, 2, two_level_steps)
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
    def epochs(run, until=None):
        yield 0
        sys.exit(0)

    loop.Run.epochs = epochs
    script_on_a_rank(script, arguments, folder)


@pytest.mark.parametrize("script, tiny", [
    ("train_search", TINY_SEARCH), ("train_eval", [*TINY_EVAL, "--drop_path_prob", "0.5"])])
def test_ranks_stay_equal_and_go_on_bit_for_bit(script, tiny, tmp_path):
    """With drop path, whose random numbers every rank draws for itself."""
    tiny = [*map(str, tiny), "--epochs", "2", "--runs", str(tmp_path), "--name"]
    whole = on_ranks(tmp_path, 2, script_on_a_rank, script, [*tiny, "whole"])
    (first, random_state, accuracies), (other, other_state, other_accuracies) = whole
    assert same(first, other) and not torch.equal(other_state, random_state)
    assert all(other_accuracies[k] == v for k, v in accuracies.items() if "train" not in k)
    on_ranks(tmp_path, 2, first_epoch_on_a_rank, script, [*tiny, "stopped"])
    assert len(table(tmp_path / "stopped")) == 1
    resumed = on_ranks(tmp_path, 2, script_on_a_rank, script,
                       ["--resume", str(tmp_path / "stopped")])
    assert same(resumed, whole)


def test_parts_of_ranks_are_the_whole(monkeypatch):
    pictures = pictures_of(torch.randint(256, (50, 3, 8, 8), dtype=torch.uint8), torch.arange(50))

    def of_rank(rank, make):
        with monkeypatch.context() as patch:
            patch.setenv("WORLD_SIZE", "3")
            patch.setenv("RANK", str(rank))
            return make()

    def stream():
        return batches.Batches(pictures, 12, 2, True, 3, batches.generator(0))

    whole, parts = stream(), [of_rank(rank, stream) for rank in range(3)]
    for _ in range(9):  # over two passes
        x, y = whole.next()
        found = [of_rank(rank, part.next) for rank, part in enumerate(parts)]
        assert torch.equal(torch.cat([x for x, _ in found]), x)
        assert torch.equal(torch.cat([y for _, y in found]), y)
    found = [of_rank(rank, lambda: list(pictures.in_order(12))) for rank in range(3)]
    seen = torch.cat([labels for part in found for _, labels in part])
    assert sorted(seen.tolist()) == list(range(50)) and [len(part) for part in found] == [2, 2, 1]


@pytest.mark.slow
def test_a_stopped_and_a_killed_rank_end_the_job_and_it_goes_on(tmp_path):
    folder, done = tmp_path / "a", 0
    command = [*TINY_SEARCH, "--runs", tmp_path, "--name", "a", "--epochs", 500, "--log_every", 1]
    for number, expected in (signal.SIGTERM, 143), (signal.SIGKILL, 2):  # of one rank
        children = start_ranks(tmp_path, 2, "train_search", *command)
        while not (folder / "metrics.csv").exists() or len(table(folder)) == done:
            time.sleep(0.05)
        os.kill(children[1][0].pid, number)
        code, out, error = ended(*children[0])
        ended(*children[1])
        assert code == expected and "go on" in out + error
        assert f"torchrun --nproc-per-node=2 train_search.py --resume {folder}" in out + error
        command, done = ["--resume", folder], len(table(folder))
    assert error.count("\n") == 1 and "rank 0 has lost another one" in error
    assert not list(folder.glob("*.part"))
    config = json.loads((folder / "config.json").read_text())
    for size in (2, 3, 1):
        done += 1
        config["settings"]["epochs"] = done
        (folder / "config.json").write_text(json.dumps(config))
        for child in start_ranks(tmp_path, size, "train_search", *command):
            code, _, error = ended(*child)
            assert code == 0, error
            assert ("not bit for bit" in error) == (size != 2 and "note" in error)
        assert len(table(folder)) == done
