"""Which directories a view links as a whole: few links, and as many real directories as they allow."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ems.snapshot import plan_links

NAMES = st.sampled_from(["a", "b", "c", "data", "src"])
PATHS = st.lists(NAMES, min_size=1, max_size=5).map(lambda parts: "/".join([*parts[:-1], f"{parts[-1]}.py"]))


def links(paths: set[str], linked: tuple[str, ...]) -> int:
    """Count the links of a view: whole directories, and each file outside of them."""
    inside = tuple(f"{folder}/" for folder in linked)
    return len(linked) + sum(1 for path in paths if not path.startswith(inside))


def test_everything_is_real_where_it_fits() -> None:
    paths = {f"d{i % 7}/f{i}.py" for i in range(100)}
    assert plan_links(paths, limit=100) == ()
    assert plan_links([]) == ()


def test_the_large_directory_is_linked_and_the_small_ones_stay_real() -> None:
    paths = {f"data/c{i % 300}/{i}.png" for i in range(9000)} | {f"src/m{i}.py" for i in range(50)} | {"train.py"}
    linked = plan_links(paths, limit=2000)
    assert "src" not in linked
    assert links(paths, linked) <= 2000


def test_a_deep_directory_is_linked_rather_than_what_it_lies_in() -> None:
    paths = {f"src/assets/images/{i}.png" for i in range(5000)} | {f"src/m{i}.py" for i in range(50)}
    assert plan_links(paths, limit=100) == ("src/assets/images",)


def test_what_must_stay_real_does_whatever_the_number() -> None:
    paths = {f"jobs/night/f{i}.py" for i in range(500)} | {f"data/{i}" for i in range(500)}
    assert plan_links(paths, limit=100, keep=["jobs/night"]) == ("data",)
    assert plan_links(paths, limit=100, keep=["./jobs/night/", "data", "."]) == ()


def test_a_flat_project_cannot_be_helped() -> None:
    assert plan_links({f"f{i}.py" for i in range(50)}, limit=10) == ()


@given(st.sets(PATHS, min_size=1), st.integers(1, 40), st.lists(NAMES, max_size=2))
def test_the_plan_is_valid(paths: set[str], limit: int, keep: list[str]) -> None:
    linked = plan_links(paths, limit=limit, keep=keep)
    assert list(linked) == sorted(linked)
    folders = {path[:i] for path in paths for i, letter in enumerate(path) if letter == "/"}
    assert set(linked) <= folders - set(keep)
    assert not [one for one in linked for other in linked if one.startswith(f"{other}/")]
    top = len({path.split("/")[0] for path in paths})
    if not keep and top <= limit:
        assert links(paths, linked) <= limit


@given(st.sets(PATHS, min_size=1), st.integers(1, 40))
def test_the_plan_is_the_same_whatever_the_order(paths: set[str], limit: int) -> None:
    assert plan_links(sorted(paths), limit) == plan_links(sorted(paths, reverse=True), limit)
