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
#: Together about half a minute.
COUNTS = {
    "checkpoints": 350,
    "histories": 150,
    "data files": 300,
    "configurations": 1200,
    "command lines": 100,
}
