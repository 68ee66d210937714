"""Which layers a gateway holds, as people write it and as the trunk is cut by it."""

from dataclasses import replace

import pytest

from expertmesh_common.bundle.blobs import Bundle
from expertmesh_common.errors import InvalidInput
from expertmesh_controller.cluster.bundles import ServedBundle
from expertmesh_controller.cluster.local_layers import checked_ranges, cuts_of, held_layers, spelled, stops_of
from expertmesh_controller.gateway.fetching import gateway_blobs, numerics_of
from expertmesh_controller.gateway.trunk.runs import Run, runs_of
from models import tiny_bundle as tiny


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return Bundle(tiny.make_tiny_bundle(tmp_path_factory.mktemp("tiny"))).manifest


@pytest.mark.parametrize(
    ("stops", "runs"),
    [
        ((), [(0, 3, False)]),
        ((0, 1, 2, 3), [(0, 0, True), (1, 1, True), (2, 2, True), (3, 3, True)]),
        ((1,), [(0, 1, True), (2, 3, False)]),
        ((0, 3), [(0, 0, True), (1, 3, True)]),
        ((2, 3), [(0, 2, True), (3, 3, True)]),
        ((0,), [(0, 0, True), (1, 3, False)]),
    ],
)
def test_a_run_ends_in_front_of_experts_elsewhere_and_the_next_begins_behind_them(stops, runs) -> None:
    assert runs_of(4, stops) == tuple(Run(first, last, asks=asks) for first, last, asks in runs)


@pytest.mark.parametrize("layers", range(1, 6))
def test_the_runs_of_any_cut_are_all_layers_in_order(layers: int) -> None:
    for cut in range(2**layers):
        stops = [layer for layer in range(layers) if cut >> layer & 1]
        runs = runs_of(layers, stops)
        assert [layer for run in runs for layer in run.layers] == list(range(layers))
        assert [run.last for run in runs if run.asks] == stops
        assert len(runs) - len(stops) == (layers - 1 not in stops)


@pytest.mark.parametrize(
    ("text", "held"),
    [
        ("", {0, 1, 2}),
        ("all", {0, 1, 2}),
        ("1", {1}),
        ("0,2", {0, 2}),
        (" 1-2, 2 ", {1, 2}),
        ("none", set()),
        (" none ", set()),
    ],
)
def test_layers_are_written_as_ranges(manifest, text: str, held: set[int]) -> None:
    assert held_layers(manifest, "fast", text) == held
    assert stops_of(manifest, held) == tuple(sorted({0, 1, 2} - held))
    assert held_layers(manifest, "fast", spelled(manifest, held)) == held


@pytest.mark.parametrize(
    ("held", "text"), [({0, 1, 2}, ""), ({0, 1}, "0-1"), ({0, 2}, "0,2"), ({1}, "1"), (set(), "none")]
)
def test_equal_layers_are_spelled_alike(manifest, held: set[int], text: str) -> None:
    assert spelled(manifest, held) == text


def test_a_dense_layer_belongs_to_whatever_run_it_lies_in(manifest) -> None:
    dense = manifest.layers[0].model_copy(update={"kind": "dense", "gate": None, "experts": ()})
    changed = manifest.model_copy(update={"layers": (dense, *manifest.layers[1:])})
    assert held_layers(changed, "fast", "0-1") == {1}
    assert (stops_of(changed, {1}), spelled(changed, {1})) == ((2,), "1")
    with pytest.raises(InvalidInput, match="none of these layers of tiny has experts"):
        held_layers(changed, "fast", "0")


def test_the_trunk_is_one_graph_where_nothing_is_elsewhere_and_cut_everywhere_where_nothing_is_held(manifest) -> None:
    dense = {"kind": "dense", "gate": None, "experts": ()}
    changed = manifest.model_copy(update={"layers": tuple(layer.model_copy(update=dense) for layer in manifest.layers)})
    assert cuts_of(manifest, None) is None
    assert cuts_of(manifest, frozenset()) is None
    assert cuts_of(manifest, {1}) == (0, 2)
    assert cuts_of(manifest, {0, 1, 2}) == ()
    assert cuts_of(changed, frozenset()) == ()


def test_a_model_of_dense_layers_only_has_nothing_for_workers_whatever_was_asked(manifest) -> None:
    dense = {"kind": "dense", "gate": None, "experts": ()}
    changed = manifest.model_copy(update={"layers": tuple(layer.model_copy(update=dense) for layer in manifest.layers)})
    assert spelled(changed, held_layers(changed, "fast", "none")) == ""


@pytest.mark.parametrize(
    "text", ["x", "1 2", "0 3", "0-", "-1", "2-1", "0,,1", "1;2", ",", "1-2-3", "1e3", "9" * 40, "none,1", "None"]
)
def test_what_is_no_list_of_ranges_is_refused_with_what_is_expected(manifest, text: str) -> None:
    with pytest.raises(InvalidInput, match=r"local_layers .*expected `all`, `none`, or ranges"):
        held_layers(manifest, "fast", text)


def test_no_layers_belong_to_numerics_fast_like_some() -> None:
    assert checked_ranges("none", "fast") == "none"
    with pytest.raises(InvalidInput, match="local_layers 'none': only numerics `fast` have some"):
        checked_ranges("none", "exact")


def test_layers_beyond_the_model_are_refused_without_counting_to_them(manifest) -> None:
    with pytest.raises(InvalidInput, match=r"local_layers '0-999999': tiny has layers 0 to 2, none numbered 999999"):
        held_layers(manifest, "fast", "0-999999")


def test_a_gateway_that_knows_no_local_layers_does_not_take_the_whole_model_for_them() -> None:
    some, none, whole = (ServedBundle("m", "int4", "0" * 64, 1, "fast", text) for text in ("0-1", "none", ""))
    assert [ServedBundle.from_proto(bundle.to_proto()) for bundle in (some, none, whole)] == [some, none, whole]
    for bundle in (some, none):
        older = replace(bundle, numerics=bundle.to_proto().numerics, local_layers="")
        with pytest.raises(InvalidInput, match="unknown to this gateway"):
            numerics_of(older)
    assert whole.to_proto().numerics == "fast"


def test_a_gateway_elsewhere_fetches_the_experts_of_its_layers_only(manifest) -> None:
    def experts(text: str) -> set[tuple[int, int]]:
        digests = {blob.digest for blob in gateway_blobs(manifest, "fp32", "fast", text)}
        found = [(layer.index, e) for layer in manifest.layers for e in layer.experts]
        return {(layer, e.index) for layer, e in found if e.blobs["fp32"].digest in digests}

    assert experts("none") == set()
    assert experts("0,2") == {(layer, index) for layer in (0, 2) for index in range(tiny.EXPERTS)}
