"""The package speed: an accelerated network equals a plain one, and is itself a
network."""
import copy
import pickle

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import genotypes
import model_eval
import model_search
import operations
from fair_darts import Architect, frozen
from genotypes import PRIMITIVES as ALL, Edge, Genotype
from operations import DilConv, SepConv
from spaces import nasbench201, s2
from speed import accelerate, groups, kernels, layers
from speed.benchmark import kept_bytes
from tests.common import shortened


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def batch(size, count=6, channels=3):
    torch.manual_seed(1)
    return (torch.randn(count, channels, size, size, dtype=torch.float64),
            torch.randint(0, 10, (count,)))


def assert_close(values, expected, tolerance=1e-9):
    """By name; relative to the largest value, with a floor for what is zero but for
    rounding."""
    assert values.keys() == expected.keys()
    for name, value in values.items():
        scale = max(expected[name].abs().max().item(), 1e-4)
        distance = (value - expected[name]).abs().max().item() / scale
        assert distance <= tolerance, f"{name}: {distance}"


def results(network, images, labels, passes=1):
    """Logits, gradients and statistics of training passes, then logits in eval mode, by
    name."""
    values = {}
    for index in range(passes):
        network.zero_grad()
        torch.manual_seed(index)  # of drop path
        outputs = network.train()(images)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        outputs = [logits for logits in outputs if logits is not None]
        sum(F.cross_entropy(logits, labels) for logits in outputs).backward()
        values.update({f"{index} logits {i}": v.detach() for i, v in enumerate(outputs)})
        values.update({f"{index} gradient {name}": w.grad.clone()
                       for name, w in network.named_parameters() if w.grad is not None})
        values.update({f"{index} {name}": buffer.clone().double()
                       for name, buffer in network.named_buffers() if "batches" not in name})
    with torch.no_grad():
        outputs = network.eval()(images)
    values["eval"] = first_of(outputs)
    return values


def first_of(outputs):
    return outputs[0] if isinstance(outputs, tuple) else outputs


def drawn(network):
    """`network`, with other weights, and every batch norm with other statistics."""
    with torch.no_grad():
        for w in network.parameters():
            w.normal_()
    return with_statistics(network)


def with_statistics(network):
    for buffer in network.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 2)
    return network


def stem_of(network):
    return network.stem_0 if hasattr(network, "stem_0") else network.stem


def assert_accelerated_equals(plain, images, labels, contiguous=False, recompute=False):
    """Returns the accelerated network. contiguous: in NCHW, as on MPS."""
    fast, values, draws = accelerate(copy.deepcopy(with_statistics(plain)), recompute), [], []
    if contiguous:
        stem_of(fast)._forward_hooks.clear()
    for network in (fast, plain):
        values.append(results(network, images, labels))
        draws.append(torch.rand(1))
    assert_close(*values)
    assert draws[0] == draws[1]
    return fast


def supernet(*arguments, **options):
    torch.manual_seed(1)
    network = model_search.Network(*arguments, **options).double()
    with torch.no_grad():
        for alphas in network.alphas:
            alphas.normal_()
    return network


def supernet_s2():
    torch.manual_seed(1)
    network = shortened(s2.SupernetS2(10, 3, width=0.1, image_size=16)).double()
    network.alphas[0].data.normal_()
    return network


def supernet_of_edges():
    torch.manual_seed(1)
    network = nasbench201.SupernetNB201(4, 1, 10, 3, "sigmoid", [*nasbench201.OPS]).double()
    network.alphas[0].data.normal_()
    return network


def operations_of(network, kind):
    """The groups of `kind` of all cells."""
    return [op for cell in network.cells for group in cell.groups
            for op in [op for _, op in group.different] + list(group.shared.values())
            if type(op) is kind]


# ---------------------------------------------------------------- supernets

@pytest.mark.parametrize("size, contiguous, arguments", [
    (8, False, (4, 10, 3)), (7, False, (4, 10, 3)), (15, False, (4, 10, 4, 2, 3, "softmax")),
    (7, True, (4, 10, 2, 1)), (8, True, (4, 10, 3, 2)),
    (8, False, (1, 10, 3, 2, 3, "sigmoid", [p for p in ALL if p != "skip_connect"])),
    (7, False, (4, 10, 3, 2, 3, "sigmoid", ["skip_connect", "sep_conv_3x3"])),
    (8, False, (4, 10, 3, 2, 3, "softmax", ["avg_pool_3x3", "dil_conv_5x5"])),
    (8, False, (4, 10, 3, 2, 3, "sigmoid", ["max_pool_3x3", "sep_conv_5x5", "dil_conv_3x3"])),
    *((8, False, (4, 10, 3, 2, 3, "sigmoid", [name]))
      for name in ("dil_conv_3x3", "skip_connect", "max_pool_3x3"))])
def test_accelerated_supernet_equals_the_plain_one(size, contiguous, arguments):
    fast = assert_accelerated_equals(supernet(*arguments), *batch(size), contiguous=contiguous)
    assert not operations_of(fast, groups.Separate)


def test_gates_that_are_given():
    plain, (images, _) = supernet(2, 10, 3, 2, gate=lambda a: a.sigmoid() * 2), batch(8)
    given = [torch.rand(5, 7, dtype=torch.float64) for _ in plain.alphas]
    fast = accelerate(copy.deepcopy(plain))
    for gates in [], [given]:
        assert torch.allclose(fast(images, *gates), plain(images, *gates), 1e-9, 1e-12)


def test_accelerated_supernet_of_s2_equals_the_plain_one():
    """All layers, each size halved but the last, odd and even ones; then a few, all
    even."""
    torch.manual_seed(1)
    plain = s2.SupernetS2(10, 3, "softmax", 0.1, 65).double()
    plain.alphas[0].data.normal_()
    assert_accelerated_equals(plain, *batch(35, 4))
    assert_accelerated_equals(supernet_s2(), *batch(8, 4), contiguous=True)


# ---------------------------------------------------------------- operations of one's own

def halved(kind):
    """A class whose forward gives half of what that of `kind` does."""
    return type("Halved", (kind,), {
        "forward": lambda self, *inputs: kind.forward(self, *inputs) / 2})


class Doubled(nn.Identity):
    """As study.cures disturbs skips."""

    def forward(self, x):
        return 2 * x


def changed(op, change):
    """`op`, after `change(op)`."""
    change(op)
    return op


def halve(module, inputs, output):
    return output / 2


# Names of operations, by whether groups know them
GROUPED = {
    "sep_conv_7x7": lambda c, stride, affine: SepConv(c, 7, stride, affine),
    "sep_conv_9x9": lambda c, stride, affine: SepConv(c, 9, stride, affine),
    "sep_conv_1x1": lambda c, stride, affine: SepConv(c, 1, stride, affine),
    "dil_conv_7x7": lambda c, stride, affine: DilConv(c, 7, stride, affine),
    "dilation_3": lambda c, stride, affine: DilConv(c, 3, stride, affine, dilation=3),
    "dilation_1": lambda c, stride, affine: DilConv(c, 5, stride, affine, dilation=1),
    "max_pool_5x5": lambda c, stride, affine: nn.MaxPool2d(5, stride, 2)}
SEPARATE = {
    "halved": lambda c, stride, affine: halved(SepConv)(c, 3, stride, affine),
    "hooked": lambda c, stride, affine: changed(
        SepConv(c, 3, stride, affine), lambda op: op[1][2].register_forward_hook(halve)),
    "own_forward": lambda c, stride, affine: changed(
        DilConv(c, 3, stride, affine),
        lambda op: setattr(op, "forward", lambda x: x[:, :, ::stride, ::stride].sin())),
    "cumulative": lambda c, stride, affine: changed(
        SepConv(c, 3, stride, affine), lambda op: setattr(op[0][3], "momentum", None)),
    "doubled": lambda c, stride, affine: Doubled() if stride == 1 else
    operations.FactorizedReduce(c, c, affine),
    "affine": lambda c, stride, affine: SepConv(c, 3, stride, True),
    "plain_relu": lambda c, stride, affine: nn.Sequential(
        nn.ReLU(), nn.AvgPool2d(1, stride), nn.Conv2d(c, c, 3, padding=1))}


@pytest.mark.parametrize("names, count", [
    (("sep_conv_7x7", "sep_conv_3x3", "sep_conv_5x5"), 1), (("sep_conv_5x5", "sep_conv_1x1"), 1),
    (("dil_conv_7x7", "dil_conv_3x3", "dilation_3", "dilation_1", "max_pool_5x5"), 3),
    (("sep_conv_9x9", "sep_conv_3x3", "dil_conv_3x3"), 2), (("sep_conv_1x1",), 1),
    ((*SEPARATE, "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3"), 9)])
def test_own_operations_are_computed_in_groups_or_as_they_are(names, count, monkeypatch):
    """Separable ones in as many groups as differ in more than the size of their
    kernels."""
    for name, operation in {**GROUPED, **SEPARATE}.items():
        monkeypatch.setitem(operations.OPS, name, operation)
    plain = supernet(2, 10, 3, 2, primitives=names)
    for size in (8, 7):
        fast = assert_accelerated_equals(plain, *batch(size))
    for group in fast.cells[0].groups:
        assert len(group.different) == count
        assert [names[column] for columns, op in group.different for column in columns
                if type(op) is groups.Separate] == [name for name in names if name in SEPARATE]
    for sizes in [op.halves[0].depthwise for op in operations_of(fast, groups.Separables)]:
        kernel_sizes = [copies[0].kernel_size[0] for copies in sizes]
        assert kernel_sizes == sorted(kernel_sizes)


def test_cells_of_which_one_edge_is_another():
    """With another operation the others stay in groups; an edited edge makes its cell
    plain."""
    plain = supernet(2, 10, 3, 2)
    plain.cells[0].edges[1].operations[3] = halved(SepConv)(2, 3, 1, False).double()
    plain.cells[0].edges[3].operations[4][1][3].eps = 0.1
    plain.cells[1].edges[1].__class__ = halved(model_search.MixedOperation)
    plain.cells[2].edges[0].operations[0][0].register_forward_hook(halve)
    fast = assert_accelerated_equals(plain, *batch(8))
    assert len(operations_of(fast, groups.Separate)) == 3
    assert [bool(cell.groups) for cell in fast.cells] == [True, False, True]


# ---------------------------------------------------------------- derived networks

def cifar(genotype, drop_path_on):
    network = model_eval.NetworkCIFAR(genotype, 4, 10, 4)
    network.drop_path_prob, network.drop_path_on = 0.3, drop_path_on
    return network


def chain(squeeze_and_swish):
    genotype = s2.ChainGenotype([*s2.FairNAS_A.layers[:3], ("mb3_k3", "mb6_k5", "skip_connect"),
                                 ("skip_connect",), *s2.FairNAS_A.layers[5:]])
    return s2.NetworkS2(genotype, 10, 0.2, 0.1, squeeze=squeeze_and_swish,
                        h_swish=squeeze_and_swish, image_size=16)


EMPTY_NODES = Genotype([Edge("sep_conv_3x3", 3, 1)], [Edge("skip_connect", 2, 0)])


@pytest.mark.parametrize("make, size, options", [
    (lambda: cifar(genotypes.FairDARTS_a, "edge"), 8, {}),
    (lambda: cifar(genotypes.PC_DARTS, "node"), 9, dict(recompute=True)),
    (lambda: cifar(EMPTY_NODES, "node"), 8, {}),
    (lambda: cifar(EMPTY_NODES, "edge"), 8, dict(recompute=True)),
    *[(lambda: model_eval.NetworkImageNet(genotypes.FairDARTS_a, 4, 10, 4), size,
       dict(contiguous=size == 64)) for size in (65, 64)],
    (lambda: chain(False), 8, {}), (lambda: chain(True), 9, dict(recompute=True))])
def test_accelerated_derived_network_equals_the_plain_one(make, size, options):
    torch.manual_seed(0)
    assert_accelerated_equals(make().double(), *batch(size, 4), **options)


# ---------------------------------------------------------------- steps of a search

def step(network, architect, sgd, images, labels, unrolled):
    """A two-level step."""
    training = (images.flip(3), labels.flip(0))
    architect.step(images, labels, *((*training, sgd) if unrolled else ()))
    sgd.zero_grad()
    with frozen(network.alphas):
        F.cross_entropy(network(training[0]), training[1]).backward()
    sgd.step()


@pytest.mark.parametrize("make, unrolled", [
    *[(make, unrolled) for make in (lambda: supernet(2, 10, 3, 2), supernet_of_edges)
      for unrolled in (False, True)],
    (supernet_s2, False), pytest.param(supernet_s2, True, marks=pytest.mark.slow)])
def test_steps_of_a_search_are_the_same(make, unrolled):
    """With and without recompute; of the second step SGD has a velocity."""
    plain, (images, labels), values = make(), batch(8, 4), []
    for network in [plain, *(accelerate(copy.deepcopy(plain), again) for again in (False, True))]:
        architect, sgd = Architect(network, 0.01), torch.optim.SGD(network.weights(), 0.01, 0.9)
        for _ in range(2):
            step(network, architect, sgd, images, labels, unrolled)
        values.append({name: value.detach() for name, value in network.state_dict().items()
                       if value.is_floating_point()})
    for found in values[1:]:  # finite differences divide rounding by eps
        assert_close(found, values[0], 1e-7 if unrolled else 1e-9)


# ---------------------------------------------------------------- an accelerated network is one

NETWORKS = {
    "supernet": lambda: supernet(2, 10, 3, 2),
    "derived": lambda: model_eval.NetworkCIFAR(genotypes.FairDARTS_a, 2, 10, 3).double(),
    "supernet_s2": supernet_s2,
    "chain": lambda: shortened(
        s2.NetworkS2(s2.FairNAS_A, 10, 0, 0.1, image_size=16)).double()}


@pytest.mark.parametrize("name", NETWORKS)
def test_copies_compute_with_their_own_weights_and_state_dicts_load_each_way(name):
    """No parameter, buffer or module is new, and all keep their names and order."""
    plain, fast, (images, labels) = NETWORKS[name](), NETWORKS[name](), batch(8, 4)
    parameters = list(fast.parameters())
    assert accelerate(fast) is fast
    assert all(a is b for a, b in zip(parameters, fast.parameters(), strict=True))
    for kind in (nn.Module.named_modules, nn.Module.named_buffers):
        assert [name for name, _ in kind(fast)] == [name for name, _ in kind(plain)]
    before = {key: value.clone() for key, value in fast.state_dict().items()}
    for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert [type(module) for module in other.modules()] == [
            type(module) for module in fast.modules()]
        other.load_state_dict(drawn(plain).state_dict())
        assert_close(results(other, images, labels), results(plain, images, labels))
        plain.load_state_dict(drawn(other).state_dict())
        with torch.no_grad():
            assert_close({"": first_of(other(images))}, {"": first_of(plain(images))})
    assert all(torch.equal(value, before[key]) for key, value in fast.state_dict().items())


@pytest.mark.parametrize("name", NETWORKS)
def test_accelerate_again(name):
    """To recompute, which changes no result, and back; hooks of one's own stay."""
    plain, (images, labels), seen = NETWORKS[name](), batch(7, 4), []
    fast = copy.deepcopy(plain)
    stem_of(fast).register_forward_hook(lambda *_: seen.append(0))
    accelerate(accelerate(fast), recompute=True)
    sections = fast.cells if hasattr(fast, "cells") else fast.layers
    assert all(section.recompute for section in sections)
    assert_close(results(fast, images, labels, 2), results(plain, images, labels, 2))
    assert len(stem_of(fast)._forward_hooks) == 2 and seen == [0] * 3
    accelerate(fast)
    assert len(stem_of(fast)._forward_hooks) == 2 and not stem_of(fast)(images).is_contiguous()
    assert not any(section.recompute for section in sections)


@pytest.mark.parametrize("name, share, recomputed_share", [
    ("supernet", 0.75, 0.1), ("derived", 0.95, 0.7), ("supernet_s2", 1.01, 0.1),
    ("chain", 1.01, 0.21)])
def test_less_is_kept_for_the_backward_pass(name, share, recomputed_share):
    plain, (images, _) = NETWORKS[name](), batch(8, 32)
    fast, again = (accelerate(copy.deepcopy(plain), again) for again in (False, True))
    kept, fast_kept, again_kept = [
        kept_bytes(lambda: network(images)) for network in (plain, fast, again)]
    assert fast_kept < share * kept and again_kept < recomputed_share * kept


# ---------------------------------------------------------------- kernels and layers

@pytest.mark.parametrize("kernel, stride, size, small, copies, dilation", [
    (3, 1, 8, 0, 1, 1), (3, 2, 7, 0, 2, 1), (5, 1, 9, 0, 1, 1), (5, 2, 8, 0, 3, 1),
    (5, 1, 7, 6, 2, 1), (5, 2, 15, 6, 2, 1), (5, 1, 2, 0, 1, 1), (5, 2, 3, 3, 2, 1),
    (3, 1, 1, 0, 2, 1), (5, 1, 1, 6, 2, 1), (7, 1, 9, 0, 1, 1), (7, 2, 8, 0, 1, 1),
    (7, 1, 3, 0, 2, 1), (9, 1, 9, 0, 1, 1), (1, 1, 8, 0, 2, 1), (3, 1, 8, 0, 1, 2),
    (5, 1, 8, 0, 2, 2), (5, 1, 7, 0, 1, 2), (5, 2, 8, 0, 1, 2), (3, 2, 7, 0, 1, 2),
    (3, 1, 9, 0, 1, 3), (3, 2, 9, 0, 2, 3), (7, 1, 8, 6, 2, 1), (7, 1, 1, 6, 2, 1),
    (7, 2, 1, 0, 2, 1)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_depthwise_equals_conv2d(kernel, stride, size, small, copies, dilation, memory_format):
    x = torch.randn(3, 6 if copies == 1 or small == 6 else 3, size, size, dtype=torch.float64)
    x = x.contiguous(memory_format=memory_format).requires_grad_()
    weight, border = torch.randn(copies * x.shape[1], 1, kernel, kernel, dtype=torch.float64), (
        kernel - 3) // 2
    inner = torch.ones_like(weight)  # but for the border of the small ones
    if small:
        inner[:small] = F.pad(torch.ones(1, 3, 3), [border] * 4)
    weight = (weight * inner).requires_grad_()
    values = []
    for y in (kernels.depthwise(x, weight, stride, dilation, small),
              F.conv2d(torch.cat([x] * copies, 1), weight, None, stride,
                       dilation * (kernel // 2), dilation, len(weight))):
        dx, dweight = torch.autograd.grad(y.square().sum(), (x, weight))
        values.append({"y": y, "dx": dx, "dweight": dweight * inner})
    assert_close(*values)


def relu():
    module = nn.ReLU()
    layers.replace(module)
    assert type(module) is layers.ReLU
    return module


def test_relu_is_computed_once_for_all_and_anew_after_a_change():
    leaf = torch.randn(3, requires_grad=True)
    one, other, x = relu(), relu(), leaf * 1
    assert one(x) is other(x) and torch.equal(one(x), x.clamp(min=0))
    (one(x).sum() + other(x).sum()).backward()
    assert torch.equal(leaf.grad, 2.0 * (leaf > 0))
    assert one(leaf) is not one(leaf) and not hasattr(leaf, "rectified")
    x = leaf * 1
    for differentiable in (False, True, False):
        with torch.set_grad_enabled(differentiable):
            assert one(x).requires_grad == differentiable
    x = torch.tensor([-1.0, 1.0]) * 1
    assert one(x).tolist() == [0, 1]
    x.mul_(-2)
    assert one(x).tolist() == [2, 0]
    one(x).add_(1)
    assert one(x).tolist() == [2, 0]
    view = x.view_as(x)
    one(view)
    x.add_(5)
    assert one(view).tolist() == [7, 3]
    with torch.inference_mode():
        assert one(x).is_inference()
        kept = torch.tensor([-1.0]) * 1
        assert one(kept).tolist() == [0]
    assert one(kept).tolist() == [0]
    program = torch.export.export(nn.Sequential(one, other), (leaf,))
    assert torch.equal(program.module()(leaf), leaf.relu()) and not hasattr(leaf, "rectified")


class OwnReLU(nn.ReLU):
    pass


def test_other_layers_stay():
    hooked, own = nn.ReLU(), nn.ReLU()
    hooked.register_forward_hook(halve)
    own.forward = torch.sin
    for layer in [
        OwnReLU(), nn.ReLU(inplace=True), nn.ReLU6(), hooked, own, nn.BatchNorm2d(3, momentum=None),
        nn.BatchNorm2d(3, track_running_stats=False), nn.SyncBatchNorm(3), nn.Conv2d(3, 3, 3),
        nn.Conv2d(3, 3, 3, padding=1, groups=3),
        nn.Conv2d(3, 6, 3, padding=1, groups=3, bias=False),
        nn.Conv2d(3, 3, 3, groups=3, bias=False), nn.Conv2d(3, 3, 9, 1, 4, groups=3, bias=False),
        nn.Conv2d(3, 3, 3, (1, 2), 1, groups=3, bias=False),
        nn.Conv2d(3, 3, 3, padding="same", groups=3, bias=False),
        nn.Conv2d(3, 3, (3, 5), padding=(1, 2), groups=3, bias=False),
        nn.Conv2d(3, 3, 3, 1, 1, groups=3, bias=False, padding_mode="reflect")]:
        before = type(layer)
        layers.replace(layer)
        assert type(layer) is before, layer


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_depthwise_convolutions_heed_autocast_and_have_no_second_gradients(dtype):
    """Outputs of 16 bits, gradients of float32, near those without."""
    x, weight = (torch.randn(shape, requires_grad=True) for shape in ((4, 6, 8, 8), (6, 1, 3, 3)))
    exact = torch.autograd.grad(kernels.depthwise(x, weight).square().sum(), (x, weight))
    with torch.autocast("cpu", dtype):
        y = kernels.depthwise(x, weight)
    found = torch.autograd.grad(y.float().square().sum(), (x, weight), create_graph=True)
    assert y.dtype == dtype
    for one, other in zip(found, exact):
        assert one.dtype == torch.float32 and (one - other).norm() < 0.02 * other.norm()
    with pytest.raises(RuntimeError, match="differentiate twice"):
        found[1].sum().backward()
