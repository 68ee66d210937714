import numpy as np
import pytest

from expertmesh_forge.carve.settings import CarveSettings
from expertmesh_forge.curve.arms import ARMS, LayerInput
from expertmesh_forge.curve.measuring import CurveRequest, measure_curve
from expertmesh_forge.curve.publishing import publish_curve
from expertmesh_forge.dense_model import DenseLayer
from expertmesh_forge.measuring import perplexity_ratio
from models import tiny_gguf as tiny


@pytest.fixture(scope="module")
def curve(tmp_path_factory):
    source = tiny.write_gguf(tmp_path_factory.mktemp("curve") / "tiny.gguf")
    request = CurveRequest(str(source), shares=(0.75, 0.5), held_out_windows=2, calibration_windows=2)
    return measure_curve(request, lambda _stage, _done, _total: None)


def test_every_arm_is_measured_and_static_pruning_only_once_where_nothing_is_routed(curve):
    found = [(point.target_share, point.arm) for point in curve.points]
    everyone = [arm.name for arm in ARMS]
    assert found == [(0.75, name) for name in everyone] + [(0.5, n) for n in ("static-refit", "static", "random")]


def test_no_arm_gets_more_neurons_than_another(curve):
    for point in curve.points:
        assert point.heldout_share == pytest.approx(point.target_share, abs=0.1)


def test_the_page_and_the_picture_are_written(curve, tmp_path):
    page, picture = publish_curve(curve, tmp_path)
    text = page.read_text()
    assert text.count("\n| ") == 1 + len(curve.points)
    assert f"{curve.held_out_tokens:,} held-out tokens" in text
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_arms_decide_from_calibration_rows_alone():
    random = np.random.default_rng(0)
    rows = random.standard_normal((300, 8)).astype(np.float32)
    neurons = random.standard_normal((300, 64)).astype(np.float32)
    none = np.zeros((0, 0), np.float32)
    down = random.standard_normal((8, 64)).astype(np.float32)
    layer = DenseLayer(none, none, none, none, none, none, none, none, down)
    changed = neurons.copy()
    changed[240:] *= 100
    for arm in ARMS:
        if arm.name == "oracle":  # it looks at the rows it is judged on: that makes it the bound
            continue
        first, second = (
            arm.mask(LayerInput(layer, rows, values, fit=200, calibration=240), CarveSettings(target_share=0.75))
            for values in (neurons, changed)
        )
        np.testing.assert_array_equal(first, second)


def test_the_ratio_and_its_interval_come_from_differences_between_the_same_documents():
    dense = np.random.default_rng(0).normal(3, 1, 40)
    same = perplexity_ratio(dense + np.log(1.1), dense)
    assert (same.ratio, same.low, same.high) == pytest.approx((1.1, 1.1, 1.1))
    spread = perplexity_ratio(dense + np.random.default_rng(1).normal(0.1, 0.05, 40), dense)
    assert 1.0 < spread.low < spread.ratio < spread.high < 1.2
