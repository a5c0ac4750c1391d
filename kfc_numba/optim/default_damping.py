"""Damping by how much the curvature has been estimated from.

A factor that is the mean over n examples errs in each direction by about 1 / sqrt(n) of itself, and
where the true curvature is below that, its inverse follows noise. Damping covers it, and need be no
more than it takes: batches of 512 are served best by about a thirtieth of what batches of 8 need,
and later steps by less than the first ones. The factor, and after how many batches n is no longer
counted, were found by trying at batches from 8 to 2048: the factors' running averages forget. The
batches before are taken to be as large as that of the step: a running average of their sizes made
no difference where the last batch of each pass had a single example.
"""

from __future__ import annotations

from kfc_numba.graph import Graph
from kfc_numba.optim.examples import sample_size

#: Damping if the curvature were of one example.
ONE_EXAMPLE = 0.2
#: Batches after which more of them make no difference.
MOST_BATCHES = 30
#: Before the first step, where damping is adapted after it.
FIRST = 2e-4


def damping_by_examples(net: Graph, examples: int, wanted: int | None, batches: int) -> float:
    """Damping, in units of the Fisher matrix.

    Parameters
    ----------
    net : Graph
    examples : int
        Of a batch.
    wanted : int or None
        From how many of them curvature is estimated, see `kfc_numba.optim.examples.sample_size`.
    batches : int
        From which it has been estimated so far, 1 or more.

    Returns
    -------
    float
    """
    size = sample_size(net, examples, wanted)
    return ONE_EXAMPLE / (size * min(batches, MOST_BATCHES))
