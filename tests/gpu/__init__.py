"""Everything that wants a GPU, with one command, on a machine that has just Python, a driver and what was carried there.

    python -m tests.gpu carry --to DIR --python 3.12     # with a network: wheels and TensorRT's libraries, in parts
    python -m tests.gpu --wheels DIR --out results.json   # on the GPU machine, without a network

The command itself needs the standard library alone. Each step is a process of its own: one that fails, crashes or takes too long
is said and leaves the others running; the exit code is then 1. On the software CUDA driver the same command runs through, and
keeps no figure.
"""
