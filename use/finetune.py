"""A training that starts from the weights of another one: --init of train_eval.py."""
from engine.flags import UserError
from use.classifier import NETWORK, read_weights


def kept_settings(given):
    """The settings that come with the weights of `given`["init"]. Raises UserError
    where flags contradict them."""
    state, former = read_weights(given["init"])
    kept = {name: getattr(former, name) for name in NETWORK if name != "dropout"}
    for name, value in kept.items():
        if given.get(name, value) != value:
            raise UserError(f"--{name} {given[name]} contradicts --init {given['init']}, which "
                            f"has {value}: leave the flag out")
    return {"image_size": state["shape"][1], **kept}


def start_from(path, network, run):
    """Load the weights of another training; those of a head for another number of
    classes stay as they are. Raises UserError."""
    state, _ = read_weights(path)
    own, given = network.state_dict(), state["network"]
    new = [name for name in own if name.endswith(("classifier.weight", "classifier.bias"))
           and name in given and own[name].shape != given[name].shape]
    if own.keys() != given.keys() or any(
            own[name].shape != given[name].shape for name in own if name not in new):
        raise UserError(f"--init {path}: the weights are of another network, for pictures "
                        f"{tuple(state['shape'])}")
    given.update({name: own[name] for name in new})
    network.load_state_dict(given)
    head = (f"; the head is new, for it was of {len(state['classes'])} classes" if new else "")
    run.log(f"starts from {path}, epoch {state['epoch']}, test accuracy "
            f"{state['accuracy']:.2f}%{head}")
