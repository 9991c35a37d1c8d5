"""One run on several processes, started by torchrun: every rank computes its part of each batch.

    torchrun --nproc-per-node=4 train_search.py --dataset cifar10

All ranks hold the same weights and alphas and make the same random draws, of which each uses its
part. Gradients are averaged where they leave the code. There is no DistributedDataParallel: its
hooks do not fire for torch.autograd.grad, which alpha's steps use. In one process, every function
here returns what it is given.
"""
import atexit
import datetime
import os
from contextlib import contextmanager

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F

TIMEOUT = datetime.timedelta(minutes=10)  # after which a rank that does not answer is given up
_alone = False  # whether batch norm is computed on each rank's own pictures


def size():
    return int(os.environ.get("WORLD_SIZE", 1))


def rank():
    return int(os.environ.get("RANK", 0))


def join(device):
    """Wait for the other processes, once: NCCL between GPUs, gloo for all else."""
    if size() > 1 and not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=TIMEOUT)
        atexit.register(dist.destroy_process_group)


def together(function, *arguments):
    """Call a function of torch.distributed, if there are several processes. Raises
    ConnectionError."""
    if size() > 1:
        try:
            function(*arguments)
        except RuntimeError as error:
            fault = str(error).strip().split("\n")[0][:200]
            raise ConnectionError(f"rank {rank()} has lost another one ({fault})") from None


def total(tensor):
    """The sum over ranks, in place."""
    together(dist.all_reduce, tensor)
    return tensor


def largest(number):
    """Of the whole numbers that the ranks give."""
    tensor = torch.tensor(number)
    together(dist.all_reduce, tensor, dist.ReduceOp.MAX)
    return int(tensor)


def average(tensors):
    """The means over ranks of a list of tensors, one flat sum for all."""
    if size() == 1:
        return tensors
    flat = total(torch.cat([t.flatten() for t in tensors])) / size()
    return [part.view_as(t) for part, t in zip(flat.split([t.numel() for t in tensors]), tensors)]


def average_gradients(parameters):
    """Replace each .grad by its mean over ranks."""
    if size() > 1:
        parameters = [p for p in parameters if p.grad is not None]
        for parameter, gradient in zip(parameters, average([p.grad for p in parameters])):
            parameter.grad = gradient


def average_statistics(network):
    """Replace the running statistics of batch norms, of each rank's pictures, by their means."""
    if size() > 1:
        statistics = [b for b in network.buffers() if b.is_floating_point()]
        torch._foreach_copy_(statistics, average(statistics))


def mine(batch):
    """This rank's part of what is given for all ranks, along the first dimension."""
    return batch.chunk(size())[rank()]


def shared(value=None):
    """What rank 0 gives, on every rank."""
    values = [value]
    together(dist.broadcast_object_list, values)
    return values[0]


@contextmanager
def first():
    """Rank 0 does what is within it before the others do: it may download."""
    if rank() > 0:
        together(dist.barrier)
    yield
    if rank() == 0:
        together(dist.barrier)


# ---------------------------------------------------------------- --sync_bn

class Mean(torch.autograd.Function):
    """The mean over ranks of a tensor; every rank's loss has its share in the gradient."""

    @staticmethod
    def forward(ctx, x):
        return total(x.clone()) / size()

    @staticmethod
    def backward(ctx, gradient):
        return total(gradient.clone()) / size()


class SyncBatchNorm(nn.BatchNorm2d):
    """Batch norm by the statistics of all ranks' pictures."""

    def forward(self, x):
        return batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias,
                          self.training, self.momentum, self.eps)


def synchronize(network):
    """Make every batch norm of `network` a SyncBatchNorm."""
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncBatchNorm


@contextmanager
def alone():
    """Within it, batch norm is of each rank's own pictures: ranks may differ in what they do."""
    global _alone
    _alone = True
    try:
        yield
    finally:
        _alone = False


def batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps):
    """F.batch_norm with mean and variance over all ranks, through which gradients pass."""
    if not training or _alone or size() == 1:
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    values = x if x.dtype == torch.float64 else x.float()  # (B, C, H, W)
    mean = Mean.apply(values.mean((0, 2, 3)))
    centred = values - mean[:, None, None]
    var = Mean.apply((centred ** 2).mean((0, 2, 3)))
    count = size() * values.numel() / len(mean)
    with torch.no_grad():
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(var * count / (count - 1), momentum)
    scale = (var + eps).rsqrt() if weight is None else (var + eps).rsqrt() * weight
    y = centred * scale[:, None, None]
    return (y if bias is None else y + bias[:, None, None]).to(x.dtype)
