"""Couplings: data in, noise paired with it out. x is never reordered."""

from immiscible_diffusion.couplings.assignment import Assignment, assign, assign_index
from immiscible_diffusion.couplings.independent import Independent
from immiscible_diffusion.couplings.nearest import Nearest, nearest

__all__ = ["Assignment", "Independent", "Nearest", "assign", "assign_index", "nearest"]
