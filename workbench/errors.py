"""The exceptions a user may meet, under one root.

Each message says what was got, what was expected and what to do. A fault of the program itself
is an `AssertionError`, never one of these.
"""


class WorkbenchError(Exception):
    """Root of every error that the user can mend."""


class ConfigError(WorkbenchError, ValueError):
    """A recipe, an override or a parameter is wrong; the message names the path inside it."""


class DataMissing(WorkbenchError, FileNotFoundError):
    """A corpus is not where the recipe says; the message says what to put where."""


class DataError(WorkbenchError, ValueError):
    """A corpus is there and cannot be used (empty, too short, not the promised encoding)."""


class CheckpointError(WorkbenchError, ValueError):
    """A checkpoint is torn, foreign, or belongs to another recipe."""


class CannotWrite(WorkbenchError, OSError):
    """The run folder takes no more: a full disk, a read-only place; the message says which."""


class NoBackend(WorkbenchError, RuntimeError):
    """The demanded kernel backend cannot run this call; the message lists every reason."""


class NonFiniteLoss(WorkbenchError, ArithmeticError):
    """The loss became NaN or infinite; the message names the step and the recipe."""


class ProcessLost(WorkbenchError, RuntimeError):
    """Another of the processes that train together has ended; the message says which, and why."""


class OutOfMemory(WorkbenchError, MemoryError):
    """There was not enough memory; the message names the settings to change."""


class ProcessesFailed(WorkbenchError, RuntimeError):
    """A run's processes ended too early; the message says which, how, and its last words."""


class UnknownOriginal(WorkbenchError, ValueError):
    """An original program's model, by its arguments or parameters, is not one that is known."""


class Unsupported(UnknownOriginal):
    """An original's option that is understood, and that the workbench does not have."""


class HostileFile(CheckpointError):
    """A checkpoint asks for something that reading numbers never needs; the message names it."""


class RunFolderError(WorkbenchError, ValueError):
    """A file of a run folder is not what it should be; the message names it, and what is wrong."""


class LawBroken(WorkbenchError, AssertionError):
    """A mixer breaks a law of carried state; the message says which, on what, and how."""
