"""One run on several processes, started by torchrun: every rank computes its part of
each batch.

    torchrun --nproc-per-node=4 train_search.py --dataset cifar10

All ranks hold the same weights and alphas, and average their gradients, which
DistributedDataParallel would not do for the torch.autograd.grad of alpha's steps. Batch
norm is of each rank's own pictures, its running statistics are averaged; drop path and
noise on skips every rank draws for itself. In one process every function here gives
back what it is given.
"""
import atexit
import datetime
import os
from contextlib import contextmanager

import torch
import torch.distributed as dist

TIMEOUT = datetime.timedelta(minutes=10)  # after which a rank that does not answer is given up


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
    """Replace batch norms' running statistics, which differ by rank, by their means."""
    if size() > 1:
        statistics = [b for b in network.buffers() if b.is_floating_point()]
        torch._foreach_copy_(statistics, average(statistics))


def local_part(batch):
    """This rank's part of what is given for all ranks, along the first dimension."""
    return batch.chunk(size())[rank()]


def differ():
    """From here on, the ranks draw different random numbers."""
    if size() > 1:
        torch.manual_seed(int(torch.randint(2**62, ())) + rank())


def gather(value):
    """What every rank gives, a list, on every rank."""
    values = [value] * size()
    together(dist.all_gather_object, values, value)
    return values


@contextmanager
def rank_0_first():
    """Rank 0 does what is within it before the others do: it may download."""
    if rank() > 0:
        together(dist.barrier)
    yield
    if rank() == 0:
        together(dist.barrier)
