"""The errors of the service.

    EnricherError
    ├── SettingsError          exit 2   a setting is wrong
    ├── BundleError (model)    exit 2   the model bundle is not what its manifest says
    ├── DependencyUnavailable  waited for; exit 3 when its deadline passes
    ├── CircuitOpen            exit 4   too many rejects: stopped by its own breaker
    ├── TransactionAborted     rewound to the last commit and done again
    ├── DeviceLost (inference) exit 1   the GPU or its context is gone: restart clean
    ├── DrainIncomplete        exit 1   the grace period ended before the work in flight; it is read again
    └── Fenced                 exit 1   another process took over, or the client cannot go on: restart clean

A record that cannot be processed is none of these: it is a value, `records.Rejected`.
"""


class EnricherError(Exception):
    """Base of all errors that the service raises on purpose; `exit_code` is the process's."""

    exit_code = 1


class SettingsError(EnricherError):
    """A setting is wrong; the message names it, what was expected and what was found."""

    exit_code = 2


class DependencyUnavailable(EnricherError):
    """Kafka, the registry or the store did not answer; worth trying again.

    Args:
        dependency: "kafka", "schema_registry" or "redis".
        reason: what the client said.
    """

    exit_code = 3

    def __init__(self, dependency: str, reason: str) -> None:
        self.dependency = dependency
        self.reason = reason.rstrip(".")
        super().__init__(f"{dependency} is not available: {self.reason}")


class CircuitOpen(EnricherError):
    """Too large a share of the last records was rejected; going on would drain the topic into dead letters."""

    exit_code = 4


class TransactionAborted(EnricherError):
    """The open transaction was aborted; what was in it must be read and processed again."""


class Fenced(EnricherError):
    """The producer cannot go on (fenced or fatal); only a restart helps."""


class DrainIncomplete(EnricherError):
    """The grace period ended before what was in flight; nothing of it is committed, so it is read again."""
