"""The search: which params to try next, by what is known of those that were tried. Pure.

By numpy and scipy; scikit-optimize is loaded only where it is asked for.

Everything here minimises: whoever maximises hands over values with their sign turned. Nothing keeps state between
calls: a decision is a function of the space, the trials so far and a seed, so that it can be replayed.
"""
