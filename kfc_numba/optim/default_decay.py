"""Weight decay where targets are classes, by how many examples a step sees.

Parameters that predictions hardly depend on move as far in a natural gradient as any, and nothing
takes out again what noise puts into them; and predictions of classes grow ever surer, the more so
as they are learnt by heart. A little of the parameters that each step takes away lowers the errors
on other examples, and not how fast training gets to where other optimizers do. Numbers are another
matter: what is taken away of them is an error, and where training was long it came to most of the
loss. So it is with small batches, too, of which it takes many steps. Hence a part for each example:
a pass over the data takes away as much in steps of any size. Found by trying at batches from 32 to
2,048. With less, errors were highest at the largest batches; with this much the loss of what they
learn by heart stays higher in the end, but comes to that of other optimizers hardly later.

What a normalisation follows is spared: its size makes no difference to any prediction, so nothing
would hold against the decay, and weights that shrink for ever are moved the farther by the noise of
steps (van Laarhoven, 2017, "L2 regularization versus batch and weight normalization").
"""

from __future__ import annotations

from kfc_numba.graph import Graph

#: `weight_decay` for each example of a batch.
ONE_EXAMPLE = 4e-5
#: Examples after which more of them make no difference: no larger batches were tried.
MOST_EXAMPLES = 2048
#: Learning rate above which more of it makes no difference: it leaves steps to their bound.
MOST_RATE = 0.1


def decay_by_examples(examples: int, learning_rate: float) -> float:
    """Part of the parameters that a step takes away.

    Parameters
    ----------
    examples : int
        Of a batch.
    learning_rate : float

    Returns
    -------
    float
    """
    return min(learning_rate, MOST_RATE) * ONE_EXAMPLE * min(examples, MOST_EXAMPLES)


def spared(net: Graph) -> frozenset[str]:
    """Parameters of layers whose outputs go to normalisations alone.

    Parameters
    ----------
    net : Graph

    Returns
    -------
    frozenset of str
        Their names.
    """
    followers: dict[int, list[bool]] = {}
    for s in net.layers:
        for parent in s.parents:
            followers.setdefault(parent, []).append(s.layer.rescales)
    return frozenset(
        f"{s.name}.{short}"
        for s in net.layers
        if all(followers.get(s.index, [False]))
        for short in s.names
    )
