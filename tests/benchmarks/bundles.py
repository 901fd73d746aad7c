"""Bundles for benchmarks: the shipped one's features, tasks and labels around another graph.

shipped   the model itself
small     a table of 4,096 × 64, summed over the tokens, and two layers of 512: little work, still a model
free      the same answer for every listing: what is left is the service
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from consumer.inference.onnx import OnnxRuntimeBackend
from model.bundle import GOLDEN, GRAPH, VOCABULARY, Bundle, Manifest, TensorSpec, save_golden, write_bundle

ModelSize = Literal["shipped", "small", "free"]
SHIPPED = Path(__file__).resolve().parents[2] / "model" / "bundles" / "books"
_ROWS, _EMBEDDED, _WIDTH = 4096, 64, 512
_ONNX_TYPES = {"int32": TensorProto.INT32, "float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8}
Nodes = tuple[list[onnx.NodeProto], list[onnx.TensorProto]]


def bundle_of(size: ModelSize, folder: Path, *, tasks: int | None = None) -> Bundle:
    """The bundle, written into `folder` unless it is the shipped one; with so many tasks, the shipped ones' in turn."""
    shipped = Bundle.load(SHIPPED)
    if size == "shipped":
        return shipped
    make: Callable[[Manifest], Nodes] = {"small": _small, "free": _free}[size]
    manifest = shipped.manifest if tasks is None else _with_tasks(shipped.manifest, tasks)
    features, _ = shipped.golden()

    def fill(unfinished: Path) -> Manifest:
        onnx.save(_model(manifest, *make(manifest)), unfinished / GRAPH)
        shutil.copy(shipped.path / VOCABULARY, unfinished / VOCABULARY)
        backend = OnnxRuntimeBackend(unfinished / GRAPH, threads=1)
        save_golden(unfinished / GOLDEN, features, backend.infer(features.as_feed()))
        return manifest.model_copy(update={"name": size, "files": {}})

    return write_bundle(folder / size, fill)


def _with_tasks(manifest: Manifest, count: int) -> Manifest:
    shapes = {output.name: output.shape for output in manifest.outputs}
    taken = [manifest.tasks[number % len(manifest.tasks)] for number in range(count)]
    tasks = tuple(task.model_copy(update={"name": f"{task.name}_{number}"}) for number, task in enumerate(taken))
    outputs = tuple(
        TensorSpec(name=task.name, dtype="float32", shape=shapes[former.name]) for task, former in zip(tasks, taken, strict=True)
    )
    return manifest.model_copy(update={"tasks": tasks, "outputs": outputs, "reference": {}})


def _model(manifest: Manifest, nodes: list[onnx.NodeProto], constants: list[onnx.TensorProto]) -> onnx.ModelProto:
    def tensors(specs: tuple[TensorSpec, ...]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(spec.name, _ONNX_TYPES[spec.dtype], list(spec.shape)) for spec in specs]

    graph = helper.make_graph(nodes, "bench", tensors(manifest.inputs), tensors(manifest.outputs), constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def _free(manifest: Manifest) -> Nodes:
    nodes = [
        helper.make_node("Shape", ["token_ids"], ["batch"], start=0, end=1),
        helper.make_node("Concat", ["batch", "one"], ["rows"], axis=0),
    ]
    constants = [numpy_helper.from_array(np.ones(1, np.int64), "one")]
    for output in manifest.outputs:
        answer = np.full((1, int(output.shape[1])), 1 / int(output.shape[1]), np.float32)
        constants.append(numpy_helper.from_array(answer, f"{output.name}_answer"))
        nodes.append(helper.make_node("Expand", [f"{output.name}_answer", "rows"], [output.name]))
    return nodes, constants


def _small(manifest: Manifest) -> Nodes:
    random = np.random.default_rng(7)
    widths = [int(output.shape[1]) for output in manifest.outputs]

    def weights(*shape: int) -> NDArray[np.float32]:
        return (random.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)

    values = {
        "rows": np.array(_ROWS, np.int32),
        "table": weights(_ROWS, _EMBEDDED),
        "axis": np.array([1], np.int64),
        "last": np.array([2], np.int64),
        "w1": weights(_EMBEDDED, _WIDTH),
        "w2": weights(_WIDTH, _WIDTH),
        "w3": weights(_WIDTH, sum(widths)),
        "widths": np.array(widths, np.int64),
    }
    nodes = [
        helper.make_node("Mod", ["token_ids", "rows"], ["ids"]),
        helper.make_node("Gather", ["table", "ids"], ["vectors"]),
        helper.make_node("Unsqueeze", ["token_weights", "last"], ["weights"]),
        helper.make_node("Mul", ["vectors", "weights"], ["weighted"]),
        helper.make_node("ReduceSum", ["weighted", "axis"], ["summed"], keepdims=0),
        helper.make_node("MatMul", ["summed", "w1"], ["h1"]),
        helper.make_node("Relu", ["h1"], ["r1"]),
        helper.make_node("MatMul", ["r1", "w2"], ["h2"]),
        helper.make_node("Relu", ["h2"], ["r2"]),
        helper.make_node("MatMul", ["r2", "w3"], ["all"]),
        helper.make_node("Split", ["all", "widths"], [f"{output.name}_raw" for output in manifest.outputs], axis=1),
        *(helper.make_node("Softmax", [f"{output.name}_raw"], [output.name], axis=1) for output in manifest.outputs),
    ]
    return nodes, [numpy_helper.from_array(value, name) for name, value in values.items()]
