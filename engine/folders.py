"""The folder of a run: files that are written whole or not at all, by one process.
Nothing that is read can run code."""
import contextlib
import csv
import io
import json
import os
import pickle
import platform
import secrets
import shlex
import sys
import time
from argparse import Namespace

import torch

from engine import processes
from engine.flags import UserError, first_line
from spaces import SPACES

try:
    import fcntl
except ImportError:  # Windows: there, nobody keeps two processes from writing one run
    fcntl = None

VERSION = 7  # of what a run's files hold; raised when old ones can no longer be read


def write_whole(path, content):
    """Write a file whole or not at all. content: text or bytes. Raises OSError."""
    if isinstance(content, str):
        content = content.encode(errors="backslashreplace")
    part = f"{path}.{secrets.token_hex(4)}.part"
    try:
        with open(part, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(part)
        raise


@contextlib.contextmanager
def reading(path):
    """Within it, whatever is raised becomes a UserError: the file, and why. A file that
    is not there stays an OSError."""
    try:
        yield
    except (UserError, FileNotFoundError, NotADirectoryError):
        raise
    except Exception as error:  # torch and json raise many kinds
        fault = f"it lacks {error}" if isinstance(error, KeyError) else first_line(error)
        raise UserError(f"{path} cannot be read: {fault}") from None


def read_tensors(path):
    """What Folder.save wrote, on the CPU. Raises UserError, FileNotFoundError."""
    with reading(path):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:  # which advises to load what may run code
            raise ValueError("it is no file that a run has saved") from None


def read_metrics(folder):
    """The rows of a run's metrics.csv: numbers, None where a field is empty. Raises
    UserError, FileNotFoundError."""
    path = os.path.join(folder, "metrics.csv")
    with reading(path), open(path, newline="", encoding="utf-8") as file:
        rows = [{key: float(value) if value else None for key, value in row.items()}
                for row in csv.DictReader(file, strict=True)]
        if not rows or [row["epoch"] for row in rows] != list(range(1, len(rows) + 1)):
            raise ValueError("its epochs are not 1, 2, ...")
        return rows


class Folder:
    """The folder of one run. s: its settings, a Namespace; config: a dict of what else
    config.json holds, where the run comes from."""

    def __init__(self, folder, s, config):
        self.folder, self.s, self.config, self.descriptor = folder, s, config, None

    @classmethod
    def create(cls, script, s, **facts):
        """A new folder, s.name or named after script, dataset and time, in s.runs.
        facts: what config.json keeps beside the settings. Raises UserError, OSError."""
        folder, config = None, {
            "script": script, "version": VERSION, "commands": [sys.argv], **facts,
            "torch": str(torch.__version__), "threads": torch.get_num_threads(),
            "processes": processes.size(), "python": platform.python_version()}
        if processes.rank() == 0:
            os.makedirs(s.runs, exist_ok=True)
            while folder is None:
                name = s.name or time.strftime(f"{script}-{s.dataset}-%Y%m%d-%H%M%S")
                folder = os.path.join(s.runs, name)
                try:
                    os.mkdir(folder)
                except FileExistsError:
                    if s.name:
                        raise UserError(f"{folder!r} exists already: give another --name, or "
                                        f"--resume {folder} to go on with it") from None
                    folder = time.sleep(1)  # another run of this second
        run = cls(processes.gather(folder)[0], s, config)
        try:
            run.write_config()
        except OSError:
            os.rmdir(folder)
            raise
        return run

    @classmethod
    def open(cls, folder, script):
        """The run in `folder`, which `script` made. Raises UserError."""
        path = os.path.join(folder, "config.json")
        try:
            with reading(path), open(path, encoding="utf-8") as file:
                config = json.load(file)
                s = Namespace(**config.pop("settings"))
                found, version = config["script"], config["version"]
        except OSError:
            raise UserError(f"{folder!r} is not the folder of a run: it has no readable "
                            "config.json") from None
        if (found, version) != (script, VERSION):
            raise UserError(f"{folder!r} is a run of {found}.py, version {version}, not of "
                            f"{script}.py, version {VERSION} of this code")
        return cls(folder, s, config)

    @property
    def space(self):
        """Of a search: its space."""
        return SPACES[self.s.space]

    def supernet(self, gate):
        """The network that a search searches, on the CPU."""
        return self.space.supernet(self.s, len(self.config["classes"]), self.config["shape"], gate)

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
        if processes.rank() == 0:
            write_whole(self.path(name), content)

    def remove(self, name):
        if processes.rank() == 0 and os.path.exists(self.path(name)):
            os.remove(self.path(name))

    def write_config(self):
        self.write("config.json", json.dumps({**self.config, "settings": vars(self.s)}, indent=1))

    def log(self, line):
        """Print a line and add it to log.txt."""
        if processes.rank() == 0:
            print(line, flush=True)
            with open(self.path("log.txt"), "a", encoding="utf-8",
                      errors="backslashreplace") as file:
                file.write(line + "\n")

    def save(self, name, state):
        """Write tensors and plain values as a torch file."""
        if processes.rank() == 0:
            buffer = io.BytesIO()
            torch.save(state, buffer)
            self.write(name, buffer.getvalue())
