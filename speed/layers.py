"""Single layers that accelerated networks have in place of PyTorch's, and what tells
which modules a faster form may stand for."""
import torch.nn as nn
import torch.nn.functional as F

from speed.kernels import depthwise, rectified


class ReLU(nn.ReLU):
    """Computed once for all that take the same tensor."""

    def forward(self, x):
        return rectified(x)


class BatchNorm2d(nn.BatchNorm2d):
    """Does not count its batches, which nobody reads; state_dict still has a count."""

    def forward(self, x):
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias,
                            self.training, self.momentum, self.eps)


class DepthwiseConv2d(nn.Conv2d):
    """One filter a channel, with a faster gradient."""

    def forward(self, x):
        return depthwise(x, self.weight, self.stride[0], self.dilation[0])


def replace(layer, launches=False):
    """Gives a layer that has a faster form the class of it. launches: only if that form
    launches fewer kernels."""
    if is_layer(layer, nn.ReLU) and not layer.inplace:
        layer.__class__ = ReLU
    elif is_batch_norm(layer):
        layer.__class__ = BatchNorm2d
    elif not launches and is_depthwise(layer) and 3 <= layer.kernel_size[0] <= 7:
        layer.__class__ = DepthwiseConv2d


# ---------------------------------------------------------------- what a module is

def plain_class(module):
    """The class of a module before it was accelerated."""
    return next(c for c in type(module).__mro__ if c.__module__.split(".")[0] != "speed")


def is_unchanged(module):
    """Whether calling it is calling the forward of its class, and nothing else."""
    return not ("forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks
                or module._backward_hooks or module._backward_pre_hooks)


def is_layer(module, layer):
    """Whether it is exactly of the class `layer`, unchanged."""
    return plain_class(module) is layer and is_unchanged(module)


def is_sequence(module, length):
    """Whether it computes `length` modules in turn, whatever its class is called."""
    return (isinstance(module, nn.Sequential) and len(module) == length
            and type(module).forward is nn.Sequential.forward and is_unchanged(module))


def is_depthwise(module):
    """Whether it is a depthwise convolution that kernels.depthwise can compute."""
    if not is_layer(module, nn.Conv2d):
        return False
    (kernel, width), (stride, _), (dilation, _) = (
        module.kernel_size, module.stride, module.dilation)
    return (module.in_channels == module.out_channels == module.groups
            and kernel == width and kernel % 2 == 1 and module.stride == (stride, stride)
            and module.dilation == (dilation, dilation)
            and module.padding == (dilation * (kernel // 2),) * 2 and is_simple(module))


def is_pointwise(module):
    """Whether it is a plain 1x1 convolution."""
    return (is_layer(module, nn.Conv2d) and module.kernel_size == module.stride == (1, 1)
            and module.padding == (0, 0) and module.groups == 1 and is_simple(module))


def is_simple(convolution):
    return convolution.bias is None and convolution.padding_mode == "zeros"


def is_batch_norm(module):
    """Whether it is a batch norm whose running statistics move by its momentum."""
    return (is_layer(module, nn.BatchNorm2d) and module.track_running_stats
            and module.momentum is not None)


def is_plain_norm(module):
    """Whether it is such a batch norm without scale and shift."""
    return is_batch_norm(module) and not module.affine
