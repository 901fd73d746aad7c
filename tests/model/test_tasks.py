"""The task file: which attributes are predicted, and what is said of a wrong one."""

from pathlib import Path
from typing import Any

import pytest

from model.tasks import Task, TaskEntry, TaskFileError, load_task_file, resolve
from tests.model.examples import TASK_FILE

SHIPPED = Path(__file__).parents[2] / "model" / "books.toml"

ROWS: dict[str, list[dict[str, Any]]] = {
    "shop": [
        {"category": "Cooking", "tags": ["a", "b"], "authors": ["Dickens, Charles"], "language": "eng"},
        {"category": "Cooking", "tags": ["a"], "authors": ["Charles Dickens"], "language": "en-GB"},
        {"category": "Travel", "tags": [], "authors": ["Various"], "language": "fr"},
        {"category": None, "tags": ["c"], "authors": [], "language": None},
    ],
    "library": [{"category": "Travel", "tags": [], "authors": ["DICKENS, Charles", "Collins, Wilkie"]}],
}


def entry(**values: Any) -> TaskEntry:
    return TaskEntry.model_validate({"name": "t", "kind": "single", "sets": ["shop"], "field": "category"} | values)


def test_the_shipped_task_file_has_every_task_of_the_contract() -> None:
    """All fourteen tasks, in their kinds."""
    assert {task.name: task.kind for task in load_task_file(SHIPPED).task} == {
        "department": "single",
        "departments": "multi",
        "group": "single",
        "topics": "multi",
        "library_class": "single",
        "shelves": "multi",
        "genre": "single",
        "publisher": "single",
        "author": "single",
        "format": "single",
        "price_band": "ordinal",
        "page_count": "regression",
        "language": "single",
        "sales": "regression",
    }


def test_price_bands_are_named_by_currency_and_edges() -> None:
    """The labels are those of the contract, and each currency knows which are its own."""
    price = next(task for task in load_task_file(SHIPPED).task if task.name == "price_band")
    task = resolve(price, {"bookdepository": [], "douban-zh": []})
    assert task.labels == (
        "USD <8.43", "USD 8.43-11.16", "USD 11.16-15.02", "USD 15.02-21.25", "USD >=21.25",
        "CNY <22", "CNY 22-29", "CNY 29-38", "CNY 38-55", "CNY >=55",
    )  # fmt: skip
    assert task.groups == {"USD": (0, 5), "CNY": (5, 10)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("kind = \"multi\"", "kind = \"many\""), r"tasks.toml:\d+: task 2, kind: Input should be .*; found many"),
        (("field = \"tags\"\n", ""), r"tasks.toml:\d+: task 2, field: Field required"),
        (("field = \"tags\"", "feild = \"tags\""), r"tasks.toml:\d+: task 2, (field|feild): "),
        (("bands = { EUR = [10, 20] }", "bands = { EUR = [20, 10] }"), r"task 4: .*ascending edges"),
        (("bands = { EUR = [10, 20] }", ""), r"task 4: .*expected edges by currency for an ordinal task"),
        (("name = \"themes\"", "name = \"subject\""), r"tasks.toml:\d+: task 2, name: .* occurs twice; found subject"),
        (("leans_on = \"themes\"", "leans_on = \"theme\""), r"tasks.toml:\d+: task 1, leans_on: .*: here themes; found theme"),
        (("leans_on = \"themes\"", "leans_on = \"publisher\""), r"task 1, leans_on: .*: here themes; found publisher"),
        (("field = \"publisher\"", "field = \"publisher\"\nleans_on = \"themes\""), r"task 3, leans_on: .*: here none"),
        (("field = \"price\"", "field = \"price\"\ntaught_share = 0.3"), r"task 4: .*taught_share: .* single- or multi-label"),
        (("field = \"publisher\"", "field = \"publisher\"\ntaught_share = 0.3"), r"task 3: .*whose field the model does not see"),
        (("field = \"tags\"", "field = \"tags\"\ntaught_share = 2"), r"task 2, taught_share: .*; found 2"),
        (("epochs = 12", "epochs = 0"), r"tasks.toml:10: training.epochs: .*; found 0"),
        (("[training]", "[features]\nscheme = \"grams-1\"\n[training]"), "expected grams-3, found grams-1, which"),
        (("[training]", "[training"), r"tasks.toml: not TOML: .*line 5"),
        (("asked_only_where_missing = true", "asked_only_where_missing = true\nscale = \"log\""), "for a regression only"),
    ],
    ids=[
        "kind", "missing", "misspelt", "band order", "no bands", "twice", "leans on nothing", "leans on single", "leans on input",
        "taught order", "taught input", "taught share", "setting", "older scheme", "syntax", "scale",
    ],
)  # fmt: skip
def test_a_wrong_task_file_is_answered_with_the_place_and_the_fault(
    tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    """The message names the file, the line, the field, what was expected and what was found."""
    assert change[0] in TASK_FILE
    path = tmp_path / "tasks.toml"
    path.write_text(TASK_FILE.replace(*change), encoding="utf-8")
    with pytest.raises(TaskFileError, match=message):
        load_task_file(path)


def test_the_line_is_that_of_the_field(tmp_path: Path) -> None:
    """The line in a message is where an editor should go."""
    path = tmp_path / "tasks.toml"
    text = TASK_FILE.replace('kind = "multi"', 'kind = "many"')
    path.write_text(text, encoding="utf-8")
    line = text.splitlines().index('kind = "many"') + 1
    with pytest.raises(TaskFileError, match=rf"tasks\.toml:{line}: "):
        load_task_file(path)


def test_a_missing_task_file_is_named(tmp_path: Path) -> None:
    """No traceback for a mistyped path."""
    with pytest.raises(TaskFileError, match=r"nowhere\.toml: expected a readable task file"):
        load_task_file(tmp_path / "nowhere.toml")


def test_every_label_found_is_a_label_unless_a_rule_says_otherwise() -> None:
    """Labels are those of the task's own sets, sorted."""
    assert resolve(entry(), ROWS).labels == ("Cooking", "Travel")
    assert resolve(entry(kind="multi", field="tags"), ROWS).labels == ("a", "b", "c")


def test_rules_choose_the_label_set() -> None:
    """Rare labels are left out, or gathered under `other`."""
    rule = {"min_rows": 2, "other": "other"}
    assert resolve(entry(field="language", labels=rule), ROWS).labels == ("en", "other")
    rule = {"commonest_per_set": 2}
    assert resolve(entry(kind="multi", field="tags", labels=rule), ROWS).labels == ("a", "b")


def test_an_author_is_one_label_however_it_is_written() -> None:
    """ "Dickens, Charles" and "Charles Dickens" are one, shown as people write it; "Various" is nobody."""
    rule = {"exclude": ["Various"]}
    task = resolve(entry(field="authors", sets=["shop", "library"], labels=rule | {"min_rows": 3, "other": "?"}), ROWS)
    assert task.labels == ("Charles Dickens", "?")
    assert task.spellings == {"charles dickens": "Charles Dickens"}


def test_a_task_on_an_input_hides_that_input() -> None:
    """What a label is read from is never shown with it."""
    assert Task(entry=entry(field="publisher")).hidden_input == "publisher"
    assert Task(entry=entry(field="category")).hidden_input is None


def test_a_set_that_was_not_given_is_named() -> None:
    """Forgetting a --data folder is said before hours are spent."""
    with pytest.raises(TaskFileError, match="task t: expected the data of museum, found no folder museum"):
        resolve(entry(sets=["museum"]), ROWS)


def test_a_field_without_labels_is_named() -> None:
    """A task on a field that no row has cannot be trained."""
    with pytest.raises(TaskFileError, match="at least 2 labels in field colour"):
        resolve(entry(field="colour"), ROWS)
