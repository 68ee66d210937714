"""Screens as pure functions of what the mesh said: maps, overviews, explanations."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

from expertmesh.cli import experts, route_screens
from expertmesh.cli.heatmap import LEVELS, heat_maps
from expertmesh.cli.overview import Seen, overview
from expertmesh.errors import InvalidRequest
from expertmesh.inspecting import ExpertChoice, Explanation, LayerExplanation, MeshFacts
from expertmesh.types import ExpertPlacement, Node, ServedModel


def placed(layer: int, index: int, *workers: str, rows: int = 0, model: str = "m") -> ExpertPlacement:
    return ExpertPlacement(model, layer, index, "fp32", 1_000_000, workers, rows)


FOUR = (placed(0, 0, "a", "b", rows=30), placed(0, 1, "b", rows=10), placed(1, 0), placed(1, 1, "a", rows=5))


def texts(found) -> list[list[str]]:
    return [[cell.text for cell in row] for row in found.cells]


def printed(width: int, show, *arguments, **fields) -> str:
    file = io.StringIO()
    show(Console(file=file, width=width, highlight=False, markup=False), *arguments, **fields)
    return file.getvalue()


@pytest.mark.parametrize(
    ("by", "cells"),
    [
        ("replicas", [["2", "1"], ["-", "1"]]),
        ("rows", [["75", "25"], ["-", "100"]]),
        ("worker", [["ab", ".b"], ["-", "a."]]),
    ],
)
def test_a_cell_can_be_read_without_its_colour(by, cells):
    (found,) = heat_maps(FOUR, by)
    assert (found.layers, texts(found)) == ((0, 1), cells)
    assert found.legend[-1] == "- = on no worker now (1 of 4)"


def test_the_hottest_cell_is_the_one_with_most_and_the_missing_one_is_apart():
    (found,) = heat_maps(FOUR, "rows")
    assert [[cell.level for cell in row] for row in found.cells] == [[4, 1], [0, LEVELS]]


def test_letters_name_the_workers_and_many_workers_still_have_one_each():
    many = [placed(0, index, f"w{index:02}") for index in range(60)]
    (found,) = heat_maps(many, "worker")
    cells = texts(found)[0]
    assert len(set(cells)) == 60
    assert (cells[0], cells[26], cells[52]) == ("a", "A", "[53]")
    assert found.legend[0] == "a = w00 (1 experts)"


def test_each_model_has_a_map_of_its_own():
    assert [found.model for found in heat_maps((*FOUR, placed(0, 0, "a", model="k")), "replicas")] == ["k", "m"]


@pytest.mark.parametrize("width", [20, 80, 120])
def test_a_map_that_is_too_wide_comes_in_blocks_and_loses_no_expert(width):
    wide = [placed(layer, index, "a") for layer in range(3) for index in range(64)]
    shown = printed(width, experts.show, heat_maps(wide, "replicas")[0])
    assert max(len(line) for line in shown.splitlines()) <= width
    rows = [line for line in shown.splitlines() if line[:5].strip().isdigit()]
    assert sum(len(line.split()) - 1 for line in rows) == 3 * 64


def node(worker_id: str, state: str = "live", budget_bytes: int = 10_000_000) -> Node:
    return Node(worker_id, "g", state, 4, 10**9, budget_bytes, 10**6, 2, 7, 1000.0, 100, ("cpu",), (), "0.1.0")


def seen(experts_, nodes, ready=True) -> Seen:
    model = ServedModel("m", "llama", "fp32", 512, "d", ready)
    return Seen(MeshFacts("0.1.0", (1, 4), None, len(nodes)), (model,), tuple(nodes), tuple(experts_))


def test_a_mesh_that_serves_everything_is_ready_and_misses_nothing():
    found = overview("x:1", seen(FOUR[:2], [node("a"), node("b")]))
    assert (found.ready, found.missing, found.models[0].copies) == (True, (), 3)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (seen(FOUR, [node("a")], ready=False), "m: 1 of 4 experts are on no worker"),
        (seen(FOUR[:2], [], ready=True), "no worker has joined"),
        (seen(FOUR[:2], [node("a", "leaving")]), "worker a is leaving"),
        (seen(FOUR, [node("a", budget_bytes=2_500_000)], ready=False), "1 worker lack 1.5 MB for all experts"),
        (seen(FOUR[:2], [node("a")], ready=False), "the gateway has not heard"),
        (Seen(MeshFacts("", (0, 0), None, 1), (), (node("a"),), ()), "no model is served"),
    ],
)
def test_what_is_missing_is_said_in_a_sentence(given, sentence):
    found = overview("x:1", given)
    assert not found.ready
    assert any(sentence in line for line in found.missing), found.missing


def explained(tokens: int = 2, layers: int = 3) -> Explanation:
    def decisions(layer: int, number: int) -> tuple[ExpertChoice, ...]:
        margins = (0.5 + layer, -0.25 * (number + 1), float("-inf"))
        return tuple(ExpertChoice(i, 1 + m, m > 0, float(m > 0), m, (f"w{i}",)) for i, m in enumerate(margins))

    built = tuple(
        LayerExplanation(layer, "threshold 1", tuple(decisions(layer, t) for t in range(tokens)))
        for layer in range(layers)
    )
    return Explanation("m", tuple(range(tokens)), tuple(f" piece{t}" for t in range(tokens)), built)


def test_a_summary_has_a_line_per_token_and_the_closest_decision():
    shown = printed(100, route_screens.show, explained(), every_score=False)
    assert "' piece1'" in shown
    assert "111" in shown
    assert "0.25 (layer 0, expert 1, left out)" in shown


def test_one_layer_shows_every_score_with_holders_and_what_could_never_be_picked():
    only = route_screens.only(explained(), 1, 0)
    shown = printed(100, route_screens.show, only, every_score=True)
    assert "layer 1: threshold 1" in shown
    assert "never" in shown
    assert all(f"w{i}" in shown for i in range(3))


def test_one_token_shows_the_experts_of_every_layer():
    shown = printed(100, route_screens.show, route_screens.only(explained(), None, 1), every_score=False)
    assert shown.count("threshold 1") == 3


@pytest.mark.parametrize(("layer", "token"), [(9, None), (None, 9)])
def test_what_does_not_exist_is_refused_with_what_does(layer, token):
    with pytest.raises(InvalidRequest, match="9 does not exist"):
        route_screens.only(explained(), layer, token)


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        (np.zeros((2, 3)), "float64"),
        (np.zeros(3, np.float32), r"\[3\]"),
        (np.array([{"a": 1}], dtype=object), "no .npy file"),
    ],
)
def test_a_file_that_holds_no_rows_is_refused_with_its_name(tmp_path, values, complaint, capsys):
    from expertmesh.cli.main import run

    np.save(tmp_path / "rows.npy", values, allow_pickle=True)
    assert run(["route", "explain", "--rows", f"{tmp_path}/rows.npy", "--layer", "0"]) == 2
    import re

    assert re.search(f"rows.npy.*{complaint}", capsys.readouterr().err)
