"""Training: the options, the state, and the loop."""

from immiscible_diffusion.checks import NotFiniteError
from immiscible_diffusion.train.loop import fit
from immiscible_diffusion.train.options import Train
from immiscible_diffusion.train.state import State, new_state, teacher_of

__all__ = ["NotFiniteError", "State", "Train", "fit", "new_state", "teacher_of"]
