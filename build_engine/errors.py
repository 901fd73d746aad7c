"""The errors of the engine build.

EngineError           exit 1   base
├── UsageError        exit 2   options that do not go together, or a profile that is none
├── GraphError        exit 2   the bundle's graph has not the parts that the engine's graph is made from
├── TensorRTError     exit 1   TensorRT refused; carries the lines it logged
├── NotVerified       exit 1   the engine's outputs are not the bundle's
└── Unavailable       exit 3   no TensorRT module, no GPU, or the lock of the cache was not free by the deadline
"""


class EngineError(Exception):
    """Base of all errors that are raised on purpose; `exit_code` is the process's."""

    exit_code = 1


class UsageError(EngineError):
    """The message names the option, what was expected and what was found."""

    exit_code = 2


class GraphError(EngineError):
    """The ONNX graph is not one that this package can turn into an engine's graph."""

    exit_code = 2


class NotVerified(EngineError):
    """A task's outputs are too far from the expected ones; the message names the task and the rows."""


class Unavailable(EngineError):
    """What is needed is not on this machine now."""

    exit_code = 3
