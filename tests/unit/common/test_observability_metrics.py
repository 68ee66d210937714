"""The metrics page: what was counted is what is shown, in the format that was asked for, whatever part fails."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from expertmesh_common.observability.exposition import Exposition, counter, gauge, histogram


def samples(page: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (s.name, tuple(sorted(s.labels.items()))): s.value
        for family in text_string_to_metric_families(page.decode())
        for s in family.samples
    }


def test_counters_gauges_and_histograms_are_shown_under_the_prefix():
    def source():
        yield counter("rows", "Rows.", ("model", "layer"), [(("tiny", "3"), 7.0)])
        yield gauge("queue_depth", "Waiting.", (), [((), 2)])
        yield histogram("token_seconds", "Per token.", ("model",), [(("tiny",), ((0.1, 0.2), (4, 1, 2), 0.9))])

    found = samples(Exposition("worker", [source]).render("")[0])
    assert found["expertmesh_rows_total", (("layer", "3"), ("model", "tiny"))] == 7
    assert found["expertmesh_queue_depth", ()] == 2
    tiny = ("model", "tiny")
    buckets = [found["expertmesh_token_seconds_bucket", (("le", le), tiny)] for le in ("0.1", "0.2", "+Inf")]
    assert buckets == [4, 5, 7]
    assert found["expertmesh_token_seconds_count", (tiny,)] == 7
    assert found["expertmesh_token_seconds_sum", (tiny,)] == 0.9


def test_a_part_that_cannot_be_read_is_counted_and_hides_no_other():
    def broken():
        raise RuntimeError("gone")

    exposition = Exposition("gateway", [broken, lambda: [gauge("slots", "Slots.", (), [((), 4)])]])
    found = samples(exposition.render("")[0])
    assert found["expertmesh_slots", ()] == 4
    assert found["expertmesh_scrape_failures_total", ()] == 1


def test_version_part_and_the_process_itself_are_always_there():
    found = samples(Exposition("worker", []).render("")[0])
    assert any(name == "expertmesh_build_info" and ("part", "worker") in labels for name, labels in found)
    assert found["process_resident_memory_bytes", ()] > 0


def test_a_scraper_that_accepts_open_metrics_gets_it():
    body, content_type = Exposition("worker", []).render("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")
