"""Why the process ends, where Kubernetes looks for it: the container's termination message.

The file is there in every pod (`terminationMessagePath`, by default this one) and nowhere else, so outside of a pod nothing is
written. What kills the process from outside (an out-of-memory kill) leaves no words; Kubernetes names that itself.
Source: kubernetes.io/docs/tasks/debug/debug-application/determine-reason-pod-failure.
"""

from pathlib import Path

DEFAULT_FILE = Path("/dev/termination-log")
_BYTES_MAX = 4_096  # Kubernetes cuts there


def leave(words: str, file: Path) -> bool:
    """Writes the message where the file exists; returns whether. Never raises: the process is ending for another reason."""
    try:
        with file.open("r+b") as message:  # not created where it is missing
            message.write(words.encode(errors="replace")[:_BYTES_MAX])
            message.truncate()
    except OSError:
        return False
    return True
