"""GGUF files, byte by byte, so that a test can write what no program would."""
import struct


def text(content):
    """A string."""
    encoded = content if isinstance(content, bytes) else content.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def key(name, kind, payload):
    """A key with a value of a type by its number."""
    return text(name) + struct.pack("<I", kind) + payload


def info(name, shape, kind=0, offset=0):
    """A tensor's entry; the shape in the order of the file."""
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def file(keys=(), infos=(), data=b"", version=3, counts=None, alignment=32):
    """A whole file."""
    content = b"GGUF" + struct.pack("<IQQ", version, *(counts or (len(infos), len(keys)))) + b"".join([*keys, *infos])
    return content.ljust(-(-len(content) // alignment) * alignment, b"\0") + data
