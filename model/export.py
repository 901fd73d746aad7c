"""The trained network to the ONNX graph that serves it.

Token ids are int32 and gathered from rows of four bits a number with a scale each (text_sum.py); covers are uint8 and
normalised inside, and calibration is part of the graph. Which words a listing begins with is read from the token ids, too
(word_order.py). There is no EmbeddingBag, NonZero, If or Loop, which TensorRT does not parse or runs badly.
"""

import collections
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnxscript import opset18
from torch import Tensor, nn
from torch.nn import functional

from model.bundle import TensorSpec
from model.calibrate import Calibration, bend_factors, beside_rivals, in_its_band
from model.features import PAD_ID, Features, FeatureSettings
from model.leaning import Leaning
from model.network import NARROWED_FROM, Network
from model.steps import column_steps
from model.table import DIGIT_BITS, quantised
from model.tasks import Task
from model.text_sum import weighted_sum
from model.word_order import READ, WordOrder

OPSET = 18
# The covers' own first dimension: those of the batch's first rows, all of them or none, since the convolutions of covers that
# are not there would be most of the work. See `bundle.FEWEST_COVERS`.
COVERS = "leading_covers"
INPUTS = ("token_ids", "token_weights", "cover", "cover_present")
_COMPARED_ROWS = 128
_PLAIN = Calibration()


class ServingGraph(nn.Module):
    """What is exported: table, network and calibration; one output for each task, and the embedding."""

    def __init__(
        self,
        network: Network,
        table: NDArray[np.float32],
        tasks: Sequence[Task],
        calibrations: Mapping[str, Calibration],
        leanings: Mapping[str, Leaning],
        *,
        words: NDArray[np.int32] | None = None,
    ) -> None:
        """Takes a network apart from its table.

        Args:
            words: int32 [table rows], which word each row is to a network that reads words in order.
        """
        super().__init__()
        if network.word_order is not None:
            assert words is not None
            self.register_buffer("words", torch.from_numpy(words))  # int32 [rows]
            self.register_buffer("word_vectors", network.word_order.vectors.detach().half())  # float16 [1 + words, 48]
        rows, scales = quantised(table)
        self.register_buffer("table", torch.from_numpy(rows))  # uint8 [rows, D / 2]
        self.register_buffer("scales", torch.from_numpy(scales))  # float32 [rows]
        self.network = network
        self._tasks = tuple(tasks)
        self._calibrations = dict(calibrations)
        self._leanings = dict(leanings)
        # Many tasks are many small steps: what can be done for all columns, or all bends, together is.
        plain = [_PLAIN if task.entry.kind == "regression" else calibrations[task.name] for task in tasks]
        widths = torch.tensor([task.width for task in tasks])
        for name in ("scale", "shift"):
            each = torch.tensor([getattr(one, name) for one in plain], dtype=torch.float32)
            self.register_buffer(f"{name}_of_column", each.repeat_interleave(widths))  # [K]
        self._bent = [task.name for task, one in zip(tasks, plain, strict=True) if any(one.bend)]
        self.register_buffer("bends", torch.tensor([calibrations[name].bend for name in self._bent]).reshape(-1, 3))  # [bent, 3]

        multi = [task for task in tasks if task.entry.kind == "multi"]
        self._multi = [task.name for task in multi]
        self.register_buffer("rivals", torch.tensor([calibrations[name].rivals for name in self._multi]).reshape(-1, 3))
        owner = torch.repeat_interleave(torch.tensor([task.width for task in multi], dtype=torch.int64))
        self.register_buffer("task_of_label", torch.eye(len(multi))[owner])  # [labels, multi]

    def forward(self, token_ids: Tensor, token_weights: Tensor, cover: Tensor, cover_present: Tensor) -> tuple[Tensor, ...]:
        """Args as in `Features`; returns the tasks' outputs in their order, then the embedding.

        Returns:
            single, ordinal, multi: probabilities float32 [B, labels]; regression: value, low and high [B, 3];
            embedding: float32 [B, E] of length one.
        """
        text = weighted_sum(self.get_buffer("table"), self.get_buffer("scales"), token_ids, token_weights)  # [B, D]
        seen = self.network.cover_branch(cover)  # [C, 96], of the first rows
        seen = torch.cat([seen, torch.zeros(1, seen.shape[1])])  # [C + 1, 96], the last for the rows after them
        cover_of = torch.arange(token_ids.shape[0]).clamp(max=cover.shape[0])  # [B]
        order = None if self.network.word_order is None else self._of_order(self.network.word_order, token_ids)  # [B, 96]
        logits, embedding = self.network(text, seen, cover_of, cover_present, order)  # [B, K], [B, E]
        return (*self.answers(logits), functional.normalize(embedding, dim=1))

    def _of_order(self, branch: WordOrder, token_ids: Tensor) -> Tensor:
        """What the branch sees in the words that the first of the tokens int32 [B, T] are: float32 [B, 96]."""
        leading = functional.pad(token_ids, (0, READ), value=PAD_ID)[:, :READ]  # [B, 16], however few there are
        words = self.get_buffer("words").index_select(0, leading.reshape(-1)).reshape(-1, READ)  # [B, 16]
        return branch.read(words, branch.said(self.get_buffer("word_vectors")))

    def answers(self, logits: Tensor) -> list[Tensor]:
        """The tasks' outputs as of `forward`, from the network's logits float32 [B, K]."""
        scores = logits * self.get_buffer("scale_of_column") + self.get_buffer("shift_of_column")  # [B, K]
        parts = self.network.split(scores)
        found = self._several(parts)
        for name, leaning in self._leanings.items():
            parts[name] = parts[name] + self._calibrations[name].scale * leaning.said(found[leaning.other])
        parts |= self._straightened({name: parts[name] for name in self._bent})
        for task in self._tasks:
            if task.name not in found:
                found[task.name] = _answer(task, parts[task.name], self._calibrations[task.name])
        return [found[task.name] for task in self._tasks]

    def _several(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The probabilities of all multi-label tasks, made at once."""
        if not self._multi:
            return {}
        moved = beside_rivals(
            torch.cat([scores[name] for name in self._multi], dim=1), self.get_buffer("rivals"), self.get_buffer("task_of_label")
        )
        widths = [scores[name].shape[1] for name in self._multi]
        return dict(zip(self._multi, torch.split(moved.sigmoid(), widths, dim=1), strict=True))

    def _straightened(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As `calibrate.bent`, of all tasks that have a bend at once."""
        if not scores:
            return {}
        most = torch.cat([functional.softmax(each, dim=1).amax(dim=1, keepdim=True) for each in scores.values()], dim=1)
        factors = torch.split(bend_factors(most, self.get_buffer("bends")), 1, dim=1)  # one [B, 1] each
        return {name: each * factor for (name, each), factor in zip(scores.items(), factors, strict=True)}


def _answer(task: Task, scores: Tensor, calibration: Calibration) -> Tensor:
    if task.entry.kind == "regression":
        shifts = torch.tensor([[calibration.shift, calibration.low, calibration.high]])
        values = scores[:, :1] * calibration.scale + shifts  # [B, 3]
        if task.edges:
            value, low, high = values.unbind(dim=1)
            value = in_its_band(value, scores[:, 1:], task.edges)
            values = torch.stack([value, torch.minimum(low, value), torch.maximum(high, value)], dim=1)  # [B, 3]
        if task.entry.scale == "log":
            return values.clamp(max=30.0).exp()
        return values.clamp(0.0, 1.0) if task.entry.scale == "rank" else values
    return functional.softmax(scores, dim=1)


def difference(graph: ServingGraph, session: onnxruntime.InferenceSession, features: Features) -> float:
    """How far torch and ONNX Runtime are apart on these rows: the largest |a - b| / max(1, |b|) of any output."""
    graph.eval()
    largest = 0.0
    for start in range(0, len(features), _COMPARED_ROWS):
        part = features.rows(slice(start, start + _COMPARED_ROWS))
        feed = part.as_feed()
        with torch.no_grad():
            ours = graph(*(torch.from_numpy(feed[name]) for name in INPUTS))
        for one, other in zip(ours, session.run(None, feed), strict=True):
            apart = np.abs(one.numpy() - other) / np.maximum(1.0, np.abs(other))
            largest = max(largest, float(apart.max(initial=0.0)))
    return largest


def input_specs(settings: FeatureSettings) -> tuple[TensorSpec, ...]:
    """The graph's inputs as the manifest states them."""
    cover = (COVERS, settings.cover_channels, settings.cover_height, settings.cover_width)
    return (
        TensorSpec(name="token_ids", dtype="int32", shape=("batch", "tokens")),
        TensorSpec(name="token_weights", dtype="float32", shape=("batch", "tokens")),
        TensorSpec(name="cover", dtype="uint8", shape=cover),
        TensorSpec(name="cover_present", dtype="float32", shape=("batch", 1)),
    )


def output_specs(tasks: Sequence[Task], *, embedding_width: int) -> tuple[TensorSpec, ...]:
    """The graph's outputs as the manifest states them."""
    outputs = [
        TensorSpec(name=task.name, dtype="float32", shape=("batch", 3 if task.entry.kind == "regression" else task.width))
        for task in tasks
    ]
    return (*outputs, TensorSpec(name="embedding", dtype="float32", shape=("batch", embedding_width)))


def _shifted(pairs: Any, _bits: Any) -> Any:
    """ONNX's own shift: the exporter's translation minds the sign, which bytes do not have, in five more steps."""
    bits = onnx.numpy_helper.from_array(np.array(DIGIT_BITS, dtype=np.uint8))
    return opset18.BitShift(pairs, opset18.Constant(value=bits), direction="RIGHT")


def _narrow(graph: onnx.GraphProto) -> None:
    """Layers that read steps become products of bytes; weights of others are kept in half precision, words' numbers in two bytes.

    Each where nothing is lost by it. ONNX Runtime widens what is narrower as the session opens.
    """
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    bytes_of = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] not in tensors}
    read = collections.Counter(name for node in graph.node for name in node.input)
    widened, nodes = [], []
    for node in graph.node:
        tensor = tensors.get(node.input[1]) if node.op_type == "Gemm" and read[node.input[1]] == 1 else None
        if tensor is not None and node.input[0] in bytes_of and (steps := _steps(onnx.numpy_helper.to_array(tensor))):
            nodes += _product_of_bytes(graph, node, *steps)
            continue
        nodes.append(node)
        if tensor is not None:
            widened += _narrower(tensor, np.float16)
    if "words" in tensors:
        widened += _narrower(tensors["words"], np.int16)
    del graph.node[:]
    graph.node.extend([*widened, *nodes])


def _narrower(tensor: onnx.TensorProto, dtype: type[np.generic]) -> list[onnx.NodeProto]:
    """Keeps a tensor in a narrower type, and returns what widens it; nothing where numbers would be lost, or few bytes saved."""
    whole, name = onnx.numpy_helper.to_array(tensor), tensor.name
    narrow = whole.astype(dtype)
    if whole.size < NARROWED_FROM or not np.array_equal(narrow.astype(whole.dtype), whole):
        return []
    tensor.CopyFrom(onnx.numpy_helper.from_array(narrow, f"{name}.narrow"))
    to = onnx.helper.np_dtype_to_tensor_dtype(whole.dtype)
    return [onnx.helper.make_node("Cast", [f"{name}.narrow"], [name], name=name, to=to)]


def _steps(weights: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]] | None:
    """A layer's weights [out, in] as whole numbers and their columns' steps [out]; None where they are not rounded to such."""
    size = column_steps(torch.from_numpy(weights.copy())).numpy()
    whole = np.rint(weights / size)
    return (whole.astype(np.int8), size[:, 0]) if np.array_equal(whole * size, weights) else None


def _product_of_bytes(
    graph: onnx.GraphProto, gemm: onnx.NodeProto, whole: NDArray[np.int8], size: NDArray[np.float32]
) -> list[onnx.NodeProto]:
    """A layer x Wᵀ + b as ONNX Runtime multiplies bytes: both sides are read from bytes next to the product.

    It takes - (- b), since with + b it would make a product of float32 of it.
    """
    make, name, out = onnx.helper.make_node, gemm.input[1], gemm.output[0]
    for tensor in graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(whole.T), f"{name}.steps"))
        elif len(gemm.input) > 2 and tensor.name == gemm.input[2]:
            tensor.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(tensor), f"{tensor.name}.negative"))
    graph.initializer.append(onnx.numpy_helper.from_array(size, f"{name}.step"))
    product = out if len(gemm.input) < 3 else f"{out}.product"
    nodes = [
        make("DequantizeLinear", [f"{name}.steps", f"{name}.step"], [name], name=name, axis=1),
        make("MatMul", [gemm.input[0], name], [product], name=product),
    ]
    if product != out:
        nodes.append(make("Sub", [product, f"{gemm.input[2]}.negative"], [out], name=out))
    return nodes


def export_graph(graph: ServingGraph, path: Path, *, settings: FeatureSettings, output_names: Sequence[str]) -> None:
    """Writes the graph with dynamic batch and token dimensions, weights inside the file."""
    graph.eval()
    example = Features(
        token_ids=np.zeros((3, 7), dtype=np.int32),
        token_weights=np.zeros((3, 7), dtype=np.float32),
        cover=np.zeros((2, settings.cover_channels, settings.cover_height, settings.cover_width), dtype=np.uint8),
        cover_present=np.zeros((3, 1), dtype=np.float32),
    )
    batch, tokens, covers = (torch.export.Dim(name, min=1) for name in ("batch", "tokens", COVERS))
    for noisy in ("onnxscript", "torch.onnx"):
        logging.getLogger(noisy).setLevel(logging.ERROR)  # they tell of torchvision, which is not wanted
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own deprecated parts
        torch.onnx.export(
            graph,
            tuple(torch.from_numpy(example.as_feed()[name]) for name in INPUTS),
            path,
            input_names=list(INPUTS),
            output_names=list(output_names),
            dynamic_shapes=({0: batch, 1: tokens}, {0: batch, 1: tokens}, {0: covers}, {0: batch}),
            opset_version=OPSET,
            dynamo=True,
            custom_translation_table={torch.ops.aten.bitwise_right_shift.Tensor: _shifted},
            external_data=False,
            optimize=True,
            verbose=False,
        )
    model = onnx.load(path)
    for node in model.graph.node:
        del node.metadata_props[:]  # the exporter's stack traces, with the paths of the machine that trained
    _narrow(model.graph)
    del model.graph.value_info[:]  # what is noted of shapes between the nodes takes covers and rows for one number
    onnx.save(model, path)
    onnx.checker.check_model(str(path))
