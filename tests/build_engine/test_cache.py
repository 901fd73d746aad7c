"""Engines on disk: built once, never loaded broken, never evicted while in use."""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from build_engine.cache import Built, EngineCache, Fingerprint
from build_engine.errors import Unavailable
from tests.build_engine.cache_processes import PLAN, a_cache, a_fingerprint


def stored(folder: Path, fingerprint: Fingerprint | None = None, plan: bytes = PLAN) -> Path:
    """The path of an engine that was just built."""
    fingerprint = fingerprint or a_fingerprint()
    a_cache(folder, []).get_or_build(fingerprint, lambda: Built(plan, verified=True)).close()
    return folder / f"{fingerprint.digest}.engine"


def never() -> Built:
    raise AssertionError("it was built again")


def processes(mode: str, folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.build_engine.cache_processes", mode, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_what_was_built_is_loaded_and_not_built_again(tmp_path: Path) -> None:
    stored(tmp_path)
    with a_cache(tmp_path, []).get_or_build(a_fingerprint(), never) as engine:
        assert engine.plan == PLAN
        assert engine.verified


@pytest.mark.parametrize(
    "change",
    [
        {"onnx_sha256": "b" * 64},
        {"options": {"precision": "fp32", "profile": [1, 256, 1024]}},
        {"options": {"precision": "fp16", "profile": [1, 256, 2048]}},
        {"flavour": "tensorrt_rtx"},
        {"version": "10.6.1"},
        {"compute_capability": "8.9"},
        {"gpu": "NVIDIA H200"},
    ],
    ids=str,
)
def test_an_engine_for_anything_else_is_another_engine(tmp_path: Path, change: dict[str, Any]) -> None:
    stored(tmp_path)
    assert a_cache(tmp_path, []).find(a_fingerprint(**change)) is None


def test_twenty_processes_that_start_together_build_once(tmp_path: Path) -> None:
    assert processes("race", tmp_path) == {"failed": 0, "builds": 1}


def test_a_builder_killed_before_any_line_leaves_nothing_broken_and_the_next_one_builds(tmp_path: Path) -> None:
    answer = processes("kill", tmp_path)
    assert answer.pop("killed") > 50
    assert answer == {"broken": 0, "unbuilt": 0, "left": 0, "status": 0}


def test_no_flipped_bit_of_the_engine_is_loaded(tmp_path: Path) -> None:
    path, said = stored(tmp_path, plan=PLAN[:64]), list[str]()
    for bit in range(64 * 8):
        flip(path, bit)
        assert a_cache(tmp_path, said).find(a_fingerprint()) is None
        flip(path, bit)
    assert len(said) == 64 * 8
    assert "expected sha256" in said[0]


def test_no_flipped_bit_of_the_details_changes_what_is_loaded(tmp_path: Path) -> None:
    details = stored(tmp_path, plan=PLAN[:64]).with_suffix(".json")
    ignored = 0
    for bit in range(details.stat().st_size * 8):
        flip(details, bit)
        engine = a_cache(tmp_path, []).find(a_fingerprint())
        if engine is None:
            ignored += 1
        else:  # white space, and upper-case digits
            engine.close()
            assert (engine.plan, engine.verified) == (PLAN[:64], True)
        flip(details, bit)
    assert ignored > details.stat().st_size * 8 * 0.8


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"null", b"[" * 50_000, b'{"sha256": 1}', b"\xff\xfe"], ids=lambda c: repr(c[:9])
)
def test_details_that_are_none_are_said_and_the_engine_is_rebuilt(tmp_path: Path, content: bytes) -> None:
    path, said = stored(tmp_path), list[str]()
    path.with_suffix(".json").write_bytes(content)
    cache = a_cache(tmp_path, said)
    assert cache.get_or_build(a_fingerprint(), lambda: Built(b"new", verified=False)).plan == b"new"
    assert any(path.stem in line for line in said)
    assert cache.get_or_build(a_fingerprint(), never).plan == b"new"


def test_an_engine_under_anothers_name_is_not_loaded(tmp_path: Path) -> None:
    path, other, said = stored(tmp_path), a_fingerprint(gpu="NVIDIA H200"), list[str]()
    for suffix in (".engine", ".json"):
        path.with_suffix(suffix).rename(tmp_path / f"{other.digest}{suffix}")
    assert a_cache(tmp_path, said).find(other) is None
    assert said == [f"ignored: {other.digest}.json is of another engine"]


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    path = stored(tmp_path)
    path.symlink_to(path.rename(tmp_path / "elsewhere"))
    assert a_cache(tmp_path, []).find(a_fingerprint()) is None


def test_an_engine_that_was_never_verified_is_built_again_for_who_wants_it_verified(tmp_path: Path) -> None:
    cache, fingerprint = a_cache(tmp_path, []), a_fingerprint()
    cache.get_or_build(fingerprint, lambda: Built(b"unverified", verified=False)).close()
    assert cache.find(fingerprint, verified=True) is None
    assert cache.get_or_build(fingerprint, never).plan == b"unverified"
    assert cache.get_or_build(fingerprint, lambda: Built(PLAN, verified=True), verified=True).plan == PLAN
    assert cache.get_or_build(fingerprint, never, verified=True).plan == PLAN


def test_the_newest_that_fits_is_the_most_recently_used_whole_one(tmp_path: Path) -> None:
    cache, fingerprints = filled(tmp_path, count=4)
    flip(tmp_path / f"{fingerprints[2].digest}.engine", 0)
    newest = cache.newest(lambda found: found.version != "3")
    assert newest is not None
    assert newest.fingerprint == fingerprints[1]
    assert cache.newest(lambda found: found.gpu == "another") is None


def test_a_build_that_fails_publishes_nothing_and_frees_the_lock(tmp_path: Path) -> None:
    def fails() -> Built:
        raise ZeroDivisionError

    cache = a_cache(tmp_path, [], lock_timeout_s=0)
    with pytest.raises(ZeroDivisionError):
        cache.get_or_build(a_fingerprint(), fails)
    assert cache.find(a_fingerprint()) is None
    assert cache.get_or_build(a_fingerprint(), lambda: Built(PLAN, verified=True)).plan == PLAN


def test_who_waits_too_long_for_the_lock_is_told_who_holds_it(tmp_path: Path) -> None:
    lock = tmp_path / f"{a_fingerprint().digest}.lock"
    lock.write_text("process 7 on pod-3")
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(Unavailable, match="process 7 on pod-3 still builds this engine"):
            a_cache(tmp_path, [], lock_timeout_s=0.2).get_or_build(a_fingerprint(), never)


def filled(folder: Path, *, count: int) -> tuple[EngineCache, list[Fingerprint]]:
    """Engines of 10,240 bytes, the first the least recently used."""
    fingerprints = [a_fingerprint(version=str(number)) for number in range(count)]
    for age, fingerprint in enumerate(fingerprints):
        os.utime(stored(folder, fingerprint), (age, age))
    return a_cache(folder, [], size_max_bytes=2 * len(PLAN)), fingerprints


def names(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.engine")}


def test_the_least_recently_used_go_when_the_cache_is_full(tmp_path: Path) -> None:
    cache, (first, second, third) = filled(tmp_path, count=3)
    cache.find(first).close()  # type: ignore[union-attr]
    newest = a_fingerprint(version="new")
    cache.get_or_build(newest, lambda: Built(PLAN, verified=True)).close()
    assert names(tmp_path) == {first.digest, newest.digest}
    assert not (tmp_path / f"{second.digest}.json").exists()
    assert third.digest not in names(tmp_path)


def test_an_engine_in_use_is_not_evicted(tmp_path: Path) -> None:
    cache, (first, *_) = filled(tmp_path, count=3)
    newest = a_fingerprint(version="new")
    with EngineCache(tmp_path, size_max_bytes=1, lock_timeout_s=1, say=lambda _: None).find(first) as used:  # type: ignore[union-attr]
        os.utime(tmp_path / f"{first.digest}.engine", (0, 0))
        small = a_cache(tmp_path, [], size_max_bytes=1)
        with small.get_or_build(newest, lambda: Built(PLAN, verified=True)):
            assert names(tmp_path) == {first.digest, newest.digest}
        assert used.plan == PLAN
    assert cache.find(first) is not None


def test_the_list_says_what_is_in_use_and_what_is_broken(tmp_path: Path) -> None:
    cache, (used, broken) = filled(tmp_path, count=2)
    flip(tmp_path / f"{broken.digest}.engine", 5)
    with cache.get_or_build(used, never):
        entries = {entry.digest: entry for entry in cache.entries()}
    assert entries[used.digest].in_use
    assert entries[used.digest].problem is None
    assert entries[used.digest].details["fingerprint"]["gpu"] == "NVIDIA H100"
    assert not entries[broken.digest].in_use
    assert "expected sha256" in str(entries[broken.digest].problem)
