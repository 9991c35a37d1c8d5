"""One run on disk, and what keeps it safe; the device and the precision that it runs in.

A run is a folder: config.json (settings, command lines, versions, the dataset), log.txt,
metrics.csv (a row an epoch), checkpoint.pt, and the script's own results. Every file is
written whole or not at all, and one process writes. A script's loop is

    with run:
        run.track(network=network, sgd=sgd, ...)    # what a checkpoint holds; loads it
        for epoch in run.epochs():                  # those that are left
            for _ in run.steps(count):              # those that are left in the epoch
                run.add(loss=loss, ...)             # sums up; raises where one is not finite
            run.end_epoch(row, line)

SIGINT and SIGTERM are heeded between two steps, or two batches of `run.watched`: the run
saves, says how to go on and ends. Resumed, it computes what it would have computed, bit for bit.
"""
import csv
import hashlib
import io
import json
import math
import os
import platform
import secrets
import shlex
import signal
import sys
import time
import warnings

import torch
from tqdm import tqdm

from flags import MAY_CHANGE, UserError, reason
from genotypes import GenotypeError, write_whole
from kernels import keep_freed_memory

try:
    import fcntl
except ImportError:  # Windows: there, nobody keeps two processes from writing one run
    fcntl = None

VERSION = 2  # of what a run's files hold; raised when old ones can no longer be read
LOOP = ("random", "rows", "done", "sums", "seconds")  # what a checkpoint holds of the loop


def choose_device(name="auto"):
    """The torch.device `name`; "auto": CUDA, else MPS (Apple), else the CPU. Raises UserError."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(),
                 "cpu": True}
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    try:
        device = torch.device(name)
        if available[device.type]:
            torch.empty(0, device=device)
            if device.type == "cpu":
                keep_freed_memory()
            return device
    except (RuntimeError, KeyError):
        pass
    there = ", ".join(kind for kind, there in available.items() if there)
    raise UserError(f"--device {name!r} is not there; this machine has: {there}")


class Precision:
    """Where the forward pass computes in 16 bits (`amp`): in bfloat16, or where there is none in
    float16, whose small gradients .scaler keeps above zero. All else stays float32."""

    def __init__(self, device, amp):
        self.device, self.amp = device, amp
        half = amp and device.type == "cuda" and not torch.cuda.is_bf16_supported()
        self.dtype = torch.float16 if half else torch.bfloat16
        self.scaler = torch.amp.GradScaler(device.type, enabled=half)
        self.loss_scale = self.scaler.get_scale if half else None

    def autocast(self):
        return torch.autocast(self.device.type, self.dtype, enabled=self.amp)


def set_learning_rate(optimizer, epoch, epochs, high, low=0.0):
    """Half a cosine from `high`, in epoch 0, down to `low`."""
    for group in optimizer.param_groups:
        group["lr"] = low + (high - low) * 0.5 * (1 + math.cos(math.pi * epoch / epochs))


def check_optimizer(optimizer, state):
    """Raises where `state` is not of this optimizer: load_state_dict would take it, and a step
    would fail."""
    own = optimizer.state_dict()["param_groups"]
    for group, like in zip(state["param_groups"], own, strict=True):
        if {**group, "lr": 0} != {**like, "lr": 0} or not 0 <= group["lr"] < math.inf:
            raise ValueError("an optimizer has other settings")
    names = {"momentum_buffer"} if "momentum" in own[0] else {"step", "exp_avg", "exp_avg_sq"}
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for index, values in state["state"].items():
        shape = weights[index].shape
        if values.keys() != names or values.get("step", torch.tensor(0)) < 0 or not all(
                value.shape == (() if name == "step" else shape) and value.isfinite().all()
                and value.layout == torch.strided and value.dtype == torch.float32
                for name, value in values.items()):
            raise ValueError("what an optimizer keeps of a weight is not of its shape and type")


def read_config(folder):
    """What config.json holds of the run in `folder`. Raises UserError."""
    refusal = f"{folder!r} is not the folder of a run: "
    try:
        for entry in os.scandir(folder):  # a link could lead anywhere, a pipe would never end
            if entry.is_symlink() or not (entry.is_file() or entry.is_dir()):
                raise UserError(refusal + f"{entry.name!r} in it is a link, or not a file")
        with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
            config = json.load(file)
        kinds = dict(settings=dict, commands=list, fingerprint=str, classes=list, shape=list,
                     id=str, threads=int)
        if config["version"] == VERSION and not all(
                isinstance(config[key], kind) for key, kind in kinds.items()):
            raise TypeError
        config["script"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise UserError(refusal + "it has no readable config.json") from None
    if config["version"] != VERSION:
        raise UserError(f"{folder!r} was made by version {config['version']} of this code, "
                        f"which is {VERSION}")
    return config


def read_metrics(folder):
    """The rows of a run's metrics.csv: numbers, None where a field is empty. Raises UserError,
    FileNotFoundError."""
    path = os.path.join(folder, "metrics.csv")
    try:
        with open(path, newline="", encoding="utf-8") as file:
            text = file.read()
        rows = [{key: float(value) if value else None for key, value in row.items()}
                for row in csv.DictReader(io.StringIO(text), strict=True)]
        if not text.endswith("\n") or not all(
                value is None or math.isfinite(value) for row in rows for value in row.values()):
            raise ValueError("it is cut off, or a value is not finite")
    except (ValueError, TypeError, AttributeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: {str(error)[:100]}") from None
    if not rows or [row.get("epoch") for row in rows] != list(range(1, len(rows) + 1)):
        raise UserError(f"{path} cannot be read: its epochs are not 1, 2, ...")
    return rows


class Stopped(Exception):
    """SIGINT or SIGTERM has asked the run to end."""


class Run:
    """The folder of one run. config: its settings and where they came from, a dict of JSON
    values. .rows: the metrics of the epochs that are done."""

    def __init__(self, folder, config):
        self.folder, self.config = folder, config
        self.rows, self.parts, self.checkpoint, self.descriptor = [], {}, None, None
        self.done, self.count, self.sums, self.seconds = 0, 0, {}, 0.0  # of the epoch in progress
        self.changed, self.signal, self.former_handlers, self.bar = False, None, {}, None

    # ------------------------------------------------------------ making and opening

    @classmethod
    def create(cls, script, settings, **facts):
        """A new folder, settings["name"] or named after script, dataset and time, in
        settings["runs"]. facts: what config.json keeps beside the settings. Raises UserError,
        OSError."""
        name = settings["name"] or time.strftime(f"{script}-{settings['dataset']}-%Y%m%d-%H%M%S")
        run = cls(os.path.join(settings["runs"], name), {
            "script": script, "version": VERSION, "id": secrets.token_hex(8),
            "settings": settings, "commands": [sys.argv], **facts, "torch": torch.__version__,
            "threads": torch.get_num_threads(), "python": platform.python_version(),
            "machine": platform.platform()})
        os.makedirs(settings["runs"], exist_ok=True)
        try:
            os.mkdir(run.folder)
        except FileExistsError:
            if not settings["name"]:  # another run of this second
                time.sleep(1)
                return cls.create(script, settings, **facts)
            raise UserError(f"{run.folder!r} exists already: give another --name, or --resume "
                            f"{run.folder} to go on with it") from None
        try:
            run.write_config()
        except BaseException:
            os.rmdir(run.folder)
            raise
        return run

    @classmethod
    def open(cls, folder, script):
        """The run in `folder`, which `script` made. Raises UserError."""
        config = read_config(folder)
        if config["script"] != script:
            raise UserError(f"{folder!r} is a run of {config['script']}.py, not of {script}.py")
        return cls(folder, config)

    def __enter__(self):
        if fcntl is not None:
            self.descriptor = os.open(self.folder, os.O_RDONLY)
            try:
                fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(self.descriptor)
                raise UserError(f"another process is writing the run {self.folder!r}: wait for "
                                "it, or stop it") from None
        return self

    def __exit__(self, kind, error, trace):
        if self.bar is not None:
            self.bar.close()
        try:
            if kind is Stopped:
                self.save_checkpoint()
                self.log(f"stopped in epoch {len(self.rows) + 1} after step {self.done} "
                         f"of {self.count}; go on:\n{self.resume_command()}")
                sys.exit(128 + self.signal)
            if kind is not None and issubclass(kind, OSError):
                raise error
            expected = UserError, GenotypeError, KeyboardInterrupt, SystemExit, MemoryError
            if kind is not None and not issubclass(kind, expected) and "memory" not in str(error):
                print(f"unexpected error; the last checkpoint is whole, go on with: "
                      f"{self.resume_command()}", file=sys.stderr)
        except OSError as error:
            raise UserError(f"{reason(error)}; the checkpoint before it is whole, go on with: "
                            + self.resume_command()) from None
        finally:
            for number, handler in self.former_handlers.items():
                signal.signal(number, handler)
            if self.descriptor is not None:
                os.close(self.descriptor)

    def resume_command(self):
        return f"python {self.config['script']}.py --resume {shlex.quote(self.folder)}"

    def resume(self, settings):
        """Take over settings that have changed, which `track` writes when all is read, and read
        the checkpoint, if there is one. Raises UserError."""
        for name in os.listdir(self.folder):
            if name.endswith(".part"):  # of a process that was killed
                os.remove(self.path(name))
        self.changed = settings != self.config["settings"]
        if self.changed:
            self.config["settings"] = settings
            self.config["commands"].append(sys.argv)
        try:
            self.checkpoint = self.load("checkpoint.pt", LOOP)
            self.restore(self, "loop", {"loop": self.checkpoint})
        except FileNotFoundError:  # it was stopped before its first
            pass

    def check_fingerprint(self, fingerprint):
        """Raises UserError where the dataset is not the one that the run began with."""
        if fingerprint != self.config["fingerprint"]:
            raise UserError(f"the dataset is not the one that the run {self.folder!r} began with: "
                            f"its fingerprint is {fingerprint}, not {self.config['fingerprint']}; "
                            "name the right folder by --data")

    # ------------------------------------------------------------ the loop

    def track(self, **parts):
        """Names what a checkpoint holds, each with a state_dict, and loads it where there is a
        checkpoint. From here on, signals end the run as said above. Raises UserError."""
        if self.checkpoint:
            for name, part in parts.items():
                self.restore(part, name, self.checkpoint)
            torch.set_rng_state(self.checkpoint["random"])
        self.parts, self.checkpoint = parts, None
        if self.changed:
            self.write_config()
        if self.config["threads"] != torch.get_num_threads():
            warnings.warn(f"the run began with {self.config['threads']} threads, now there are "
                          f"{torch.get_num_threads()}: it goes on, but not bit for bit")
        for number in (signal.SIGINT, signal.SIGTERM):
            self.former_handlers[number] = signal.signal(number, self.receive)

    def restore(self, part, name, state):
        """Bring `part` to what `state` holds under `name`. Raises UserError."""
        try:
            if isinstance(part, torch.optim.Optimizer):
                check_optimizer(part, state[name])
            part.load_state_dict(state[name])
        except Exception as error:  # whatever a crafted state makes of it
            fault = " ".join(str(error).split())[:200]
            fault = f"it lacks {fault}" if isinstance(error, KeyError) else fault
            raise UserError(f"what {self.folder!r} holds does not fit its settings: "
                            f"{fault}") from None

    def load_state_dict(self, state):
        """Where the loop was. What is raised here, `restore` reports."""
        rows, done, sums, seconds = (state[key] for key in ("rows", "done", "sums", "seconds"))
        if not isinstance(rows, list) or [row["epoch"] for row in rows] != list(
                range(1, len(rows) + 1)):
            raise ValueError("the epochs of its rows are not 1, 2, ...")
        for row in rows:
            if row.keys() != rows[0].keys() or "seconds" not in row or not all(
                    value is None or type(value) in (int, float) and math.isfinite(value)
                    for value in row.values()):
                raise ValueError("its rows are not numbers in the same columns")
        if type(done) is not int or not 0 <= done < 2**31 or bool(done) != bool(sums):
            raise ValueError(f"{done!r} is no number of steps")
        if type(seconds) is not float or not 0 <= seconds < math.inf:
            raise ValueError(f"{seconds!r} is no number of seconds")
        torch.Generator().set_state(state["random"])  # or it raises
        self.rows, self.done, self.seconds = list(rows), done, seconds
        self.sums = {name: float(value) for name, value in sums.items()}

    def receive(self, number, frame):
        if self.signal and number == signal.SIGINT:  # the second time: at once
            raise KeyboardInterrupt
        self.signal = number

    def stop_if_asked(self):
        if self.signal:
            raise Stopped

    def epochs(self):
        """The epochs that are left, from 0, each until its `end_epoch`."""
        while len(self.rows) < self.config["settings"]["epochs"]:
            yield len(self.rows)

    def steps(self, count):
        """The steps that are left of `count` in this epoch, with a progress bar where stdout is a
        terminal. After each, it may save, or stop."""
        self.count, saved = count, time.monotonic()
        with tqdm(total=count, initial=self.done, desc=self.title(), leave=False,
                  disable=not sys.stdout.isatty()) as self.bar:
            while self.done < count:
                start = time.monotonic()
                yield self.done
                self.done += 1
                self.seconds += time.monotonic() - start
                self.bar.update()
                self.stop_if_asked()
                if time.monotonic() - saved >= 60 * self.config["settings"]["checkpoint_minutes"]:
                    self.save_checkpoint()
                    saved = time.monotonic()
        self.stop_if_asked()
        self.measuring = time.monotonic()

    def column(self, name):
        """A metric of every epoch. Raises UserError."""
        if self.rows and name not in self.rows[0]:
            raise UserError(f"the epochs that {self.folder!r} holds have no column {name}")
        return [row[name] for row in self.rows]

    def title(self):
        return f"epoch {len(self.rows) + 1}/{self.config['settings']['epochs']}"

    def add(self, *others, **figures):
        """Sum up what a step has computed, scalar tensors; the first of `figures` is the loss.
        Raises UserError where one of them, or of `others`, is not finite."""
        values = torch.stack([*figures.values(), *others]).tolist()
        if not all(map(math.isfinite, values)):
            settings = self.config["settings"]
            rates = [f"--{name}" for name in ("learning_rate", "arch_learning_rate")
                     if name in settings]
            raise UserError(
                f"the loss or a gradient is not finite (loss {values[0]}) in epoch "
                f"{len(self.rows) + 1}, step {self.done + 1}; the last checkpoint is of before and "
                f"stays. Start a new run with a lower {' or '.join(rates)}"
                + (", or without --amp" if settings["amp"] else ""))
        for name, value in zip(figures, values):
            self.sums[name] = self.sums.get(name, 0.0) + value
        if not self.bar.disable:
            self.bar.set_postfix(loss=f"{values[0]:.3f}")

    def means(self):
        """The means of what was added over the steps of this epoch."""
        return {name: value / self.done for name, value in self.sums.items()}

    def watched(self, batches):
        """The same batches; between them, a signal ends the run."""
        for batch in batches:
            self.stop_if_asked()
            yield batch

    def end_epoch(self, row, line):
        """Keep the epoch's `row` of metrics, save a checkpoint, and print `line` about it."""
        self.seconds += time.monotonic() - self.measuring
        title = self.title()
        if self.rows and self.rows[0].keys() != {*row, "seconds"}:
            raise UserError(f"the epochs that {self.folder!r} holds have other columns than "
                            f"{', '.join(row)}")
        self.rows.append({**row, "seconds": round(self.seconds, 2)})
        self.done, self.sums, self.seconds = 0, {}, 0.0
        text = io.StringIO()
        writer = csv.DictWriter(text, self.rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        self.write("metrics.csv", text.getvalue())
        self.save_checkpoint()
        self.log(f"{title}  {line}  {self.rows[-1]['seconds']:.1f} s")

    # ------------------------------------------------------------ files

    def path(self, name):
        return os.path.join(self.folder, name)

    def write(self, name, content):
        if self.descriptor is not None:
            now, locked = os.stat(self.folder), os.fstat(self.descriptor)
            if not os.path.samestat(now, locked):
                raise UserError(f"{self.folder!r} is another folder now: this run was moved; it "
                                "stops, and its last checkpoint is where it is")
        write_whole(self.path(name), content)

    def write_config(self):
        self.write("config.json", json.dumps(self.config, indent=1))

    def log(self, line):
        """Print a line and keep it in log.txt."""
        print(line, flush=True)
        try:
            with open(self.path("log.txt"), encoding="utf-8", errors="backslashreplace") as file:
                former = file.read()
        except FileNotFoundError:
            former = ""
        self.write("log.txt", former + line + "\n")

    def save_checkpoint(self):
        self.save("checkpoint.pt", {
            "random": torch.get_rng_state(), "rows": self.rows, "done": self.done,
            "sums": self.sums, "seconds": self.seconds,
            **{name: part.state_dict() for name, part in self.parts.items()}})

    def save(self, name, state):
        """Write tensors and plain values as a torch file, then its SHA-256, which torch.load
        ignores."""
        buffer = io.BytesIO()
        torch.save({**{key: self.config[key] for key in ("script", "version", "id", "settings")},
                    **state}, buffer)
        self.write(name, buffer.getvalue() + hashlib.sha256(buffer.getvalue()).digest())

    def load(self, name, keys):
        """What `save` wrote, on the CPU, with at least these `keys`; code in the file is never
        run. Raises UserError, FileNotFoundError."""
        with open(self.path(name), "rb") as file:
            content = file.read()
        refusal = f"{self.path(name)} cannot be read: "
        if hashlib.sha256(content[:-32]).digest() != content[-32:]:
            raise UserError(refusal + "it is cut off, damaged or not of this code, for its "
                            "checksum is wrong")
        try:
            state = torch.load(io.BytesIO(content[:-32]), map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds
            raise UserError(refusal + str(error).strip().split("\n")[0][:200]) from None
        if not isinstance(state, dict) or not isinstance(state.get("settings", {}), dict):
            raise UserError(refusal + f"expected a dictionary, found {type(state).__name__}")
        lacking = [key for key in ("script", "version", "id", "settings", *keys)
                   if key not in state]
        if lacking:
            raise UserError(refusal + "it lacks " + ", ".join(lacking))
        if type(state["version"]) is not int or type(state["script"]) is not str or (
                state["script"], state["version"]) != (self.config["script"], VERSION):
            raise UserError(refusal + f"it is of {state['script']}.py, version {state['version']}, "
                            f"not of {self.config['script']}.py, version {VERSION}")
        if type(state["id"]) is not str or state["id"] != self.config["id"]:
            raise UserError(refusal + "it is of another run")
        for name, value in self.config["settings"].items():
            if name not in MAY_CHANGE and state["settings"].get(name) != value:
                raise UserError(refusal + f"it is of a run with --{name} "
                                f"{state['settings'].get(name)}, and config.json has {value}")
        return state
