"""Searches read by strength: the choices, what is lost, the command in each space."""
import pytest
import torch
import torch.nn.functional as F

import spaces
import train_search
from engine import batches, data
from engine.script import old_run
from model_search import Network
from spaces import nasbench201
from study import cures, strength
from tests.common import call

ZEROED = ["sep_conv_3x3", "dil_conv_3x3"]
SEARCH = ["--epochs", "1", "--dataset", "folder", "--image_size", "16", "--figures_every", "0",
          "--gap_every", "0", "--threshold", "0", "--device", "cpu", "--name", "a", "--data"]


def seeded(number=0):
    return torch.Generator().manual_seed(number)


def changes_of(network, present):
    """loss(part, row, op): how far logits are from those of all operations."""
    images = torch.randn(8, 3, 8, 8, generator=seeded())
    network.double().train()

    @torch.no_grad()
    def logits(present):
        return network(images.double(), strength.gates_of(network, present))

    whole = logits(present)

    def loss(part, row, op=slice(None)):
        less = [there.clone() for there in present]
        less[part][row, op] = False
        return (logits(less) - whole).square().sum().item()
    return loss


def silence(op):
    """Its output becomes 0."""
    for module in op.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.weight.data.zero_()


@pytest.mark.parametrize("space", ["s1", "nasbench201"])
def test_operations_that_do_something_are_chosen(space):
    """All others put out 0; their alphas are the larger ones, so that gates mislead."""
    torch.manual_seed(1)
    if space == "s1":
        names, network = ZEROED, Network(4, 3, 3, 2, primitives=ZEROED)
    else:
        names = ["nor_conv_1x1", "nor_conv_3x3"]
        network = nasbench201.SupernetNB201(4, 1, 3, 3, "sigmoid", names)
    right = [torch.randint(2, (len(alphas),)) for alphas in network.alphas]
    for alphas, best in zip(network.alphas, right):
        alphas.data = 2 * (torch.arange(2) != best[:, None]).float() - 1
    # in S1 two of the three edges into node 3 matter, of either type of cell
    idle = [row.item() + 2 for row in torch.randint(3, (2,))] if space == "s1" else [None]
    for cell in network.cells:
        if hasattr(cell, "edges"):
            part = int(getattr(cell, "reduction", False))
            for row, edge in enumerate(cell.edges):
                silence(edge.operations[1 - right[part][row]])
                if row == idle[part]:
                    silence(edge)
    present = [torch.ones(alphas.shape, dtype=torch.bool) for alphas in network.alphas]
    loss, calls = changes_of(network, present), []
    strength.keep_strongest(present, loss, seeded(), lambda: calls.append(None))
    assert len(calls) == sum(map(len, right))
    for there, best, row in zip(present, right, idle):
        chosen = torch.ones(len(best), dtype=torch.bool)
        if row is not None:
            chosen[row] = False  # there nothing does anything: the first of equals
            assert there[row].tolist() == [True, False]
        assert torch.equal(there[chosen], F.one_hot(best, 2).bool()[chosen])
    if space == "s1":
        strength.keep_strongest_edges(present, loss, 2, 2)
        for there, row in zip(present, idle):
            assert there.any(1).tolist() == [other != row for other in range(5)]


def test_gates_of_what_is_left():
    """Under softmax the others of an edge share it (Eq. 2); a shared one too."""
    alphas = torch.randn(3, 4, generator=seeded(), dtype=torch.float64)
    present = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0]]).bool()
    weights = alphas.exp() * present
    literal = {"softmax": (weights / weights.sum(1, keepdim=True)).nan_to_num(0),
               "sigmoid": present / (1 + (-alphas).exp())}
    shared = torch.tensor([True, True, False, False])
    part = weights * shared
    literal[cures.SharedSoftmax(shared)] = torch.where(
        shared, part / part.sum(1, keepdim=True), literal["sigmoid"]).nan_to_num(0)
    for gate, expected in literal.items():
        network = nasbench201.SupernetNB201(4, 1, 3, 3, gate, list(nasbench201.OPS)[:4])
        network.alphas[0].data = alphas
        torch.testing.assert_close(strength.gates_of(network, [present])[0], expected)


@pytest.mark.parametrize("space", ["s1", pytest.param("s2", marks=pytest.mark.slow),
                                   "nasbench201"])
def test_the_command(space, pictures, tmp_path, monkeypatch, capsys):
    """What it prints is what it writes, twice alike; the run's own files stay."""
    own = {"s1": ["--nodes", "2", "--primitives", "skip_connect,sep_conv_3x3", "--layers", "3",
                  "--init_channels", "2"], "s2": ["--width", "0.1"],
           "nasbench201": ["--primitives", "skip_connect,nor_conv_1x1"]}[space]
    call(train_search, monkeypatch, *own, "--space", space, *SEARCH, pictures, "--runs", tmp_path)
    before = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    for words in [[]] if space == "s2" else [[], [], ["--tune", "1"]]:
        capsys.readouterr()
        assert call(strength, monkeypatch, tmp_path / "a", *words) == 0
        name = "genotype_strength_tune1.json" if words else "genotype_strength.json"
        path = tmp_path / "a" / name
        _, genotype = spaces.read(str(path))
        assert capsys.readouterr().out == f"{genotype}\n"
        if not words:
            assert before.setdefault(name, path.read_bytes()) == path.read_bytes()
        path.unlink()
    before.pop("genotype_strength.json")
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}


def test_what_is_measured_and_trained(pictures, tmp_path, monkeypatch):
    """The loss, and an epoch of --tune, as they are written here."""
    call(train_search, monkeypatch, "--space", "nasbench201", *SEARCH, pictures, "--runs", tmp_path)
    with old_run("train_search", str(tmp_path / "a"), {}) as run:
        run.read_checkpoint()
        data.load_again(run)
        network = run.supernet("sigmoid").train()
        network.load_state_dict(run.checkpoint["network"])
        train, validation = batches.halves(run)
        gates = [network.compute_gates()[0].detach()]

        def literal(op):
            gates[0][2, op], kept = 0, gates[0][2, op].item()
            logits = [(network(images, gates), labels)
                      for images, labels in validation.pictures.in_order()]
            gates[0][2, op] = kept
            return sum(F.cross_entropy(*pair, reduction="sum").item() for pair in logits)

        def literally_tuned():
            weights, momenta = network.weights(), {}
            for _ in range(len(train)):
                images, labels = train.next()
                loss = F.cross_entropy(network(images, gates), labels)
                slopes = torch.autograd.grad(loss, weights)
                norm = torch.cat([slope.flatten() for slope in slopes]).norm().item()
                for w, slope in zip(weights, slopes):
                    slope = slope * min(1, 5 / (norm + 1e-6)) + 3e-4 * w.detach()
                    momenta[w] = 0.9 * momenta.get(w, 0) + slope
                    w.data -= run.s.learning_rate / 10 * momenta[w]

        def compare(present, loss, generator, between):
            assert [loss(0, 2, op) for op in range(4)] == pytest.approx(
                [literal(op) for op in range(4)], rel=1e-5)
            present[0][1, 3] = False  # trained without it from here on
            gates[0][1, 3] = 0
            before = loss(0, 2, 0)
            between()
            literally_tuned()
            assert loss(0, 2, 0) == pytest.approx(literal(0), rel=1e-4)
            assert abs(loss(0, 2, 0) - before) > 1e-2 * before

        monkeypatch.setattr(strength, "keep_strongest", compare)
        strength.read_by_strength(run, 1)
