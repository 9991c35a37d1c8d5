"""The folder of a run: files that are written whole or not at all, by one process, and
read with suspicion. Nothing that is read can run code."""
import contextlib
import csv
import hashlib
import io
import json
import math
import os
import platform
import secrets
import shlex
import sys
import time

import torch

from engine import processes
from engine.flags import MAY_CHANGE, UserError, first_line

try:
    import fcntl
except ImportError:  # Windows: there, nobody keeps two processes from writing one run
    fcntl = None

VERSION = 7  # of what a run's files hold; raised when old ones can no longer be read
HEADER = ("script", "version", "id", "settings")  # of every torch file


def write_whole(path, content):
    """Write a file whole or not at all. content: text or bytes. Raises OSError."""
    if isinstance(content, str):
        content = content.encode(errors="backslashreplace")
    part = f"{path}.{secrets.token_hex(4)}.part"
    try:
        with open(part, "xb") as file:  # a new file: no link is followed
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(part)
        raise


def read_config(folder):
    """What config.json holds of the run in `folder`. Raises UserError."""
    refusal = f"{folder!r} is not the folder of a run: "
    try:
        for entry in os.scandir(folder):  # a link could lead anywhere, a pipe would never end
            if entry.is_symlink() or not (entry.is_file() or entry.is_dir()):
                raise UserError(refusal + f"{entry.name!r} in it is a link, or not a file")
        with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
            config = json.load(file)
        if config["version"] == VERSION and not fits(config):
            raise TypeError
        config["script"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise UserError(refusal + "it has no readable config.json") from None
    if config["version"] != VERSION:
        raise UserError(f"{folder!r} was made by version {config['version']} of this code, "
                        f"which is {VERSION}")
    return config


def fits(config):
    """Whether everything in it beside the settings is of the kind that a run keeps.
    Raises KeyError, TypeError."""
    kinds = dict(settings=dict, commands=list, fingerprint=str, classes=list, shape=list, id=str,
                 threads=int, processes=int, torch=str, python=str, machine=str)
    return (all(isinstance(config[key], kind) for key, kind in kinds.items())
            and [*map(type, config["shape"])] == [int] * 3 and min(config["shape"]) > 0
            and all(type(word) is str for words in config["commands"] for word in words)
            and config.get("memory_format") in (None, "channels_last", "contiguous"))


def read_metrics(folder):
    """The rows of a run's metrics.csv: numbers, None where a field is empty. Raises
    UserError, FileNotFoundError."""
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


def read_sealed(path, script, keys):
    """What Folder.save wrote for `script`, on the CPU, with at least these `keys`; code
    in the file is never run. Raises UserError, FileNotFoundError."""
    with open(path, "rb") as file:
        content = file.read()
    refusal = f"{path} cannot be read: "
    if hashlib.sha256(content[:-32]).digest() != content[-32:]:
        raise UserError(refusal + "it is cut off, damaged or not of this code, for its checksum is "
                        "wrong")
    try:
        state = torch.load(io.BytesIO(content[:-32]), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds
        raise UserError(refusal + first_line(error)) from None
    if not isinstance(state, dict) or not isinstance(state.get("settings", {}), dict):
        raise UserError(refusal + f"expected a dictionary, found {type(state).__name__}")
    lacking = [key for key in (*HEADER, *keys) if key not in state]
    if lacking:
        raise UserError(refusal + "it lacks " + ", ".join(lacking))
    if type(state["version"]) is not int or not all(
            type(state[key]) is str for key in ("script", "id")) or (
            state["script"], state["version"]) != (script, VERSION):
        raise UserError(refusal + f"it is of {state['script']}.py, version {state['version']}, "
                        f"not of {script}.py, version {VERSION}")
    return state


class Folder:
    """The folder of one run. config: its settings and where they came from, a dict of
    JSON values."""

    def __init__(self, folder, config):
        self.folder, self.config, self.descriptor = folder, config, None

    @classmethod
    def create(cls, script, settings, **facts):
        """A new folder, settings["name"] or named after script, dataset and time, in
        settings["runs"]. facts: what config.json keeps beside the settings. Raises
        UserError, OSError."""
        run = cls._create(script, settings, facts) if processes.rank() == 0 else None
        return cls(*processes.broadcast(run and (run.folder, run.config)))

    @classmethod
    def _create(cls, script, settings, facts):
        name = settings["name"] or time.strftime(f"{script}-{settings['dataset']}-%Y%m%d-%H%M%S")
        run = cls(os.path.join(settings["runs"], name), {
            "script": script, "version": VERSION, "id": secrets.token_hex(8),
            "settings": settings, "commands": [sys.argv], **facts, "torch": str(torch.__version__),
            "threads": torch.get_num_threads(), "processes": processes.size(),
            "python": platform.python_version(), "machine": platform.platform()})
        os.makedirs(settings["runs"], exist_ok=True)
        try:
            os.mkdir(run.folder)
        except FileExistsError:
            if not settings["name"]:  # another run of this second
                time.sleep(1)
                return cls._create(script, settings, facts)
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
        if fcntl is not None and processes.rank() == 0:
            self.descriptor = os.open(self.folder, os.O_RDONLY)
            try:
                fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(self.descriptor)
                raise UserError(f"another process is writing the run {self.folder!r}: wait for "
                                "it, or stop it") from None
        return self

    def resume_command(self):
        size = processes.size()
        launch = f"torchrun --nproc-per-node={size}" if size > 1 else "python"
        return f"{launch} {self.config['script']}.py --resume {shlex.quote(self.folder)}"

    def path(self, name):
        return os.path.join(self.folder, name)

    def write(self, name, content):
        if processes.rank() > 0:
            return
        if self.descriptor is not None:
            now, locked = os.stat(self.folder), os.fstat(self.descriptor)
            if not os.path.samestat(now, locked):
                raise UserError(f"{self.folder!r} is another folder now: this run was moved; it "
                                "stops, and its last checkpoint is where it is")
        write_whole(self.path(name), content)

    def write_config(self):
        self.write("config.json", json.dumps(self.config, indent=1))

    def keep(self, name, function, *arguments):
        """What function(*arguments) gave the first time, which config.json keeps; None
        is not kept."""
        if name not in self.config:
            value = processes.broadcast(function(*arguments))
            if value is None:
                return None
            self.config[name] = value
            self.write_config()
        return self.config[name]

    def log(self, line):
        """Print a line and keep it in log.txt."""
        if processes.rank() > 0:
            return
        print(line, flush=True)
        try:
            with open(self.path("log.txt"), encoding="utf-8", errors="backslashreplace") as file:
                former = file.read()
        except FileNotFoundError:
            former = ""
        self.write("log.txt", former + line + "\n")

    def save(self, name, state):
        """Write tensors and plain values as a torch file, then its SHA-256, which
        torch.load ignores."""
        if processes.rank() > 0:
            return
        buffer = io.BytesIO()
        torch.save({**{key: self.config[key] for key in HEADER}, **state}, buffer)
        self.write(name, buffer.getvalue() + hashlib.sha256(buffer.getvalue()).digest())

    def load(self, name, keys):
        """What `save` wrote, on the CPU, with at least these `keys`. Raises UserError,
        FileNotFoundError."""
        path = self.path(name)
        state = read_sealed(path, self.config["script"], keys)
        if state["id"] != self.config["id"]:
            raise UserError(f"{path} cannot be read: it is of another run")
        for name, value in self.config["settings"].items():
            if name not in MAY_CHANGE and state["settings"].get(name) != value:
                raise UserError(f"{path} cannot be read: it is of a run with --{name} "
                                f"{state['settings'].get(name)}, and config.json has {value}")
        return state
