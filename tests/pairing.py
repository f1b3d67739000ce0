"""The couplings that pair a batch by themselves; one that is prepared with a whole data set has tests of its own."""

from immiscible_diffusion.registry import lookup, names

PAIRING = [name for name in names("coupling") if not hasattr(lookup("coupling", name), "prepare")]
