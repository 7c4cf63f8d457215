"""Small plausible bugs in the C kernels, one at a time, found in their tokens; and how to run a kernel that has one.

A mutated kernel is compiled by itself in a second, and hung into the table of kernels of the extension module that is
loaded already.  The sources are only read.
"""
import ctypes
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pyllama.testing.mutation.mutants import Mutant, numbered
from tests.mutate.python_mutants import ROOT

TOKEN = re.compile(r"""/\*.*?\*/ | ^[ ]*\#(?:[^\n\\]|\\.)*                                  # comments, directives
                     | 0x[\da-f.]+(?:p[+-]?\d+)?[fu]* | [\d.]+(?:e[+-]?\d+)?[fu]* | \w+     # numbers, names
                     | <<= | >>= | [-+*/&|^<>=!]= | \+\+ | -- | -> | << | >> | && | \|\| | \S""",
                   re.VERBOSE | re.DOTALL | re.MULTILINE | re.IGNORECASE)
LEVEL = {"*": 3, "/": 3, "+": 2, "-": 2, "<<": 1, ">>": 1}                # how tightly they bind
INSTEAD = {"+": ["-"], "-": ["+"], "*": ["/"], "/": ["*"], "<<": [">>"], ">>": ["<<"], "&&": ["||"], "||": ["&&"],
           "<": ["<=", ">="], "<=": ["<", ">"], ">": [">=", "<="], ">=": [">", "<"], "==": ["!="], "!=": ["=="],
           "+=": ["-=", "="], "-=": ["+=", "="], "*=": ["/=", "="], "/=": ["*=", "="]}
NO_OPERAND = {"const", "static", "inline", "void", "int", "unsigned", "char", "float", "double", "real", "word", "idx",
              "size_t", "restrict", "typedef", "enum", "struct", "return", "case", "else", "for", "if", "while"}
FLAGS = ["-O0", "-std=gnu11", "-fno-trapping-math", "-fno-math-errno", "-fopenmp", "-shared", "-fPIC", "-DGRAIN=1"]
THREADS = 2                                             # and GRAIN = 1: small problems are cut among them, too
SECOND_CACHE = 57344                                    # bytes: of B two panels are packed at a time, no more


class Token(NamedTuple):
    text: str
    start: int
    end: int


def mutants_of(path: Path) -> Iterator[Mutant]:
    """Those of a file of csrc/cpu/."""
    yield from mutants_in(path.read_text(), path.name, str(path.relative_to(ROOT)))


def mutants_in(source: str, unit: str, file: str) -> Iterator[Mutant]:
    yield from numbered(sorted(changes(source), key=lambda change: change[0]), unit, file, source)


def changes(source: str) -> Iterator[tuple[int, str, str, str, str, str]]:
    """(line, function, line of code before, after, the file's text with this change), in any order"""
    tokens = [Token(m[0], m.start(), m.end()) for m in TOKEN.finditer(source) if not re.match(r" *#|/\*", m[0])]
    functions = functions_around(tokens)
    for first, last, text in edits(tokens):
        start, end = tokens[first].start, tokens[last].end
        left, right = source.rfind("\n", 0, start) + 1, source.find("\n", end)
        before, after = squeeze(source[left:right]), squeeze(source[left:start] + text + source[end:right])
        if "__builtin_prefetch" in before:              # prefetching changes no result
            continue
        line, code = source.count("\n", 0, start) + 1, source[:start] + text + source[end:]
        yield line, functions[first], before, before, after, code


def squeeze(text):
    return " ".join(re.sub(r"/\*.*?\*/", "", text).split())


def functions_around(tokens):
    """For each token the name of the function it stands in; "constants" outside."""
    names, name, depth = [], "constants", 0
    for i, (text, *_) in enumerate(tokens):
        if text == "{" and not depth and tokens[i - 1].text == ")":
            opened = next(j for j in range(i - 1, 0, -1) if tokens[j].text == "(" and closing(tokens, j) == i - 1)
            name = tokens[opened - 1].text
        depth += (text == "{") - (text == "}")
        names.append(name)
        name = name if depth else "constants"
    return names


def edits(tokens) -> Iterator[tuple[int, int, str]]:
    """(first token, last token, what to put in their place)"""
    for i, (text, *_) in enumerate(tokens):
        if text in INSTEAD and text not in LEVEL:
            yield from ((i, i, other) for other in INSTEAD[text])
        elif re.match(r"\d", text):
            yield from ((i, i, other) for other in other_numbers(text))
    binary = set()
    for operands, operators in chains(tokens, 0, len(tokens)):
        binary |= {*operators}
        yield from lost_operands(tokens, operands, operators)
        for i in operators:
            yield from ((i, i, other) for other in INSTEAD[tokens[i].text])
    yield from ((i, i, "") for i, token in enumerate(tokens) if token.text == "-" and i not in binary)
    yield from lost_statements(tokens)


def other_numbers(text):
    if text.isdigit():
        yield from {str(int(text) + 1), str(abs(int(text) - 1))}
    else:
        yield f"(2 * {text})"


def chains(tokens, i, end) -> Iterator[tuple[list[tuple[int, int]], list[int]]]:
    """Every run of operands (first token, end) with operators between, a + b[i] * f(c), and those within brackets."""
    while i < end:
        if not begins_operand(tokens, i):
            i += 1
            continue
        operands, operators, start = [], [], i
        while True:
            after = operand_end(tokens, i)
            operands.append((i, after))
            if after >= end or tokens[after].text not in LEVEL:
                break
            operators.append(after)
            i = after + 1
        yield operands, operators
        i = start
        while i < after:
            inner = closing(tokens, i) if tokens[i].text in "([" else i
            yield from chains(tokens, i + 1, inner)
            i = inner + 1


def begins_operand(tokens, i):
    text = tokens[i].text
    return text in ("-", "(") or (re.match(r"\w", text) and text not in NO_OPERAND)


def operand_end(tokens, i):
    while tokens[i].text == "-":
        i += 1
    if tokens[i].text == "(":
        end = closing(tokens, i) + 1
        if all(t.text in NO_OPERAND | {"*"} for t in tokens[i + 1:end - 1]):
            return operand_end(tokens, end)                              # a cast and what it converts
        i = end - 1
    i += 1
    while tokens[i].text in ("(", "["):
        i = closing(tokens, i) + 1
    return i


def closing(tokens, i):
    """The bracket that closes the one at i."""
    depth = 0
    while True:
        depth += (tokens[i].text in ("(", "[")) - (tokens[i].text in (")", "]"))
        if not depth:
            return i
        i += 1


def lost_operands(tokens, operands, operators):
    """a + b * c → a, b * c, a + b, a + c"""
    levels = [LEVEL[tokens[i].text] for i in operators]
    for k, (i, level) in enumerate(zip(operators, levels, strict=True)):
        right = next((j for j in range(k + 1, len(levels)) if levels[j] <= level), len(levels))
        left = next((j for j in range(k - 1, -1, -1) if levels[j] <= level), -1)
        yield i, operands[right][1] - 1, ""
        if tokens[i].text in "+-*" and (left < 0 or levels[left] < level):
            yield operands[left + 1][0], i - (tokens[i].text == "-"), ""


def lost_statements(tokens):
    """x += y; → ;   and calls; a declaration cannot be missed without the compiler's notice."""
    headers, begins = [], False                                          # does a for or an if stand before the bracket?
    for i, (text, *_) in enumerate(tokens):
        if begins and not headers and re.match(r"[^\W\d]", text) and text not in NO_OPERAND:
            yield i, next(j for j in range(i, len(tokens)) if tokens[j].text == ";") - 1, ""
        begins = text in (";", "{", "}")
        if text in ("(", "["):
            headers.append(tokens[i - 1].text in ("for", "if", "while"))
        elif text in (")", "]"):
            begins = headers.pop()


def plant(mutant: Mutant | None, folder: Path) -> bool:
    """Compile csrc/ with the bug, or without, and let the loaded extension run that; False if it does not compile."""
    from pyllama import cpu

    shutil.copytree(ROOT / "csrc", folder / "csrc")
    if mutant:
        (folder / "csrc/cpu" / mutant.unit).write_text(mutant.code)
    (folder / "dispatch.c").write_text(f"void *blas_gemm[2]; long second_cache = {SECOND_CACHE};")  # all a table needs
    tables = (ctypes.c_void_p * 3).in_dll(ctypes.CDLL(cpu.__file__), "kernels_of")
    for i, real in enumerate(("32", "64", "16")):
        library = folder / f"kernels{real}.so"
        command = [*sysconfig.get_config_var("CC").split(), *FLAGS, f"-DREAL={real}", "-DISA=mutant",
                   f"-I{folder}/csrc", f"{folder}/csrc/cpu/table.c", f"{folder}/csrc/cpu/team.c",
                   f"{folder}/dispatch.c", "-o", str(library), "-lm"]
        if subprocess.run(command, capture_output=True).returncode:
            return False
        tables[i] = ctypes.addressof(ctypes.c_char.in_dll(ctypes.CDLL(str(library)), f"kernels_{real}_mutant"))
    cpu._after_fork(had_threads=False)                  # the hunt's own process runs no kernel
    cpu.set_threads(THREADS)
    return True
