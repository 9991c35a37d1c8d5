"""Training passes of a network as CUDA graphs: thousands of kernels launched as one.

One is recorded for each set of parameters that need gradients (alpha's step, the
weights' step). Eager are passes in eval mode, without gradients, with gates or weights
from outside. A backward pass must come before the next forward pass.
"""
import gc
import warnings
import weakref

import torch
from torch._utils import _unflatten_dense_tensors as views

from speed.layers import plain_class

DEVICE = "cuda"
GRAPHS = weakref.WeakKeyDictionary()  # not in the network, or copies would replay its graphs


def use(network, recompute=False):
    """From here on a network of a class of Graphed replays its passes, if it can."""
    varies = any(getattr(module, "varies", False) for module in network.modules())
    if varies or recompute or next(network.parameters()).device.type != DEVICE:
        warnings.warn("goes on without CUDA graphs: no GPU, --recompute, or disturbed skips")
        return
    GRAPHS[network] = Graphs(network)


class Graphed:
    """Of a network: its forward pass, replayed where that can be."""

    def forward(self, images, *gates, **named):
        graphs, recording = GRAPHS.get(self), None
        if graphs and self.training and torch.is_grad_enabled() and not (gates or named):
            recording = graphs.recording(self, images)
        if recording is None:
            return super().forward(images, *gates, **named)
        weights = [w for w in self.parameters() if w.requires_grad]
        outputs = Replay.apply(graphs, recording, images, *weights)
        return outputs[0] if recording.single else (*outputs, None)[:2]


class Graphs:
    """The recordings of a network, by the form of a batch and what needs gradients."""

    def __init__(self, network):
        self.modules = list(network.modules())[1:]  # but for the network, the key in GRAPHS
        self.tensors = [named for module in (network, *self.modules)
                        for named in (module._parameters, module._buffers)]
        self.recordings, self.baked, self.passes = {}, None, 0
        self.addresses, _ = self.places()

    def places(self):
        """(addresses, whether a gradient is needed) of all parameters and buffers"""
        tensors = [t for named in self.tensors for t in named.values() if t is not None]
        return [t.data_ptr() for t in tensors], tuple(t.requires_grad for t in tensors)

    def recording(self, network, images):
        """The Recording for this pass, which may be made for it; None in eager mode."""
        (addresses, differentiable), device = self.places(), images.device.type
        if addresses != self.addresses or images.requires_grad or device != DEVICE:
            return None
        baked = ([module.training for module in self.modules], torch.is_autocast_enabled(device),
                 torch.get_autocast_dtype(device), torch.backends.cudnn.allow_tf32,
                 [getattr(network, name, None) for name in ("drop_path_prob", "drop_path_on")])
        key = images.shape, images.dtype, differentiable
        if baked != self.baked:  # all go at once, for they share memory
            self.recordings, self.baked = {}, baked
            self.pool, self.stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()
        try:
            if key not in self.recordings:
                self.recordings[key] = Recording(network, images, self)
        except RuntimeError as error:  # it waits for the host, cannot be captured, has no memory
            del GRAPHS[network]
            warnings.warn("goes on without CUDA graphs: " + str(error).strip().split("\n")[0][:150])
        return self.recordings.get(key)


class Recording:
    """A captured pass: from .images to .outputs, from .gradients to .flat, those of the
    weights. What making it moves, statistics and random numbers, is put back."""

    def __init__(self, network, images, graphs):
        weights = [w for w in network.parameters() if w.requires_grad]
        self.flat = torch.cat([torch.zeros_like(w).flatten() for w in weights])
        self.parts, self.images = views(self.flat, weights), images.detach().clone()
        buffers, random = list(network.buffers()), torch.cuda.get_rng_state(images.device)
        kept, stream = [buffer.clone() for buffer in buffers], torch.cuda.current_stream()
        torch.set_autocast_cache_enabled(False)  # or weights cast before would be replayed
        try:
            graphs.stream.wait_stream(stream)
            with torch.cuda.stream(graphs.stream):
                warnings.filterwarnings("ignore", "Synchronization debug mode")
                for mode in ("error", "default", "default"):  # "error": where the host would wait
                    torch.cuda.set_sync_debug_mode(mode)
                    self.forward(network)
                    self.gradients = [torch.zeros_like(output) for output in self.outputs]
                    self.backward(weights)
            gc.collect()
            gc.disable()
            self.replay_forward = capture(lambda: self.forward(network), graphs)
            self.replay_backward = capture(lambda: self.backward(weights), graphs)
            self.outputs = [output.detach() for output in self.outputs]
        finally:
            gc.enable()
            torch.cuda.set_sync_debug_mode("default")
            torch.cuda.set_stream(stream)  # a capture that fails leaves its own
            torch.set_autocast_cache_enabled(True)
            stream.wait_stream(graphs.stream)
            torch._foreach_copy_(buffers, kept)
            torch.cuda.set_rng_state(random, images.device)

    def forward(self, network):
        outputs = plain_class(network).forward(network, self.images)
        self.single = torch.is_tensor(outputs)
        self.outputs = [outputs] if self.single else [o for o in outputs if o is not None]

    def backward(self, weights):
        torch._foreach_copy_(self.parts, torch.autograd.grad(
            self.outputs, weights, self.gradients, materialize_grads=True))


def capture(function, graphs):
    """Record the kernels that `function` launches. Returns what replays them."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, graphs.pool, graphs.stream, "thread_local"):
        function()
    return graph.replay


class Replay(torch.autograd.Function):
    """A recorded pass, as a function of the images and the weights."""

    @staticmethod
    def forward(ctx, graphs, recording, images, *weights):
        graphs.passes += 1
        ctx.graphs, ctx.recording, ctx.number = graphs, recording, graphs.passes
        recording.images.copy_(images)
        recording.replay_forward()
        return tuple(output.clone() for output in recording.outputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *gradients):
        recording, ctx.recording = ctx.recording, None  # logits that live on do not keep it
        if recording is None or ctx.number != ctx.graphs.passes:
            raise RuntimeError("a later forward pass, or one before it, has overwritten what this "
                               "backward pass needs")
        torch._foreach_copy_(recording.gradients, list(gradients))
        recording.replay_backward()
        # one copy for all: .grad takes over what it is given, and the next replay writes to .flat
        return None, None, None, *views(recording.flat.clone(), recording.parts)
