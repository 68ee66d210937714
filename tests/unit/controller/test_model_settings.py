"""Which models a controller is told to serve: flags, environment, or a table per model in the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from expertmesh_common.errors import InvalidInput
from expertmesh_controller.process import specs_of
from expertmesh_controller.settings import read_settings


def read(flags=None, environment=None, file=None):
    return [(s.name, s.path) for s in specs_of(read_settings(flags or {}, environment or {}, file))]


def test_a_flag_may_name_its_model_and_be_repeated():
    found = read({"model": ["/bundles/a", "second=/bundles/b"]})
    assert found == [("", Path("/bundles/a")), ("second", Path("/bundles/b"))]


def test_a_folder_with_an_equals_sign_is_a_folder(tmp_path):
    (tmp_path / "a=b").mkdir()
    assert read({"model": [str(tmp_path / "a=b")]}) == [("", tmp_path / "a=b")]


def test_the_environment_separates_models_like_paths():
    assert read(environment={"EXPERTMESH_MODEL": "/a:x=/b"}) == [("", Path("/a")), ("x", Path("/b"))]


def test_a_file_says_everything_about_each_model(tmp_path):
    file = tmp_path / "settings.toml"
    file.write_text(
        '[controller]\nslots = 3\n[[controller.models]]\npath = "/a"\n[[controller.models]]\nname = "b"\npath = "/b"\n'
        'precision = "int4"\nslots = 8\nbudget_share = 0.3\nsla = {ttft_p95_ms = 200, max_instances = 2}\n'
    )
    first, second = specs_of(read_settings({}, {}, file))
    assert (first.name, first.precision, first.slots, first.budget_share) == ("", "fp32", 3, 1.0)
    assert (second.name, second.precision, second.slots, second.budget_share) == ("b", "int4", 8, 0.3)
    assert (second.sla.ttft_p95_ms, second.sla.max_instances, second.sla.window_s) == (200, 2, 60)


def test_a_model_takes_the_controllers_local_layers_with_its_numerics_only(tmp_path):
    file = tmp_path / "settings.toml"
    file.write_text(
        '[controller]\nnumerics = "fast"\nlocal_layers = "0-7"\n[[controller.models]]\npath = "/a"\n'
        '[[controller.models]]\npath = "/b"\nlocal_layers = "3"\n'
        '[[controller.models]]\npath = "/c"\nnumerics = "exact"\n'
        '[[controller.models]]\npath = "/d"\nnumerics = "fast"\n'
        '[[controller.models]]\npath = "/e"\nlocal_layers = "none"\n'
    )
    found = specs_of(read_settings({}, {}, file))
    wanted = [("fast", "0-7"), ("fast", "3"), ("exact", ""), ("fast", "0-7"), ("fast", "none")]
    assert [(spec.numerics, spec.local_layers) for spec in found] == wanted


def test_local_layers_that_no_model_can_have_are_refused_with_the_settings():
    for flags in ({"local_layers": "0-7"}, {"local_layers": "none"}, {"local_layers": "foo", "numerics": "fast"}):
        with pytest.raises(InvalidInput, match=r"^local_layers '"):
            read_settings({"model": ["/a"], **flags}, {}, None)
    assert read_settings({"model": ["/a"], "local_layers": "all"}, {}, None).numerics == "exact"
    none = read_settings({"model": ["/a"], "local_layers": "none", "numerics": "fast"}, {}, None)
    assert specs_of(none)[0].local_layers == "none"


def test_a_flag_replaces_the_models_of_the_file(tmp_path):
    file = tmp_path / "settings.toml"
    file.write_text('[[controller.models]]\npath = "/a"\n[[controller.models]]\npath = "/b"\n')
    assert read({"model": ["/c"]}, file=file) == [("", Path("/c"))]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('[controller]\nmodel = "/a"\n[[controller.models]]\npath = "/b"\n', "'model' and 'models'"),
        ('[[controller.models]]\npath = "/a"\nbudget_share = 2.0\n', "models.0.budget_share"),
        ('[[controller.models]]\npath = "/a"\nsla = {ttft = 1}\n', "models.0.sla.ttft"),
        ("[controller]\nslots = 2\n", "'model' is missing"),
        ("[controller]\nmodel = 7\n", "'model'"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, named):
    file = tmp_path / "settings.toml"
    file.write_text(text)
    with pytest.raises(InvalidInput, match=named):
        read_settings({}, {}, file)
