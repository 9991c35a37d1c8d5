"""Gradients in 16 bits and over several processes: from a loss to its step."""
import warnings
from contextlib import contextmanager

import torch

from engine import processes

IN_A_ROW = 20  # steps that float16 may leave out before the run says so


class Precision:
    """With `amp` the forward pass of `network` computes in 16 bits: in bfloat16, or
    where a GPU has none in float16, whose small gradients .scaler keeps above zero. All
    else is float32. Gradients are the means over all processes. Nothing here waits for
    the device but `trouble`."""

    def __init__(self, device, amp, network):
        half = amp and device.type == "cuda" and not torch.cuda.is_bf16_supported(
            including_emulation=False)
        self.scaler = torch.amp.GradScaler(device.type, enabled=half)
        self.one, self.left_out = torch.ones((), device=device), {}
        if amp:
            enter_autocast(network, device.type, torch.float16 if half else torch.bfloat16)

    def backward(self, loss, sgd, last=True):
        """Adds the gradients of `loss`. last: of the batches of one step; then they are
        averaged over processes, and no longer scaled."""
        self.scaler.scale(loss).backward()
        if last:
            processes.average_gradients([w for group in sgd.param_groups for w in group["params"]])
            self.scaler.unscale_(sgd)

    def gradients(self, loss, inputs):
        """As fair_darts.gradients, but scaled; `step` takes the scale out."""
        grads = torch.autograd.grad(self.scaler.scale(loss), inputs, materialize_grads=True)
        return processes.average(grads)

    def step(self, optimizer):
        """A step of a fused optimizer. Where a gradient is not finite, the scaler
        leaves it out and halves the scale."""
        if not self.scaler.is_enabled():
            optimizer.step()
            return
        if isinstance(optimizer, torch.optim.SGD) and not optimizer.state:
            # a fused step that is left out would keep a momentum that was never written
            for weight in optimizer.param_groups[0]["params"]:
                optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        before = self.scaler.scale(self.one)
        self.scaler.step(optimizer)
        self.scaler.update()
        fell = self.scaler.scale(self.one) < before
        self.left_out[optimizer] = (self.left_out.get(optimizer, 0) + 1) * fell

    def trouble(self):
        """What there is to say of steps that are left out, or None."""
        if any(count >= IN_A_ROW for count in self.left_out.values()):
            return (f"the last {IN_A_ROW} steps or more were left out, for gradients overflow in "
                    f"float16 even at a loss scale of {self.scaler.get_scale():g}: lower the "
                    "rates, or leave --amp out")

    def state_dict(self):
        return self.scaler.state_dict()  # {} but in float16

    def load_state_dict(self, state):
        if bool(state) == self.scaler.is_enabled():
            self.scaler.load_state_dict(state)
        else:
            former, now = ("float16", "bfloat16") if state else ("bfloat16", "float16")
            warnings.warn(f"the run began with --amp in {former}, this device has {now}: it goes "
                          "on in that, not bit for bit")


@contextmanager
def full_float32(needed=True):
    """Within it convolutions on a GPU are not in TF32, if it is `needed`: in TF32 the
    finite difference of the unrolled step is 58 % off."""
    former = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = former and not needed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = former


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
