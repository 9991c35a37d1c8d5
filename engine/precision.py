"""Gradients in 16 bits and over several processes: from a loss to its step."""
import functools

import torch

from engine import processes


class Precision:
    """With `amp` the forward pass of `network` computes in 16 bits: in bfloat16, or
    where a GPU has none in float16, whose small gradients .scaler keeps above zero. All
    else is float32. Gradients are the means over all processes."""

    def __init__(self, device, amp, network):
        half = amp and device.type == "cuda" and not torch.cuda.is_bf16_supported(
            including_emulation=False)
        self.scaler = torch.amp.GradScaler(device.type, enabled=half)
        if amp:
            enter_autocast(network, device.type, torch.float16 if half else torch.bfloat16)

    def backward(self, loss, sgd, last=True):
        """Adds the gradients of `loss`. last: of the batches of one step; then they are
        averaged over processes, and no longer scaled."""
        self.scaler.scale(loss).backward()
        if last:
            processes.average_gradients([w for group in sgd.param_groups for w in group["params"]])
            self.scaler.unscale_(sgd)

    def step(self, sgd):
        """A step of the optimizer; left out by a scaler if gradients are not finite."""
        self.scaler.step(sgd)
        self.scaler.update()

    def gradients(self, loss, inputs):
        """As fair_darts.gradients; NaN where float16 has overflowed."""
        scale = self.scaler.get_scale() if self.scaler.is_enabled() else 1.0
        slopes = torch.autograd.grad(loss * scale, inputs, materialize_grads=True)
        return [slope / scale for slope in processes.average(slopes)]

    def guard(self, architect):
        """Returns the architect, whose steps are left out as the weights' are."""
        if self.scaler.is_enabled():
            architect.descend = functools.partial(self.descend_if_finite, architect.descend)
        return architect

    @staticmethod
    def descend_if_finite(descend, slopes):
        if all(slope.isfinite().all() for slope in slopes):
            descend(slopes)


# ---------------------------------------------------------------- autocast, by hooks

def enter_autocast(network, device_type, dtype):
    """Let each forward pass of `network` run in autocast, and its logits be float32."""
    contexts = []

    def enter(module, inputs):
        contexts.append(torch.autocast(device_type, dtype))
        contexts[-1].__enter__()

    def leave(module, inputs, outputs):
        contexts.pop().__exit__(None, None, None)
        if isinstance(outputs, tuple):
            return tuple(None if output is None else output.float() for output in outputs)
        return outputs if outputs is None else outputs.float()

    network.register_forward_pre_hook(enter)
    network.register_forward_hook(leave, always_call=True)
