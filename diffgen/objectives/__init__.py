"""What is learned from a batch: its loss, the noise it draws, and the samplers that walk back."""

from diffgen.objectives.autoencode import Autoencode
from diffgen.objectives.base import OBJECTIVES, Batch, Objective
from diffgen.objectives.consistency import Consistency
from diffgen.objectives.denoise import Denoise
from diffgen.objectives.mean_flow import MeanFlow
from diffgen.objectives.unmask import Unmask

__all__ = ["OBJECTIVES", "Autoencode", "Batch", "Consistency", "Denoise", "MeanFlow", "Objective", "Unmask"]
