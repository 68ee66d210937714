"""What an expert plane counts."""

from __future__ import annotations

import numpy as np
import pytest

from rigs.expert_planes import (
    EVERYTHING,
    EXPERTS,
    LAYERS,
    WIDTH,
    check,
    some_rows,
    table,
)


def test_the_plane_counts_rows_per_expert_routed_neurons_and_bytes(start_here, make_plane):
    worker, host = start_here()
    plane = make_plane()
    plane.update(table(1, (worker.route, EVERYTHING)))
    rows = some_rows(6)
    plane.begin(6)
    check(plane, 1, rows)
    pairs = [pair for _, asked, _ in host.requests for pair in asked]
    assert plane.counters.rows() == {(1, e): n for e in range(EXPERTS) if (n := sum(x == e for _, x in pairs))}
    neurons = [sum(WIDTH + e for t, e in pairs if t == row) for row in range(6)]
    assert plane.active == pytest.approx([n / (39 * LAYERS) for n in neurons])
    traffic = plane.traffic()
    assert traffic.frames == 1
    assert traffic.bytes_sent > rows.nbytes
    assert traffic.bytes_received > rows.nbytes


def test_a_lone_row_counts_like_one_among_others(start_here, make_plane):
    worker, _ = start_here()
    alone, together = make_plane(), make_plane()
    rows = some_rows(5)
    for plane in (alone, together):
        plane.update(table(1, (worker.route, EVERYTHING)))
    together.begin(5)
    check(together, 0, rows)
    check(together, 1, rows)
    shares = []
    for row in rows:
        alone.begin(1)
        check(alone, 0, row[np.newaxis])
        check(alone, 1, row[np.newaxis])
        shares.append(alone.active.tolist())

    assert alone.counters.rows() == together.counters.rows()
    assert np.array(shares)[:, 0] == pytest.approx(together.active)


def test_a_step_begins_with_nothing_active(start_here, make_plane):
    worker, _ = start_here()
    plane = make_plane()
    plane.update(table(1, (worker.route, EVERYTHING)))
    for count in (1, 3):
        check(plane, 0, some_rows(count))
        plane.begin(count)

        assert plane.active.tolist() == [0] * count


def test_a_workers_traffic_still_counts_after_it_left_the_table(start_here, make_plane):
    (first, _), (second, _) = start_here("w0"), start_here("w1")
    plane = make_plane()
    plane.update(table(1, (first.route, EVERYTHING)))
    check(plane, 0, some_rows())
    before = plane.traffic()
    plane.update(table(2, (second.route, EVERYTHING)))
    check(plane, 0, some_rows())
    assert plane.traffic().bytes_sent == 2 * before.bytes_sent
