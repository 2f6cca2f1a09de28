"""How probable a target must be for its edit to stick: the less, the more keys of edits are held.

A layer has room for as many keys as it has inputs. What edits that disturb least do to any other key grows
with the root of the share of this room that they take, times the margins by which their targets win. An edit
alone can have all the margin that paraphrases ask for; among hundreds the same margin costs other facts.
"""

from math import exp, log, log1p, sqrt

_TINY = 1e-9


def sticks_at(until: float, crowded: float, filled: float) -> float:
    """Return the probability at which an edit sticks, between ``until`` and ``crowded`` by its log-odds.

    Args:
        until: of an edit alone.
        crowded: of edits that fill a layer.
        filled: keys of edits, earlier ones included, as a share of the layer's inputs; more than 1 is 1.
    """
    if crowded == until:
        return until
    share = sqrt(min(filled, 1.0))
    odds = (1 - share) * _log_odds(until) + share * _log_odds(crowded)
    return 1 / (1 + exp(-odds))


def far_enough(probability: float) -> float:
    """Return the loss at which a search has gone far enough for an edit to stick at a probability.

    That is half of the NLL there: the write that follows does not bring a value all the way.

    Args:
        probability: at which it sticks.
    """
    return -log(max(probability, _TINY)) / 2


def _log_odds(probability: float) -> float:
    inside = min(max(probability, _TINY), 1 - _TINY)
    return log(inside) - log1p(-inside)
