"""Every table, by config group: all that a config can name, and that a plugin can add to."""

from diffgen.core.registry import Table
from diffgen.data import DATASETS
from diffgen.data.kinds import KINDS
from diffgen.diffusion.parameterizations import PARAMETERIZATIONS
from diffgen.diffusion.samplers import SAMPLERS
from diffgen.diffusion.samplers.mean_flow import JUMPERS
from diffgen.diffusion.samplers.prior import PRIORS
from diffgen.diffusion.samplers.unmasking import UNMASKERS
from diffgen.diffusion.schedules import SCHEDULES
from diffgen.diffusion.tasks import TASKS
from diffgen.diffusion.times import TIMES
from diffgen.diffusion.weightings import WEIGHTINGS
from diffgen.evaluation.extractors import EXTRACTORS
from diffgen.nets import MODELS
from diffgen.nets.optimizers import OPTIMIZERS
from diffgen.objectives import OBJECTIVES
from diffgen.training.loggers import LOGGERS
from diffgen.tuning.tune import TUNES

TABLES: dict[str, Table] = {
    table.group: table
    for table in (
        *(DATASETS, KINDS, MODELS, OPTIMIZERS, OBJECTIVES, SCHEDULES, PARAMETERIZATIONS, WEIGHTINGS, TIMES),
        *(SAMPLERS, TASKS, TUNES, EXTRACTORS, LOGGERS),
    )
}

ALL: tuple[Table, ...] = (*TABLES.values(), UNMASKERS, PRIORS, JUMPERS)
"""Those, and the samplers of tokens, autoencoders and mean flows, of one group with the others: names are unique."""


def table_of(group: str, name: str) -> Table:
    """The table of a group that has a row of this name, or else the first."""
    of_group = [table for table in ALL if table.group == group]
    return next((table for table in of_group if name in table), of_group[0])
