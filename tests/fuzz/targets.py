"""The kinds of cases, and how many of each a run of the tests does."""

from .checkpoints import Checkpoints
from .command_lines import CommandLines
from .configurations import Configurations
from .data_files import DataFiles
from .histories import Histories

TARGETS = {
    target.name: target
    for target in (Checkpoints, Histories, DataFiles, Configurations, CommandLines)
}
#: Together about a minute on two cores.
COUNTS = {
    "checkpoints": 600,
    "histories": 250,
    "data files": 500,
    "configurations": 2000,
    "command lines": 150,
}
