"""Couplings: data in, noise paired with it out. x is never reordered."""

from immiscible_diffusion.couplings._data_points import data_points, prepared
from immiscible_diffusion.couplings._drop_in import DropIn, Rows
from immiscible_diffusion.couplings._measured_start import measured_prior
from immiscible_diffusion.couplings._misuse import MisuseWarning
from immiscible_diffusion.couplings.assignment import Assignment, assign, assign_index, couple
from immiscible_diffusion.couplings.cached import Cached
from immiscible_diffusion.couplings.conditional import Conditional, assign_conditional
from immiscible_diffusion.couplings.flipped import Flipped
from immiscible_diffusion.couplings.greedy import Greedy, greedy_index
from immiscible_diffusion.couplings.independent import Independent
from immiscible_diffusion.couplings.joint import Joint
from immiscible_diffusion.couplings.nearest import Nearest, nearest
from immiscible_diffusion.couplings.oversampled import Oversampled, oversample
from immiscible_diffusion.couplings.rotated import Rotated
from immiscible_diffusion.couplings.scheduled import Mixed, Warmup
from immiscible_diffusion.couplings.semidiscrete import Cells, Semidiscrete, assign_data, fit_dual
from immiscible_diffusion.couplings.sinkhorn import Sinkhorn, sinkhorn_index
from immiscible_diffusion.couplings.viewed import Viewed
from immiscible_diffusion.couplings.windowed import Windowed, assign_window
from immiscible_diffusion.prefetch import ahead

__all__ = [
    "Assignment",
    "Cached",
    "Cells",
    "Conditional",
    "DropIn",
    "Flipped",
    "Greedy",
    "Independent",
    "Joint",
    "MisuseWarning",
    "Mixed",
    "Nearest",
    "Oversampled",
    "Rotated",
    "Rows",
    "Semidiscrete",
    "Sinkhorn",
    "Viewed",
    "Warmup",
    "Windowed",
    "ahead",
    "assign",
    "assign_conditional",
    "assign_data",
    "assign_index",
    "assign_window",
    "couple",
    "data_points",
    "fit_dual",
    "greedy_index",
    "measured_prior",
    "nearest",
    "oversample",
    "prepared",
    "sinkhorn_index",
]
