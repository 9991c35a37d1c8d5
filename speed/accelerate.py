"""accelerate: the same function of the same parameters, several times as fast.

It gives built modules the classes of this package. A network that it was not called for
is the plain form that tests and benchmark compare with, and whose gradients have
gradients.
"""
import torch
import torch.nn as nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import model_eval
import model_search
from spaces import nasbench201, s2
from speed import graphs, layers
from speed.groups import GroupedCell
from speed.kernels import format_of, keep_freed_memory


def accelerate(network, recompute=False, use_graphs=False):
    """Returns the network of a space, for searching or derived, with the same
    parameters and state_dict.

    recompute: cells (in S2 layers) compute their activations again in backward passes.
    use_graphs: training passes as CUDA graphs, see graphs.py. May be called again, to
    change these. Forward hooks inside of cells, and other changes of modules, come
    first: what they are attached to is then computed as it is.
    """
    if layers.plain_class(network) in NETWORKS:
        network.__class__ = NETWORKS[layers.plain_class(network)]
    graphs.GRAPHS.pop(network, None)
    if use_graphs:
        graphs.use(network, recompute)
    # without graphs a derived network on a GPU waits for launches: there only what saves some
    launches = (not (use_graphs or recompute or hasattr(network, "alphas"))
                and next(network.parameters()).is_cuda)
    for module in network.modules():
        layers.replace(module, launches)
    if launches:
        return network
    for part in network.cells if hasattr(network, "cells") else network.layers:
        if layers.plain_class(part) in CLASSES:
            part.__class__, part.recompute = CLASSES[layers.plain_class(part)], recompute
            if isinstance(part, GroupedCell):
                part.group()
    stem = network.stem_0 if hasattr(network, "stem_0") else network.stem
    if arrange not in stem._forward_hooks.values():
        stem.register_forward_hook(arrange)
    if all(w.device.type == "cpu" for w in network.parameters()):
        keep_freed_memory()
    return network


def arrange(stem, inputs, output):
    """A stem's forward hook. What follows keeps the memory format of its output."""
    if output.device.type == "mps":  # there batch norm's gradient is wrong in channels_last
        return output.contiguous()
    return output.contiguous(memory_format=torch.channels_last)


# ---------------------------------------------------------------- the parts of a network

class Recomputed:
    """Of a module that, with .recompute, keeps its inputs alone for the backward."""

    def forward(self, *inputs):
        if not (self.recompute and self.training and torch.is_grad_enabled()):
            return super().forward(*inputs)
        return checkpoint(Body(self, super().forward).run, *inputs, use_reentrant=False)


class Body(nn.Module):
    """A forward pass of a module, without its hooks, that can be run again as it was:
    by the backward pass the module may have other weights, and its statistics have
    moved."""

    def __init__(self, module, compute):
        super().__init__()
        self.module, self.compute, self.tensors = module, compute, None

    def run(self, *inputs):
        if self.tensors is not None:
            return functional_call(self, self.tensors, inputs)
        self.tensors = {**dict(self.named_parameters()),
                        **{name: buffer.clone() for name, buffer in self.named_buffers()}}
        return self(*inputs)

    def forward(self, *inputs):
        # views, as what kernels.rectified keeps on a tensor is not to enter or to leave
        return self.compute(*(x.view_as(x) if torch.is_tensor(x) else x for x in inputs))


class SearchedCell(Recomputed, GroupedCell):
    pass


class DerivedCell(Recomputed, model_eval.Cell):
    def sum_of_edges(self, *inputs):
        """Its gradient will be dense, though it is a part of that of the cell's output:
        then the backward pass of a batch norm is three times as fast."""
        y = super().sum_of_edges(*inputs)
        if y.requires_grad and not torch.compiler.is_compiling():
            memory_format = format_of(y)
            y.register_hook(lambda gradient: gradient.contiguous(memory_format=memory_format))
        return y


def subclasses(forward, *classes):
    """{class: its subclass Fast..., whose forward pass is that of `forward`}"""
    made = {plain: type("Fast" + plain.__name__, (forward, plain), {"__module__": __name__})
            for plain in classes}
    globals().update({fast.__name__: fast for fast in made.values()})  # there pickle looks
    return made


# groups are no faster for choices of a layer of S2, 1.07 to 1.25 times for edges of NAS-Bench-201
CLASSES = {model_search.Cell: SearchedCell, model_eval.Cell: DerivedCell,
           **subclasses(Recomputed, model_search.MixedOperation, s2.ChainLayer,
                        nasbench201.SearchedCell, nasbench201.DerivedCell)}
NETWORKS = subclasses(graphs.Graphed, model_search.Network, model_eval.NetworkCIFAR,
                      model_eval.NetworkImageNet, s2.SupernetS2, s2.NetworkS2,
                      nasbench201.SupernetNB201, nasbench201.NetworkNB201)
