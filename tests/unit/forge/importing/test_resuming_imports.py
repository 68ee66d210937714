"""An import that ends early goes on where it ended, and never leaves half a bundle in the place of a whole one."""

import errno
import fcntl
from pathlib import Path

import pytest

from expertmesh_common.bundle.blobs import BlobStore, Bundle
from expertmesh_forge.errors import BundleError
from expertmesh_forge.importing.importer import (
    ImportCancelled,
    ImportRequest,
    OutOfSpace,
    import_checkpoint,
)
from expertmesh_forge.importing.resume import leftovers
from models.altered_checkpoints import alter_config

PIECES = 3 * (1 + 7) + 1  # 3 layers of a segment and 7 experts, and the head


class Watcher:
    """Counts pieces; may interrupt after one of them."""

    def __init__(self, stop_after: int | None = None, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.stop_after, self.error = stop_after, error
        self.seen: list[int] = []

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != "import":
            return
        assert total == PIECES
        self.seen.append(done)
        if done == self.stop_after:
            raise self.error


def request(folder: Path, out: Path, **options: object) -> ImportRequest:
    return ImportRequest(folder, out, **{"precisions": ("fp32",), "name": "tiny", **options})


def interrupt(folder: Path, out: Path, after: int, **options: object) -> None:
    with pytest.raises(KeyboardInterrupt):
        import_checkpoint(request(folder, out, **options), Watcher(after))


def test_progress_counts_every_piece_once(mixtral, tmp_path) -> None:
    watcher = Watcher()

    import_checkpoint(request(mixtral, tmp_path / "b"), watcher)

    assert watcher.seen == list(range(1, PIECES + 1))


def test_finished_layers_are_not_written_again_and_the_bundle_is_the_same(mixtral, tmp_path) -> None:
    whole = import_checkpoint(request(mixtral, tmp_path / "whole"))
    interrupt(mixtral, tmp_path / "b", after=19)
    again = Watcher()

    resumed = import_checkpoint(request(mixtral, tmp_path / "b"), again)

    assert resumed.resumed_steps == 2
    assert again.seen == [8, 16, *range(17, PIECES + 1)]
    assert resumed.manifest == whole.manifest
    assert leftovers(tmp_path / "b") == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "mixtral", "whole"]


def test_between_two_experts_an_import_can_be_cancelled(mixtral, tmp_path) -> None:
    watcher = Watcher()

    with pytest.raises(ImportCancelled, match="run it again"):
        import_checkpoint(request(mixtral, tmp_path / "b"), watcher, lambda: watcher.seen[-1] == 12)

    assert watcher.seen[-1] == 12
    assert import_checkpoint(request(mixtral, tmp_path / "b")).resumed_steps == 1


def test_a_bundle_that_was_there_stays_until_the_end(checkpoint, mixtral, tmp_path) -> None:
    before = import_checkpoint(request(checkpoint("olmoe"), tmp_path / "b")).manifest
    interrupt(mixtral, tmp_path / "b", after=PIECES)

    assert Bundle(tmp_path / "b").manifest == before


def test_a_damaged_blob_makes_its_layer_be_written_again(mixtral, tmp_path) -> None:
    whole = import_checkpoint(request(mixtral, tmp_path / "whole"))
    interrupt(mixtral, tmp_path / "b", after=19)
    digest = whole.manifest.layers[0].experts[2].blobs["fp32"].digest
    damaged = BlobStore(leftovers(tmp_path / "b")[0] / "blobs").path(digest)
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\x01")

    resumed = import_checkpoint(request(mixtral, tmp_path / "b"))

    assert resumed.resumed_steps == 1
    assert Bundle(tmp_path / "b").path(whole.manifest.layers[0].experts[2].blobs["fp32"]).is_file()
    assert resumed.manifest == whole.manifest


def test_a_journal_line_that_was_cut_short_does_not_count(mixtral, tmp_path) -> None:
    interrupt(mixtral, tmp_path / "b", after=19)
    journal = leftovers(tmp_path / "b")[0] / "journal.jsonl"
    journal.write_text(journal.read_text()[:-40])

    assert import_checkpoint(request(mixtral, tmp_path / "b")).resumed_steps == 1


def test_what_follows_a_line_that_was_cut_short_counts(mixtral, tmp_path) -> None:
    interrupt(mixtral, tmp_path / "b", after=19)
    journal = leftovers(tmp_path / "b")[0] / "journal.jsonl"
    journal.write_text(journal.read_text()[:-40])
    interrupt(mixtral, tmp_path / "b", after=19)

    assert import_checkpoint(request(mixtral, tmp_path / "b")).resumed_steps == 2


def test_while_finished_layers_are_checked_an_import_can_be_cancelled(mixtral, tmp_path) -> None:
    interrupt(mixtral, tmp_path / "b", after=19)
    stages: list[tuple[str, int]] = []

    with pytest.raises(ImportCancelled, match="run it again"):
        import_checkpoint(
            request(mixtral, tmp_path / "b"), lambda stage, done, _: stages.append((stage, done)), lambda: True
        )

    assert stages == [("check", 1)]
    assert import_checkpoint(request(mixtral, tmp_path / "b")).resumed_steps == 2


@pytest.mark.parametrize("options", [{"precisions": ("int4",)}, {"context_tokens": 100}])
def test_other_settings_start_an_import_of_their_own(mixtral, tmp_path, options) -> None:
    interrupt(mixtral, tmp_path / "b", after=19)

    assert import_checkpoint(request(mixtral, tmp_path / "b", **options)).resumed_steps == 0


def test_another_source_starts_an_import_of_its_own(mixtral, tmp_path) -> None:
    interrupt(mixtral, tmp_path / "b", after=19)
    alter_config(mixtral, rms_norm_eps=1e-4)

    assert import_checkpoint(request(mixtral, tmp_path / "b")).resumed_steps == 0


def test_fresh_drops_what_earlier_imports_left(mixtral, tmp_path) -> None:
    interrupt(mixtral, tmp_path / "b", after=19)
    interrupt(mixtral, tmp_path / "b", after=19, precisions=("int4",))
    assert len(leftovers(tmp_path / "b")) == 2

    assert import_checkpoint(request(mixtral, tmp_path / "b", fresh=True)).resumed_steps == 0
    assert leftovers(tmp_path / "b") == []


def test_fresh_leaves_the_imports_of_neighbours_alone(mixtral, tmp_path) -> None:
    interrupt(mixtral, tmp_path / "b.v2", after=19)

    assert leftovers(tmp_path / "b") == []
    import_checkpoint(request(mixtral, tmp_path / "b", fresh=True))
    assert import_checkpoint(request(mixtral, tmp_path / "b.v2")).resumed_steps == 2


@pytest.mark.parametrize("fresh", [False, True])
def test_two_imports_of_the_same_do_not_mix(mixtral, tmp_path, fresh: bool) -> None:
    interrupt(mixtral, tmp_path / "b", after=19)
    journal = leftovers(tmp_path / "b")[0] / "journal.jsonl"
    with journal.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(BundleError, match="another process is importing"):
            import_checkpoint(request(mixtral, tmp_path / "b", fresh=fresh))
    assert import_checkpoint(request(mixtral, tmp_path / "b")).resumed_steps == 2


def test_a_full_disk_says_so_and_keeps_what_is_finished(mixtral, tmp_path, monkeypatch) -> None:
    written = []
    put = BlobStore.put

    def until_full(self: BlobStore, data: bytes):
        written.append(data)
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return put(self, data)

    monkeypatch.setattr(BlobStore, "put", until_full)
    with pytest.raises(OutOfSpace, match=r"no space is left on the disk of .*run the same command again"):
        import_checkpoint(request(mixtral, tmp_path / "b"))
    monkeypatch.undo()

    assert import_checkpoint(request(mixtral, tmp_path / "b")).resumed_steps == 2
