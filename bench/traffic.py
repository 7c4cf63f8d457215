"""Count the numbers that each pass of an op must move, from its shape line: each is read or written once."""
import math

# Ops whose backward pass does not read the inputs.
NOT_READ = {"dropout", "embedding", "rope"}


def axes(size):
    """{axis: length} in a model of this size; `linear` stands for a matrix of the feed-forward layer."""
    D, _, H, F, V, T, B = size
    K = D // H
    return {"B": B, "T": T, "S": T, "D": D, "E": F, "H": H, "G": H, "R": 1, "J": K, "K": K, "P": K // 2, "F": F,
            "V": V, "N": B * T}


def shape(axes, lengths):
    """The shape of an input or output; "..." is [B H] if T is among the axes, else [B T]."""
    out = ()
    for axis in axes:
        if axis == "...":
            out += (lengths["B"], lengths["H"]) if "T" in axes else (lengths["B"], lengths["T"])
        else:
            out += (math.prod(int(f) if f.isdigit() else lengths[f] for f in axis.split("*")),)
    return out


def shapes(op, lengths):
    """([(shape, bound of its integers or 0) of each required input], [shape of each output])."""
    inputs = [(shape(x.axes, lengths), int(x.below) if x.below.isdigit() else lengths.get(x.below, 0))
              for x in op.inputs if not x.optional]
    return inputs, [shape(output.axes, lengths) for output in op.outputs]


def moved(op, lengths):
    """{"forward": numbers, "backward": numbers}; integers and one saved number per row are too few to count."""
    inputs, outputs = shapes(op, lengths)
    x = sum(math.prod(shape) for shape, bound in inputs if not bound)
    y = sum(map(math.prod, outputs))
    if op.name == "embedding":                  # touches only the table's rows that occur among the ids
        return {"forward": 2 * y, "backward": 3 * y}
    if op.name == "add_rms_norm":               # both inputs share one gradient, and their sum is saved
        return {"forward": x + y, "backward": 2 * y}
    if op.name == "layer_norm":                 # it saves the normalized x
        return {"forward": x + 2 * y, "backward": 2 * x + y}
    return {"forward": x + y, "backward": x + y + (0 if op.name in NOT_READ else x)}
