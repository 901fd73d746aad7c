"""`python -m model`: train, study, evaluate, report, inspect, sign. Exit codes: 0 done, 1 unexpected, 2 wrong usage or data."""

import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from model import signing
from model.bundle import MANIFEST, Bundle, BundleError
from model.dataset import DataError, read_rows, set_name
from model.tasks import Task, TaskFileError, load_task_file, tasks_of

app = typer.Typer(
    help="The multi-task model of book listings: train it, judge it, look at it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# A pipe has no width: 80 columns would break every line of a table.
_OUT = Console() if sys.stdout.isatty() else Console(width=160)
_ERROR = Console(stderr=True)
_THREADS = 2

Data = Annotated[
    list[Path], typer.Option("--data", help="A folder with train.jsonl.gz, valid.jsonl.gz and covers.zip; repeatable.")
]
BundleFolder = Annotated[Path, typer.Option("--bundle", help="The bundle's folder.")]


@contextmanager
def _told() -> Iterator[None]:
    """Turns what a user can mend into one line and exit code 2."""
    try:
        yield
    except (BundleError, DataError, TaskFileError, signing.KeyUnusable) as error:
        _ERROR.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(2) from error


@app.command()
def train(
    data: Data,
    tasks: Annotated[Path, typer.Option(help="The task file.")],
    out: Annotated[Path, typer.Option(help="Where the bundle goes; the one there is replaced at the very end.")],
    refit: Annotated[
        Path | None,
        typer.Option(help="Where a second bundle goes that has learned from `valid`, too. The figures in it are the first's."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Two runs with one seed give the same figures.")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many rows of each set, for a quick try.")] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out and count rows and covers that cannot be used, instead of ending.")
    ] = False,
    model_epoch: Annotated[
        int | None, typer.Option(min=0, help="Orders models in the store; default: seconds since 1970.")
    ] = None,
) -> None:
    """Trains the network for every task of a task file and writes a bundle.

    Example: python -m model train --data ../shared/data/bookdepository --data ../shared/data/douban-zh
    --data ../shared/data/goodreads --data ../shared/data/gutenberg --tasks model/books.toml --out /tmp/books --limit 2000
    """
    import torch

    from model.train import train_bundle

    torch.set_num_threads(_THREADS)
    epoch = int(time.time()) if model_epoch is None else model_epoch
    with _told():
        bundle = train_bundle(
            data,
            load_task_file(tasks),
            out,
            seed=seed,
            epoch=epoch,
            refit=refit,
            limit=limit,
            skip_bad=skip_bad,
            progress=lambda line: _OUT.print(line, markup=False, highlight=False),
        )
    _OUT.print(_metrics_table(bundle.manifest.metrics, bundle.manifest.settings.get("baseline", {})))
    for folder in (out, refit) if refit is not None else (out,):
        _OUT.print(f"{bundle.manifest.label} in {folder}, {_megabytes(Bundle.load(folder)):.1f} MB", markup=False)


@app.command()
def study(
    data: Data,
    tasks: Annotated[Path, typer.Option(help="The task file.")],
    out: Annotated[Path, typer.Option(help="JSON lines, one a trained network and task. What stands there is not done again.")],
    seeds: Annotated[int, typer.Option(min=1, help="So many networks of each kind.")] = 5,
    scarce: Annotated[list[str] | None, typer.Option(help="A task of which labels are taken away; repeatable.")] = None,
    share: Annotated[list[float] | None, typer.Option(help="The share of its labels that is kept; repeatable.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many rows of each set, for a quick try.")] = None,
) -> None:
    """Compares one network for all tasks with one network a task, and prints each task's gain.

    No language model teaches either kind: a task's `taught_share` is passed over.

    Example: python -m model study --data ../shared/data/goodreads --tasks shop.toml --out study.jsonl --scarce genre --share 0.05
    """
    import dataclasses

    import torch

    from model.study import study as compared
    from model.study_runs import costs, gains, read_runs

    torch.set_num_threads(_THREADS)
    with _told(), tempfile.TemporaryDirectory() as kept, out.open("a", encoding="utf-8") as file:
        runs = read_runs(out)
        if runs:
            _OUT.print(f"{out}: {len(runs)} scores of an earlier study stay", markup=False, highlight=False)
        shares = share or [0.05, 0.2]
        told = lambda line: _OUT.print(line, markup=False, highlight=False)  # noqa: E731 - as in train
        for run in compared(
            data,
            load_task_file(tasks),
            seeds=seeds,
            scarce=scarce or [],
            shares=shares,
            kept=Path(kept),
            done=tuple(runs),
            limit=limit,
            progress=told,
        ):
            runs.append(run)
            file.write(json.dumps(dataclasses.asdict(run), ensure_ascii=False) + "\n")
            file.flush()
    table = Table("task", "labels kept", "together", "alone", "gain", "±")
    for gain in (found := gains(runs)):
        table.add_row(
            gain.task, f"{gain.share:.0%}", f"{gain.together:.3f}", f"{gain.alone:.3f}", f"{gain.gain:+.1%}",
            f"{gain.half_width:.1%}",
        )  # fmt: skip
    _OUT.print(table)
    whole = [gain.gain for gain in found if gain.share == 1.0]
    _OUT.print(f"Δm with all labels: {sum(whole) / len(whole):+.2%} over {len(whole)} tasks", markup=False)
    if cost := costs(runs):
        together, alone = cost
        for name, of in (("together", together), ("alone, in sum", alone)):
            line = f"{name}: {of.parameters:,.0f} numbers, {of.seconds:.0f} s of training, {of.microseconds:.1f} µs a listing"
            _OUT.print(line, markup=False, highlight=False)


@app.command()
def evaluate(
    bundle: BundleFolder,
    data: Data,
    part: Annotated[str, typer.Option(help="Which part of the data: each folder's PART.jsonl.gz is read.")] = "valid",
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """Metrics of every task, made with the bundle's own features and graph, beside the majority's.

    Example: python -m model evaluate --bundle model/bundles/books --data ../shared/data/goodreads
    """
    from model.evaluate import evaluate as evaluated
    from model.evaluate import open_session

    with _told():
        loaded = Bundle.load(bundle)
        _warn_of_refit(loaded, part)
        tasks = tasks_of(loaded.manifest)
        _require_known_sets(data, tasks)
        rows = read_rows(data, part=part, settings=loaded.manifest.features)
        found = evaluated(
            open_session(loaded.graph_path, threads=_THREADS),
            loaded.extractor(),
            rows,
            tasks,
            {spec.name: spec for spec in loaded.manifest.tasks},
        )
    if as_json:
        answer = {each.name: {"rows": each.rows, **each.metrics} for each in found}
        sys.stdout.write(json.dumps(answer, indent=1) + "\n")
    else:
        # The linear models are not in the bundle; what is known of them is how they did on the validation part.
        compared = loaded.manifest.settings.get("baseline", {}) if part == "valid" else {}
        _OUT.print(_metrics_table({each.name: each.metrics for each in found}, compared))


@app.command()
def report(
    bundle: BundleFolder,
    out: Annotated[Path, typer.Option(help="The HTML file to write.")],
    study: Annotated[Path | None, typer.Option(help="What `study` wrote, to show together against alone.")] = None,
    data: Annotated[list[Path] | None, typer.Option(help="A folder whose `valid` rows give examples, with covers.")] = None,
) -> None:
    """The per-task table, learning curves, task relations, calibration and confusion as one HTML file that needs no network.

    Example: python -m model report --bundle model/bundles/books --out report.html --data ../shared/data/bookdepository
    """
    from model.report import write_report
    from model.report_examples import examples_of
    from model.study_runs import read_runs

    with _told():
        loaded = Bundle.load(bundle)
        if data:
            _warn_of_refit(loaded, "valid")
            _require_known_sets(data, tasks_of(loaded.manifest))
        examples = examples_of(loaded, read_rows(data, part="valid", settings=loaded.manifest.features)) if data else []
        write_report(loaded, out, study=read_runs(study) if study else [], examples=examples)
    _OUT.print(f"wrote {out}", markup=False)


@app.command()
def inspect(bundle: BundleFolder) -> None:
    """The manifest, readable: what the bundle predicts, from what, how well, and where it comes from.

    Example: python -m model inspect --bundle model/bundles/books
    """
    with _told():
        loaded = Bundle.load(bundle)
    manifest = loaded.manifest
    _OUT.print(f"{manifest.label}, epoch {manifest.epoch}, {_megabytes(loaded):.1f} MB, seed {manifest.seed}")
    table = Table("task", "kind", "labels", "asked only where missing", "first labels")
    for task in manifest.tasks:
        shown = ", ".join(task.labels[:4]) + (" …" if len(task.labels) > 4 else "")
        table.add_row(task.name, task.kind, str(len(task.labels) or ""), task.asked_only_where_missing or "", shown)
    _OUT.print(table)
    for title, tensors in (("input", manifest.inputs), ("output", manifest.outputs)):
        for tensor in tensors:
            _OUT.print(f"{title} {tensor.name}: {tensor.dtype} {list(tensor.shape)}", markup=False)
    for name, spec in manifest.files.items():
        _OUT.print(f"file {name}: {spec.size_bytes} bytes, sha256 {spec.sha256}", markup=False, soft_wrap=True)
    _OUT.print(f"data: {manifest.data_fingerprint}", markup=False, soft_wrap=True)
    _OUT.print(f"libraries: {manifest.library_versions}", markup=False, soft_wrap=True)
    _OUT.print(_metrics_table(manifest.metrics, manifest.settings.get("baseline", {})))


@app.command()
def keygen(
    private_key: Annotated[Path, typer.Option("--private", help="Where the private key goes; keep it off the cluster.")],
    public_key: Annotated[Path, typer.Option("--public", help="Where the public key goes, for the setting model.public_key.")],
) -> None:
    """A new pair of Ed25519 keys in PEM. What is there is never overwritten.

    Example: python -m model keygen --private signing.pem --public signing.pub.pem
    """
    with _told():
        try:
            signing.generate_keys(private_key, public_key)
        except OSError as error:
            raise signing.KeyUnusable(f"{error.filename}: {error.strerror}") from error
    _OUT.print(f"wrote {private_key} and {public_key}", markup=False, soft_wrap=True)


@app.command()
def sign(bundle: BundleFolder, key: Annotated[Path, typer.Option(help="The Ed25519 private key, PEM.")]) -> None:
    """Signs a bundle, all of whose files are checked before. Services that hold the public key load no other.

    Example: python -m model sign --bundle model/bundles/books --key signing.pem
    """
    with _told():
        Bundle.load(bundle)
        try:
            signature = signing.sign(bundle / MANIFEST, key)
        except OSError as error:
            raise signing.KeyUnusable(f"{error.filename}: {error.strerror}") from error
    _OUT.print(f"wrote {signature}", markup=False, soft_wrap=True)


def _require_known_sets(folders: Sequence[Path], tasks: Sequence[Task]) -> None:
    """Rows of a set that no task reads would have no figures, without a word."""
    known = {name for task in tasks for name in task.entry.sets}
    for folder in folders:
        if (found := set_name(folder)) not in known:
            sets = ", ".join(sorted(known))
            raise DataError(f"{folder}: expected a folder named after a set of the bundle ({sets}), found {found}")


def _warn_of_refit(bundle: Bundle, part: str) -> None:
    if bundle.manifest.settings.get("refit") and part in ("train", "valid"):
        _ERROR.print(
            f"note: {bundle.path} has learned from train and valid; on these its figures flatter. `inspect` shows those of "
            "the training that had not seen valid.", style="yellow", markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip


def _megabytes(bundle: Bundle) -> float:
    return sum(spec.size_bytes for spec in bundle.manifest.files.values()) / 1e6


_FIRST = {"accuracy": "accuracy", "micro_f1": "micro-F1", "mae": "mean absolute error"}


def _metrics_table(metrics: dict[str, dict[str, float]], baseline: dict[str, dict[str, float]]) -> Table:
    table = Table("task", "metric", "ours", "baseline", "majority", "others")
    for name, figures in metrics.items():
        first = next(key for key in _FIRST if key in figures)
        others = ", ".join(f"{key} {value:.3f}" for key, value in figures.items() if key not in {first, "majority"})
        linear = f"{baseline[name][first]:.3f}" if name in baseline else ""
        table.add_row(name, _FIRST[first], f"{figures[first]:.3f}", linear, f"{figures['majority']:.3f}", others)
    return table


if __name__ == "__main__":
    app()
