"""The source text of the CUDA kernels and the variants it is compiled in.  Nothing here needs CuPy or a GPU."""
from functools import partial
from pathlib import Path

THREADS = 256                                           # at most, in a block, unless the kernel's text says otherwise
INSTALLED = Path(__file__).parent / "cuda" / "csrc"       # where setup.py puts them
FOLDER = INSTALLED if INSTALLED.exists() else Path(__file__).parent.with_name("csrc") / "cuda"
LOGITS = 2 ** 28                                        # bytes at once: 2,048 rows of 32,000 float32 numbers
REAL = {"f": "float", "d": "double"}                    # NumPy's code of a precision: C's name
AFTER = {"add_rms_norm": ["rms_norm.cu"], "attention": ["tile.cuh"], "attention_backward": ["tile.cuh"],
         "cross_entropy": ["softmax.cu"],
         "linear_cross_entropy": ["softmax.cu", "cross_entropy.cu"]}       # files that a file's text uses, and follows
WIDTHS = (32, 64, 96, 128, 192, 256)                    # compiled widths of attention heads; others are rounded up


def rows_of_a_thread(width, size, extra=False):
    """The rows of attention that a thread computes: each takes `width` / 8 numbers, and 64 registers hold them, or 32
    in the variants with EXTRA."""
    return max(1, min(16 // size, (1024 if extra else 2048) // (size * width)))


def tiles(precision, decoding=False):
    """The variants of attention: WIDTH of a head; EACH, rows of a thread, 1 for decoding; ALIGNED, 16-byte loads;
    EXTRA, what few models use: see tile.cuh."""
    size = {"f": 4, "d": 8}[precision]
    most = {width: rows_of_a_thread(width, size) for width in WIDTHS}
    plain = [{"WIDTH": width, "EACH": each, "ALIGNED": aligned} for width in WIDTHS
             for each in sorted({most[width], 1 if decoding else most[width]}) for aligned in (0, 1)]
    return plain + [{"WIDTH": width, "EACH": rows_of_a_thread(width, size, extra=True), "ALIGNED": aligned, "EXTRA": 1}
                    for width in WIDTHS for aligned in (0, 1)]


VARIANTS = {"attention": partial(tiles, decoding=True), "attention_backward": tiles}


def files():
    """The names of the .cu files, without the suffix."""
    return sorted(path.stem for path in FOLDER.glob("*.cu"))


def text(file):
    """csrc/cuda/<file>.cu, preceded by the files it uses.

    There is no #include, because CuPy recompiles a kernel only if its own text changes.
    """
    names = ["real.cuh", *AFTER.get(file, []), f"{file}.cu"]
    return "".join(f'#line 1 "{name}"\n{(FOLDER / name).read_text("utf-8")}' for name in names)


def variants(file, precision):
    """The macros of each variant of a file in the precision "f" or "d": a list of {name: value}."""
    return VARIANTS[file](precision) if file in VARIANTS else [{}]


def options(precision, defines):
    """The compiler's options for one variant."""
    return ("-std=c++17", f"-Dreal={REAL[precision]}", *(f"-D{name}={value}" for name, value in defines.items()))
