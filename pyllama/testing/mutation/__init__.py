"""The mutation engine: small bugs in Python functions, planted one at a time while tests run in forked processes.

    operators.py    the bugs that an operator, a number, a call or a return statement may have
    mutants.py      each as the text of the function with the bug
    planting.py     put such a text into the function object, so that every importer has the bug
    watching.py     see each call of a function; compare a mutant's results with the original's
    forks.py        run functions in forked processes, some at a time
    suite.py        collect tests with pytest once, and run them again and again
    target.py       a user's function by its name, and its mutants
    trial.py        a test on every bug, and on many seeds without one

The parts that the tests of pyllama itself need, C and CUDA sources among them, are in tests/mutate.
"""
