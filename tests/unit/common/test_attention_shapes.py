"""What cannot be computed is refused when the graph is made; and tables of rotary positions."""

from dataclasses import replace

import numpy as np
import pytest

from expertmesh_common.bundle.parts import Rope
from expertmesh_common.bundle.tensors import encode_tensors, tensor_views
from expertmesh_common.errors import InvalidInput
from expertmesh_common.graphs.trunk import TrunkShape, rope_tables, rope_tables_of, segment_graph
from models.attention_kinds import GROUPED, HIDDEN, LATENT, Kind, random_segments


def graph_of(shape: TrunkShape) -> bytes:
    data = encode_tensors(random_segments(Kind())[0])
    return segment_graph(shape, 0, "fp32", tensor_views(data, len(data), "layer"), "weights")


def trunk(*attention) -> TrunkShape:
    first = attention[0]
    return TrunkShape(2, HIDDEN, first.heads, first.kv_heads, first.head_dim, 1e-5, attention)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (trunk(GROUPED), "a trunk of 2 layers has attention shapes of 1"),
        (replace(trunk(GROUPED, GROUPED), kv_heads=4), "layer 0 has 2 key-value heads of 16, the cache 4 of 16"),
        (trunk(*[replace(GROUPED, head_dim=24)] * 2), "multiple of 16"),
        (trunk(*[replace(GROUPED, head_dim=12, rotary=False)] * 2), "multiple of 8"),
        (trunk(*[replace(GROUPED, heads=3)] * 2), "the heads one of the key-value heads"),
        (trunk(*[replace(LATENT, kv_heads=2)] * 2), "as many key-value heads, of size 16 [+] 16; it has 2 of 32"),
        (trunk(*[replace(LATENT, head_dim=48)] * 2), "it has 4 of 48"),
        (trunk(*[replace(LATENT, latent=replace(LATENT.latent, value_dim=40))] * 2), "values must fit heads of 32"),
        (
            trunk(*[replace(LATENT, latent=replace(LATENT.latent, nope_dim=24, rope_dim=8))] * 2),
            "rotary keys be a multiple of 16",
        ),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shape: TrunkShape, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        graph_of(shape)


def test_without_attention_shapes_every_layer_is_as_the_plain_fields_say() -> None:
    assert graph_of(trunk(GROUPED, GROUPED)) == graph_of(TrunkShape(2, HIDDEN, 4, 2, 16, 1e-5))


def test_tables_say_the_same_of_a_base_and_of_its_frequencies() -> None:
    frequencies = tuple(float(500.0 ** (-i / 8)) for i in range(8))
    plain = rope_tables(500.0, 16, 30)
    for table, same in zip(plain, rope_tables_of(Rope(inverse_frequencies=frequencies), 30), strict=True):
        assert table.dtype == np.float32
        assert table.shape == (30, 8)
        np.testing.assert_allclose(table, same, atol=1e-6)


def test_the_factor_of_a_rope_is_in_its_tables() -> None:
    cos, sin = rope_tables_of(Rope(inverse_frequencies=(0.5, 0.25), factor=1.5), 4)
    np.testing.assert_allclose(cos[0], 1.5)
    np.testing.assert_allclose(sin[3], 1.5 * np.sin([1.5, 0.75]), rtol=1e-6)
