"""Files of runs, damaged at random: every script ends in peace or with one line."""
import copy
import io
import json
import math
import os
import random
import shutil

import pytest
import torch
from PIL import Image

from tests.common import deep, ended, fork, place, sealed


# ---- fuzz

VALUES = [None, True, False, -1, 0, 1, 2, 3, 10**9, 2**63, 10**400, -0.5, 0.3, 1e308, math.inf,
          math.nan, "", "x", "a\0b", "\ud800", "line\nline", "../..", "1" * 500, [], [1], [[]], {},
          {"x": 1}, deep(50)]


def other_value(dice, old):
    if torch.is_tensor(old) and dice.random() < 0.7:
        return dice.choice([lambda t: t.double(), lambda t: t.flatten()[:-1], lambda t: t * 0 - 1,
                            lambda t: t[None], lambda t: t.float() * math.nan, lambda t: t.long(),
                            lambda t: t.bool(), lambda t: t.tolist(),
                            lambda t: t.flatten()[torch.arange(t.numel()).flip(0)].view(t.shape)
                            ])(old)
    if isinstance(old, (int, float)) and dice.random() < 0.3:
        return dice.choice([-old, old + 1, str(old), [old], old * 1e30 if old else 1e-300])
    return copy.deepcopy(dice.choice(VALUES))  # or one could come to hold itself


def mutate(dice, folder):
    """Damage one file of a run; what was done, in words."""
    name = dice.choice(sorted(os.listdir(folder)) + ["config.json", "checkpoint.pt"])
    path = folder / name
    whole = path.read_bytes()
    how = dice.choice(["cut", "flip", "delete", "folder", "empty", *["values"] * 12])
    if how == "values" and (name.endswith(".pt") or name.endswith(".json")):
        state = (torch.load(io.BytesIO(whole), weights_only=True) if name.endswith(".pt")
                 else json.loads(whole))
        for _ in range(dice.choice([1, 1, 1, 2, 5])):
            keys, inner = place(dice, state), state
            if not keys:  # nothing is left of it
                break
            for key in keys[:-1]:
                inner = inner[key]
            new = ... if dice.random() < 0.1 else other_value(dice, inner[keys[-1]])
            # more epochs are no damage: they would be searched
            if new is ...:
                del inner[keys[-1]]
            elif keys[-1] != "epochs" or type(new) is not int or new < 4:
                inner[keys[-1]] = new
            how += f" {keys}={str(new)[:40]!r}"
        content = sealed(state) if name.endswith(".pt") else json.dumps(state).encode()
        if name.endswith(".json") and dice.random() < 0.2:
            content = content.replace(b"0", dice.choice([b"1e999", b"9" * 5000, b"[", b"-"]), 1)
    elif how in ("flip", "values"):
        content = bytearray(whole)
        for _ in range(dice.choice([1, 3, 20])):
            if content:
                content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        content = bytes(content)
        if name.endswith(".pt") and dice.random() < 0.7:
            content, how = sealed(content[:-32]), how + " sealed"
    else:
        content = whole[:dice.randrange(len(whole))] if how == "cut" else b""
        if name.endswith(".pt") and how == "cut" and dice.random() < 0.5:
            content, how = sealed(content), how + " sealed"
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how != "delete":
        path.write_bytes(content)
    return f"{name}: {how}"


@pytest.mark.slow
def test_fuzz(finished, tmp_path):
    first, count = int(os.environ.get("FUZZ_SEED", 0)), int(os.environ.get("FUZZ", 24))
    codes, wrong, image = {}, [], tmp_path / "image.png"
    Image.new("L", (8, 8)).save(image)

    def begin(seed):
        dice, base = random.Random(seed), tmp_path / str(seed)
        kind = dice.choice("aad")
        folder = base / kind
        shutil.copytree(finished / kind, folder)
        done = mutate(dice, folder)
        more = ["--epochs", "2"] if dice.random() < 0.7 else []
        script = "train_search" if kind == "a" else "train_eval"
        script, arguments, setup = dice.choice([
            (script, ["--resume", folder, *more], None),
            (script, ["--resume", folder, *more], None),
            ("visualize", [folder], None) if kind == "a" else
            (script, ["--evaluate", folder], None),
            ("visualize", [folder], None) if kind == "a" else ("predict", [folder, image], None)])
        child = fork(base, script, *arguments, seconds=10, setup=setup)
        return seed, base, f"{done}  {script} {arguments[:1]} {more}", script, child

    def end(seed, base, done, script, child):
        code, out, err = ended(*child)
        codes[code] = codes.get(code, 0) + 1
        lines = [line for line in err.splitlines() if not line.startswith("note: ")]
        fine = (code in (0, 1) and not lines or code == 2 and len(lines) == 1
                and lines[0].startswith(script + ".py: error: ")) and "Traceback" not in out
        if not fine:
            wrong.append(f"FUZZ=1 FUZZ_SEED={seed}  {done}: {code} {' | '.join(lines)[-700:]}")
        shutil.rmtree(base)

    for seed in range(first, first + count, 2):  # two side by side
        for started in [begin(s) for s in range(seed, min(seed + 2, first + count))]:
            end(*started)
    print(codes)
    assert not wrong, f"{codes}\n" + "\n".join(wrong)
