"""A training that starts from the weights of another one: --init of train_eval.py."""
from engine.flags import UserError
from use.classifier import read_weights

# The settings that make a network another one, which weights do not fit
NETWORK = ("arch", "init_channels", "layers", "stage_cells", "auxiliary", "width", "squeeze",
           "h_swish")


def kept_settings(given):
    """The settings that come with the weights of `given`["init"]. Raises UserError
    where flags contradict them."""
    state = read_weights(given["init"])
    kept = {name: state["settings"][name] for name in NETWORK}
    for name, value in kept.items():
        if given.get(name, value) != value:
            raise UserError(f"--{name} {given[name]} contradicts --init {given['init']}, which "
                            f"has {value}: leave the flag out")
    return {"image_size": state["shape"][1], **kept}


def start_from(path, network, run):
    """Load the weights of another training; those of a head for another number of
    classes stay as they are. Raises UserError."""
    state = read_weights(path)
    own, given = network.state_dict(), state["network"]
    new = [name for name in own if name.endswith(("classifier.weight", "classifier.bias"))
           and name in given and own[name].shape != given[name].shape]
    given.update({name: own[name] for name in new})
    try:
        network.load_state_dict(given)
    except RuntimeError:
        raise UserError(f"--init {path}: the weights are of another network, for pictures "
                        f"{tuple(state['shape'])}") from None
    head = (f"; the head is new, for it was of {len(state['classes'])} classes" if new else "")
    run.log(f"starts from {path}, epoch {state['epoch']}, test accuracy "
            f"{state['accuracy']:.2f}%{head}")
