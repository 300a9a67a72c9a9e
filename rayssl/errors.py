"""What can go wrong for a user, each with one clear message.

RaysslError
├── ConfigError       a recipe, an override or a command-line argument
├── DataError         a data set that is missing, unreadable or does not fit the recipe
├── CheckpointError   a checkpoint or a weights file that can't be used or written
├── TrainingError     training can't go on: the loss is not finite
├── ClusterError      Ray or MLflow can't be reached, or a worker group was lost for good
└── RunStopped        the run was told to stop (SIGTERM) and has written a checkpoint

Each message says where, the rule, the value and the way out; the `rayssl` command prints it and exits
with code 2, or 143 after a stop. Errors that are ours (a bug) are not in this tree and keep their traceback.
"""

import errno


class RaysslError(Exception):
    """Base of every error that a user can mend."""


class ConfigError(RaysslError):
    """The configuration breaks a rule; the message lists every mistake, a line each."""


class DataError(RaysslError):
    """The pictures are missing, unreadable or don't fit the recipe."""


class CheckpointError(RaysslError):
    """A checkpoint or weights file is missing, damaged or belongs to another model, or can't be written."""


class TrainingError(RaysslError):
    """Training can't go on: the loss is not finite."""


class ClusterError(RaysslError):
    """The cluster, or the tracking server, can't be reached or lost its workers for good."""


class RunStopped(RaysslError):  # noqa: N818  it is no mistake
    """The run was told to stop and has written a checkpoint."""


def full_disk(error: OSError) -> CheckpointError | None:
    """What to tell of a write that failed for want of room; None if it failed for another reason."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return None
    return CheckpointError(
        f"{error.filename or 'the disk'}: {error.strerror}. Make room; the same command then goes on from the last "
        "checkpoint."
    )
