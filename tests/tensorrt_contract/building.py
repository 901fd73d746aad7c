"""Builds with `tensorrt_rtx`, which needs no GPU, as if it were `tensorrt`, and prints as JSON what our code asked of it."""

import json
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from build_engine.build import Options, compile_engine
from build_engine.errors import EngineError
from build_engine.flavour import Flavour, Gpu, find_flavour
from build_engine.precision import engine_graph
from tests.tensorrt_contract.recorder import Use, record


def main() -> int:
    real, uses = find_flavour("tensorrt_rtx"), set[Use]()
    recorded = Flavour("tensorrt", real.version, record(real.trt, uses))
    graph = engine_graph(Path(sys.argv[1]), precision="fp16", tokens=320).SerializeToString()
    gpu = Gpu("8.9", "any")
    compile_engine(recorded, graph, Options(), gpu=gpu)
    every_option = Options(workspace_mib=64, hardware_compatibility="ampere_plus", version_compatible=True)
    with suppress(EngineError):  # it has options that this flavour does not keep; by then they were asked for
        compile_engine(recorded, graph, every_option, gpu=gpu)
    with suppress(EngineError):
        compile_engine(recorded, b"no graph", Options(), gpu=gpu)
    print(json.dumps([asdict(use) for use in sorted(uses)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
