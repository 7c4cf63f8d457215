"""The numbers that the passes of an op must move, by its shape line: each is read or written once."""
import math

# Their backward passes do not need the inputs.
NOT_READ = {"dropout", "embedding", "rope"}


def axes(size):
    """{axis: length} in a model of this size; linear is a matrix of its feed-forward."""
    D, _, H, F, V, T, B = size
    K = D // H
    return {"B": B, "T": T, "S": T, "D": D, "E": F, "H": H, "G": H, "R": 1, "K": K, "P": K // 2, "F": F, "V": V,
            "N": B * T}


def shape(axes, lengths):
    """The shape of an input or output; what leads is [B H] of [T K], else [B T]."""
    out = ()
    for axis in axes:
        if axis == "...":
            out += (lengths["B"], lengths["H"]) if "T" in axes else (lengths["B"], lengths["T"])
        else:
            out += (math.prod(int(f) if f.isdigit() else lengths[f] for f in axis.split("*")),)
    return out


def shapes(op, lengths):
    """([(shape, the bound of integers or 0) of each input], [shape of each output]), without the optional inputs."""
    inputs = [(shape(x.axes, lengths), int(x.below) if x.below.isdigit() else lengths.get(x.below, 0))
              for x in op.inputs if not x.optional]
    return inputs, [shape(output.axes, lengths) for output in op.outputs]


def moved(op, lengths):
    """{"forward": numbers, "backward": numbers}.  Integers, and what a row saves for the backward pass, are too few to
    count."""
    inputs, outputs = shapes(op, lengths)
    x = sum(math.prod(shape) for shape, bound in inputs if not bound)
    y = sum(map(math.prod, outputs))
    if op.name == "embedding":                  # of the table only the rows that ids name: read, or added to
        return {"forward": 2 * y, "backward": 3 * y}
    if op.name == "add_rms_norm":               # its inputs have one gradient, and their sum is saved
        return {"forward": x + y, "backward": 2 * y}
    if op.name == "layer_norm":                 # it saves the normalized x
        return {"forward": x + 2 * y, "backward": 2 * x + y}
    return {"forward": x + y, "backward": x + y + (0 if op.name in NOT_READ else x)}
