"""How the tests are shared out among processes, which compile beside each other."""

import itertools
import os

#: Each takes a gigabyte or two, and compiles some kernels that another is compiling.
MOST = 4


def share_out(option, whole):
    """Ask pytest-xdist for processes, if these are all tests and nothing says how many (``-n``).

    What the command line names begins at once, in this process.
    """
    if getattr(option, "numprocesses", 0) is not None:  # it is said, or there is no xdist
        return
    if whole and not (option.collectonly or option.usepdb or option.keyword or option.markexpr):
        option.numprocesses = min(os.cpu_count() or 1, MOST)
        option.dist = "loadfile"  # what fixtures make is for the tests of a file
        option.loadscopereorder = False


def from_both_ends(items):
    """Tests by file, alternately from the first and from the last.

    So two processes seldom need the same kernels at the same time.
    """
    files = [list(group) for _, group in itertools.groupby(items, lambda item: item.path)]
    order = []
    while files:
        order += files.pop(0)
        if files:
            order += files.pop()
    return order
