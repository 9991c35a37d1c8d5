"""One run on disk: what a script does to it step by step, checkpoints, resuming; and the device that it runs on.

A run is a folder:  config.json (settings, command lines, versions, the dataset's fingerprint), log.txt, metrics.csv (a row
an epoch), checkpoint.pt, and the script's own results. Every file is written whole or not at all. One process writes.
"""
import contextlib
import csv
import ctypes
import hashlib
import io
import json
import math
import os
import platform
import shlex
import signal
import sys
import time

import torch
from tqdm import tqdm

from flags import UserError, reason

try:
    import fcntl
except ImportError:  # Windows: there, nobody keeps two processes from writing one run
    fcntl = None

VERSION = 1  # of what a run's files hold; raised when old ones can no longer be read


def choose_device(name="auto"):
    """The torch.device `name`; "auto": CUDA, else MPS (Apple), else the CPU. Raises UserError."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    try:
        device = torch.device(name)
        if available[device.type]:
            torch.empty(0, device=device)
            if device.type == "cpu" and sys.platform == "linux":
                _keep_freed_memory()
            return device
    except (RuntimeError, KeyError):
        pass
    there = ", ".join(kind for kind, there in available.items() if there)
    raise UserError(f"--device {name!r} is not there; this machine has: {there}")


def cosine(epoch, epochs, high, low=0.0):
    """The learning rate of an epoch on half a cosine from `high`, in epoch 0, down to `low`."""
    return low + (high - low) * 0.5 * (1 + math.cos(math.pi * epoch / epochs))


def _keep_freed_memory():
    """Have glibc keep freed memory, which it else returns to the system and gets back page by page at every step."""
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX of malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(trim_threshold, 2 ** 31 - 1)
        mallopt(mmap_max, 0)


class Precision:
    """Where the forward pass computes in 16 bits (`amp`): in bfloat16, or where there is none in float16, whose small
    gradients a scaler keeps above zero. Parameters, gates and losses stay float32."""

    def __init__(self, device, amp):
        self.device, self.amp = device, amp
        half = amp and device.type == "cuda" and not torch.cuda.is_bf16_supported()
        self.dtype = torch.float16 if half else torch.bfloat16
        self.scaler = torch.amp.GradScaler(device.type, enabled=half)
        self.loss_scale = self.scaler.get_scale if half else None

    def autocast(self):
        return torch.autocast(self.device.type, self.dtype, enabled=self.amp)

    def descend(self, loss, optimizer, parameters, largest_norm):
        """A step of `optimizer` on `loss`, the gradients of `parameters` clipped to a norm of `largest_norm`. Returns the
        norm before; 0 where a scaler leaves out steps that are not finite."""
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(parameters, largest_norm)
        self.scaler.step(optimizer)
        self.scaler.update()
        return torch.zeros_like(norm) if self.scaler.is_enabled() else norm


def write_whole(path, content):
    """Write a file whole or not at all. content: text or bytes. Raises OSError."""
    part = path + ".part"
    try:
        with open(part, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(part)
        raise


def read_metrics(folder):
    """The rows of a run's metrics.csv, with numbers, or None where a field is empty. Raises OSError, ValueError."""
    with open(os.path.join(folder, "metrics.csv"), newline="") as file:
        return [{key: float(value) if value else None for key, value in row.items()} for row in csv.DictReader(file)]


class Stopped(Exception):
    """SIGINT or SIGTERM has asked the run to end."""


class Stopping:
    """Within it, SIGINT and SIGTERM are kept in `.signal` until the step in progress is done; a second SIGINT ends the
    process at once. While `.idle`, when nothing is being changed, they raise Stopped."""

    def __enter__(self):
        self.signal, self.idle = None, False
        self.former = {number: signal.signal(number, self.receive) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def receive(self, number, frame):
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
        if self.idle:
            self.idle = False
            raise Stopped

    def __exit__(self, *_):
        for number, handler in self.former.items():
            signal.signal(number, handler)


class Task:
    """What a run does, step by step, and everything that it changes as it goes.

    A subclass has .parts(), {name: part with a state_dict}; .begin(epoch), which sets the rates; .step(), which returns
    the loss, the figures that an epoch averages, and what must be finite beside them; .finish(means), which makes a row
    of metrics and changes nothing; .line(row), which describes it; .save_results(run).
    """

    def __init__(self, settings, steps):
        self.settings, self.steps = settings, steps  # in an epoch
        self.rows, self.done, self.sums, self.seconds = [], 0, 0.0, 0.0  # done, sums, seconds: of the epoch in progress

    def state_dict(self):
        return {"random": torch.get_rng_state(), "rows": self.rows, "done": self.done, "sums": self.sums,
                "seconds": self.seconds, **{name: part.state_dict() for name, part in self.parts().items()}}

    def load_state_dict(self, state):
        for name, part in self.parts().items():
            part.load_state_dict(state[name])
        torch.set_rng_state(state["random"])
        self.rows, self.done, self.sums, self.seconds = (state[key] for key in ("rows", "done", "sums", "seconds"))

    def advance(self):
        """A step, counted and summed up. Returns the loss. Raises UserError where anything is not finite."""
        start = time.monotonic()
        loss, figures, others = self.step()
        if not torch.stack([loss, *figures, *others]).isfinite().all():
            raise UserError(
                f"the loss or a gradient is not finite (loss {loss.item()}) in epoch {len(self.rows) + 1}, step {self.done + 1}; "
                "the last checkpoint is of before and stays. Start a new run with a lower --learning_rate"
                + " or --arch_learning_rate" * hasattr(self.settings, "arch_learning_rate")
                + (", or without --amp" if self.settings.amp else ""))
        self.sums = self.sums + torch.stack(figures).cpu()
        self.done += 1
        self.seconds += time.monotonic() - start
        return loss

    def measure(self):
        """The row of metrics of an epoch whose steps are done; changes nothing."""
        start = time.monotonic()
        row = self.finish((self.sums / self.steps).tolist())
        return {**row, "seconds": round(self.seconds + time.monotonic() - start, 2)}

    def close(self, row):
        """Ends the epoch."""
        self.rows.append(row)
        self.done, self.sums, self.seconds = 0, 0.0, 0.0


class Run:
    """The folder of one run. `config`: its settings and where they came from, a dict of JSON values.

    `with run:` keeps every other process from writing it, until it ends or the process dies.
    """

    def __init__(self, folder, config):
        self.folder, self.config, self.descriptor = folder, config, None

    @classmethod
    def create(cls, script, settings, fingerprint):
        """A new folder, settings["name"] or named after script, dataset and time, in settings["runs"]. Raises UserError,
        OSError."""
        name = settings["name"] or time.strftime(f"{script}-{settings['dataset']}-%Y%m%d-%H%M%S")
        folder = os.path.join(settings["runs"], name)
        if os.path.lexists(folder):
            raise UserError(f"{folder!r} exists already: give another --name, or --resume {folder} to go on with it")
        run = cls(folder + ".part", {
            "script": script, "version": VERSION, "settings": settings, "fingerprint": fingerprint, "commands": [sys.argv],
            "torch": torch.__version__, "python": platform.python_version(), "machine": platform.platform()})
        os.makedirs(run.folder, exist_ok=True)
        run.write_config()
        os.rename(run.folder, folder)
        run.folder = folder
        return run

    @classmethod
    def open(cls, folder, script):
        """The run in `folder`, which `script` made. Raises UserError."""
        try:
            with open(os.path.join(folder, "config.json")) as file:
                config = json.load(file)
            made_by, version, settings, _, commands = (
                config[key] for key in ("script", "version", "settings", "fingerprint", "commands"))
            if not isinstance(settings, dict) or not isinstance(commands, list):
                raise TypeError
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            raise UserError(f"{folder!r} is not the folder of a run: it has no readable config.json") from None
        if made_by != script:
            raise UserError(f"{folder!r} is a run of {made_by}.py, not of {script}.py")
        if version != VERSION:
            raise UserError(f"{folder!r} was made by version {version} of this code, which is {VERSION}")
        return cls(folder, config)

    def __enter__(self):
        if fcntl is not None:
            self.descriptor = os.open(self.folder, os.O_RDONLY)
            try:
                fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self.__exit__()
                raise UserError(f"another process is writing the run {self.folder!r}: wait for it, or stop it") from None
        return self

    def __exit__(self, *_):
        if self.descriptor is not None:
            os.close(self.descriptor)

    def check_fingerprint(self, fingerprint):
        """Raises UserError where the dataset is not the one that the run began with."""
        if fingerprint != self.config["fingerprint"]:
            raise UserError(f"the dataset is not the one that the run {self.folder!r} began with: its fingerprint is "
                            f"{fingerprint}, not {self.config['fingerprint']}; name the right folder by --data")

    def path(self, name):
        return os.path.join(self.folder, name)

    def write(self, name, content):
        write_whole(self.path(name), content)

    def write_config(self):
        self.write("config.json", json.dumps(self.config, indent=1))

    def log(self, line):
        """Print a line and keep it in log.txt."""
        print(line, flush=True)
        try:
            with open(self.path("log.txt")) as file:
                former = file.read()
        except FileNotFoundError:
            former = ""
        self.write("log.txt", former + line + "\n")

    def write_metrics(self, rows):
        """metrics.csv from a list of dicts with the same keys."""
        text = io.StringIO()
        writer = csv.DictWriter(text, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        self.write("metrics.csv", text.getvalue())

    def save(self, name, state):
        """Write tensors and plain values as a torch file, followed by its SHA-256, which torch.load ignores."""
        buffer = io.BytesIO()
        torch.save({"script": self.config["script"], "version": VERSION, **state}, buffer)
        self.write(name, buffer.getvalue() + hashlib.sha256(buffer.getvalue()).digest())

    def load(self, name, keys):
        """What `save` wrote, on the CPU, with at least these `keys`; code in the file is never run. Raises UserError,
        FileNotFoundError."""
        with open(self.path(name), "rb") as file:
            content = file.read()
        refusal = f"{self.path(name)} cannot be read: "
        if hashlib.sha256(content[:-32]).digest() != content[-32:]:
            raise UserError(refusal + "it is cut off, damaged or not of this code, for its checksum is wrong")
        try:
            state = torch.load(io.BytesIO(content[:-32]), map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds
            raise UserError(refusal + str(error).strip().split("\n")[0][:200]) from None
        if not isinstance(state, dict):
            raise UserError(refusal + f"expected a dictionary, found {type(state).__name__}")
        lacking = [key for key in ("script", "version", *keys) if key not in state]
        if lacking:
            raise UserError(refusal + "it lacks " + ", ".join(lacking))
        if (state["script"], state["version"]) != (self.config["script"], VERSION):
            raise UserError(refusal + f"it is of {state['script']}.py, version {state['version']}, not of "
                            f"{self.config['script']}.py, version {VERSION}")
        return state

    def load_checkpoint(self):
        """The state in checkpoint.pt, or None before there is one. Raises UserError."""
        try:
            return self.load("checkpoint.pt", ("rows", "done"))
        except FileNotFoundError:
            return None

    def restore(self, task, state):
        """Bring a task or a network to a `state` that was loaded. Raises UserError."""
        try:
            task.load_state_dict(state)
        except (KeyError, RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
            lacks = "it lacks " * isinstance(error, KeyError)
            raise UserError(f"what {self.folder!r} holds does not fit its settings: {lacks}"
                            + " ".join(str(error).split())[:200]) from None

    def go_on(self, task, settings):
        """Run `task` to its last epoch, saving and logging as it goes. Returns the exit code. Raises UserError."""
        if settings != self.config["settings"]:  # resumed with other flags
            self.config["settings"] = settings
            self.config["commands"].append(sys.argv)
            self.write_config()
        command = f"python {self.config['script']}.py --resume {shlex.quote(self.folder)}"
        try:
            with Stopping() as stop:
                try:
                    while len(task.rows) < settings["epochs"]:
                        self.epoch(task, stop)
                except Stopped:
                    self.save("checkpoint.pt", task.state_dict())
                    self.log(f"stopped in epoch {len(task.rows) + 1} after step {task.done} of {task.steps}; go on:\n{command}")
                    return 128 + stop.signal
        except OSError as error:
            raise UserError(f"{reason(error)}; the checkpoint before it is whole, go on with: {command}") from None
        return 0

    def epoch(self, task, stop):
        """The rest of the epoch in which `task` is, with a progress bar where stdout is a terminal."""
        settings, saved = self.config["settings"], time.monotonic()
        title = f"epoch {len(task.rows) + 1}/{settings['epochs']}"
        task.begin(len(task.rows))
        with tqdm(total=task.steps, initial=task.done, desc=title, leave=False, disable=not sys.stdout.isatty()) as bar:
            while task.done < task.steps:
                loss = task.advance()
                bar.update()
                if not bar.disable:
                    bar.set_postfix(loss=f"{loss:.3f}")
                if stop.signal:
                    raise Stopped
                if time.monotonic() - saved >= 60 * settings["checkpoint_minutes"]:
                    self.save("checkpoint.pt", task.state_dict())
                    saved = time.monotonic()
        stop.idle = True
        if stop.signal:
            raise Stopped
        row = task.measure()
        stop.idle = False
        task.close(row)
        self.write_metrics(task.rows)
        task.save_results(self)
        self.save("checkpoint.pt", task.state_dict())
        self.log(f"{title}  {task.line(row)}  {row['seconds']:.1f} s")
