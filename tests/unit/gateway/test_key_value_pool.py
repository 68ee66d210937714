"""The key-value pool takes memory as it is written, not as it is sized."""

import numpy as np
import psutil

from expertmesh_controller.gateway.trunk.cache import KeyValuePool

MIB = 2**20


def private_bytes() -> int:
    return psutil.Process().memory_full_info().uss


def test_only_written_positions_take_memory() -> None:
    before = private_bytes()
    pool = KeyValuePool(layers=8, slots=16, kv_heads=4, context_tokens=8192, head_dim=64)  # 2.1 GiB of addresses
    for layer in range(8):
        for block in pool.slots(layer, 0, 4):
            block[:, :, :64] = 1.0  # 64 tokens of four slots: 8 MiB in all
    assert private_bytes() - before < 64 * MIB


def test_slots_are_views_of_one_contiguous_block() -> None:
    pool = KeyValuePool(layers=2, slots=4, kv_heads=2, context_tokens=16, head_dim=8)
    keys, values = pool.slots(1, 0, 3)
    assert keys.flags.c_contiguous
    assert values.shape == (3, 2, 16, 8)
    pool.slots(1, 2, 1)[0][...] = 7.0
    np.testing.assert_array_equal(keys[2], np.full((2, 16, 8), 7.0))
    assert not values.any()


def test_a_move_copies_what_is_valid_in_every_layer_and_nothing_more() -> None:
    pool = KeyValuePool(layers=2, slots=2, kv_heads=2, context_tokens=16, head_dim=8)
    for layer in range(2):
        for block in pool.slots(layer, 0, 1):
            block[...] = layer + 1
    pool.move(0, 2, 5)
    for layer in range(2):
        for block in pool.slots(layer, 2, 1):
            assert (block[0, :, :5] == layer + 1).all()
            assert not block[0, :, 5:].any()
