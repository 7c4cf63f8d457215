"""The text of the CUDA kernels, and all that it is compiled for.  Nothing here needs CuPy or a GPU."""
from functools import partial
from pathlib import Path

THREADS = 256                                           # of a block, at most, where a kernel's text does not say
INSTALLED = Path(__file__).parent / "cuda" / "csrc"       # setup.py puts them there
FOLDER = INSTALLED if INSTALLED.exists() else Path(__file__).parent.with_name("csrc") / "cuda"
LOGITS = 2 ** 28                                        # bytes of them at once: 2,048 rows of 32,000 float32 numbers
REAL = {"f": "float", "d": "double"}                    # NumPy's letter of a precision: C's name
AFTER = {"add_rms_norm": ["rms_norm.cu"], "attention": ["tile.cuh"], "attention_backward": ["tile.cuh"],
         "cross_entropy": ["softmax.cu"],
         "linear_cross_entropy": ["softmax.cu", "cross_entropy.cu"]}       # what a file's text follows: it uses that


WIDTHS = (32, 64, 96, 128, 192, 256)                    # of attention's heads, each rounded up to one of these


def rows_of_a_thread(width, size):
    """In attention: a row's result takes `width` / 8 numbers of a thread, which has 64 registers."""
    return max(1, min(16 // size, 2048 // (size * width)))


def tiles(precision, decoding=False):
    """Of attention: a head's width; the rows of a thread, or one for decoding; are loads of 16 bytes?"""
    most = {width: rows_of_a_thread(width, {"f": 4, "d": 8}[precision]) for width in WIDTHS}
    return [{"WIDTH": width, "EACH": each, "ALIGNED": aligned} for width in WIDTHS
            for each in sorted({most[width], 1 if decoding else most[width]}) for aligned in (0, 1)]


def quantized(precision):
    return [{"BITS": bits, "ROWS": rows} for bits in (4, 8) for rows in (1, 2, 4)]


VARIANTS = {"attention": partial(tiles, decoding=True), "attention_backward": tiles, "quant_matvec": quantized}


def files():
    """Their names, without ".cu"."""
    return sorted(path.stem for path in FOLDER.glob("*.cu"))


def text(file):
    """csrc/cuda/<file>.cu behind all that it needs: nothing is included, for CuPy knows a kernel by its text alone."""
    names = ["real.cuh", *AFTER.get(file, []), f"{file}.cu"]
    return "".join(f'#line 1 "{name}"\n{(FOLDER / name).read_text("utf-8")}' for name in names)


def variants(file, precision):
    """All that a file is compiled for in the precision "f" or "d": a list of {name: value}."""
    return VARIANTS[file](precision) if file in VARIANTS else [{}]


def options(precision, defines):
    """The compiler's."""
    return ("-std=c++17", f"-Dreal={REAL[precision]}", *(f"-D{name}={value}" for name, value in defines.items()))
