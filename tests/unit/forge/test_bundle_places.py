"""Where a bundle is written: links are followed and stay links, and what is in the way is said before any work."""

from pathlib import Path

import pytest

from expertmesh_common.bundle.blobs import Bundle
from expertmesh_forge.bundling.writing import place_of, swap_into_place
from expertmesh_forge.carve.settings import CarveSettings
from expertmesh_forge.converting import ConvertRequest, convert
from expertmesh_forge.errors import BundleError
from models import tiny_gguf as tiny


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return tiny.write_gguf(tmp_path_factory.mktemp("source") / "tiny.gguf")


@pytest.fixture
def make(source):
    """Convert into a folder; the share tells one bundle from another."""

    def convert_into(folder: Path, share: float = 1.0, on_progress=lambda *_: None) -> None:
        request = ConvertRequest(
            str(source), folder, CarveSettings(target_share=share), ("fp32",), window_tokens=64,
            calibration_windows=1, held_out_windows=0,
        )  # fmt: skip
        convert(request, on_progress)

    return convert_into


def share_of(folder: Path) -> float:
    return Bundle(folder).manifest.calibration.target_share


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.glob("*"))


def test_a_bundle_goes_where_a_link_points_and_the_link_stays(make, tmp_path) -> None:
    disk = tmp_path / "disk"
    make(disk / "real")
    (tmp_path / "link").symlink_to(disk / "real")

    make(tmp_path / "link", share=0.75)

    assert (tmp_path / "link").readlink() == disk / "real"
    assert not (disk / "real").is_symlink()
    assert share_of(disk / "real") == 0.75
    assert (everything(tmp_path), everything(disk)) == (["disk", "link"], ["real"])


def test_a_link_to_nothing_yet_says_where_the_bundle_goes(make, tmp_path) -> None:
    (tmp_path / "link").symlink_to(Path("disk") / "real")

    make(tmp_path / "link")

    assert (tmp_path / "link").is_symlink()
    assert share_of(tmp_path / "disk" / "real") == 1.0


def test_a_parent_may_be_a_link(make, tmp_path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "bundles").symlink_to(tmp_path / "disk")

    for share in (1.0, 0.75):
        make(tmp_path / "bundles" / "b", share)

    assert share_of(tmp_path / "disk" / "b") == 0.75
    assert (tmp_path / "bundles").is_symlink()
    assert everything(tmp_path / "disk") == ["b"]


def test_an_old_bundle_behind_a_link_survives_a_failure(make, tmp_path) -> None:
    make(tmp_path / "disk" / "real")
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "real")

    def fail(stage: str, done: int, _total: int) -> None:
        if (stage, done) == ("write", 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "link", 0.75, fail)
    assert share_of(tmp_path / "link") == 1.0
    assert (tmp_path / "link").is_symlink()
    assert everything(tmp_path / "disk") == ["real"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_old_bundle_comes_back_when_the_new_one_cannot_take_its_place(tmp_path, monkeypatch, error) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "manifest.json").write_text("old")
    new = tmp_path / "new"
    new.mkdir()
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self == new:
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(error):
        swap_into_place(new, tmp_path / "b")
    assert (tmp_path / "b" / "manifest.json").read_text() == "old"
    assert everything(tmp_path) == ["b", "new"]


def test_parents_that_do_not_exist_are_made(make, tmp_path) -> None:
    make(tmp_path / "some" / "where" / "b")

    assert share_of(tmp_path / "some" / "where" / "b") == 1.0


def test_a_file_in_the_way_is_named_before_any_work_and_left_alone(make, tmp_path) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    (tmp_path / "link").symlink_to(path)

    for asked in (path, path / "b", path / "some" / "b", tmp_path / "link"):
        stages: list[str] = []
        with pytest.raises(BundleError, match=rf"^{path} is a file, so no bundle can be written to {asked}; choose"):
            make(asked, on_progress=lambda stage, *_: stages.append(stage))  # noqa: B023 - called before the next turn
        assert stages == []
    assert path.read_text() == "mine"


def test_links_in_a_circle_are_refused(tmp_path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")

    with pytest.raises(BundleError, match=r"/a leads nowhere .*choose another folder"):
        place_of(tmp_path / "a")
