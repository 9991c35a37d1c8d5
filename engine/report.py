"""report.md: what a finished run was and found, as plain text for an issue."""
import os
import shlex
import subprocess

import torch
from torch.utils.flop_counter import FlopCounterMode

from engine import processes

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def write_report(run, results, command):
    """Write RUN/report.md from what the run has recorded. results: {what: value},
    further lines; command: how to go on."""
    if processes.rank() > 0:
        return
    config, seconds = run.config, sum(run.column("seconds"))
    commands = [shlex.join(["python", *words]) for words in config["commands"]]
    lines = {
        "command": f"`{'`, then `'.join(commands)}`",
        "code": commit() or "no commit is known",
        "versions": f"torch {config['torch']}, Python {config['python']}",
        "device": f"{run.machine['device']}; threads: {config['threads']}, processes: "
                  f"{config['processes']}",
        "dataset": f"{run.s.dataset}, pictures of "
                   f"{'x'.join(map(str, config['shape']))}, {len(config['classes'])} classes, "
                   f"fingerprint {config['fingerprint']}",
        "epochs": f"{len(run.rows)} in {seconds:.0f} s",
        "peak memory": f"{run.machine['memory']} MiB", **results, "go on": f"`{command}`"}
    text = [f"# {os.path.basename(os.path.abspath(run.folder))}", ""]
    text += [f"- {what}: {value}" for what, value in lines.items()]
    folder = run.path("figures")
    if os.path.isdir(folder):
        text += [""] + [f"![{name}](figures/{name})" for name in sorted(os.listdir(folder))]
    run.write("report.md", "\n".join(text) + "\n")


def count(network, shape):
    """(parameters, those of the auxiliary head, multiply-accumulates of convolutions
    and linear layers for one picture of `shape`, without the auxiliary head)."""
    head = sum(w.numel() for w in network.auxiliary.parameters()) if network.auxiliary else 0
    network.eval()
    picture = torch.zeros(1, *shape, device=next(network.parameters()).device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(picture)
    macs = counter.get_total_flops() // 2  # 2 flops a MAC
    return sum(w.numel() for w in network.parameters()), head, macs


def commit():
    """The commit of this code, or with -dirty if files differ; None outside a clone."""
    if not os.path.exists(os.path.join(ROOT, ".git")):
        return None
    try:
        return subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty", "--exclude=*"],
                              capture_output=True, text=True, timeout=10,
                              check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
