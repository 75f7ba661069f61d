"""What a training step is cut into, what a checkpoint keeps, what a neighbour table refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fsl_dist.errors import StaleOwnerError, TrainingError
from fsl_dist.methods.method import Batch
from fsl_dist.methods.mining.neighbour_table import NeighbourTable, write_part
from fsl_dist.models.batch_norm import group_sizes
from fsl_dist.training.checkpoint import TENSORS, CheckpointFolder, Progress, read_checkpoint, tables_of
from fsl_dist.training.runlog import describe_progress
from fsl_dist.training.step import deal_pieces
from index.base.files import Owner


def batch_of(num: int, num_classes: int = 4) -> Batch:
    return Batch(np.arange(100, 100 + num), np.sort(np.arange(num) % num_classes))


@settings(max_examples=60)
@given(num=st.integers(2, 70), world_size=st.integers(1, 5), group=st.integers(2, 40), is_ghost=st.booleans())
def test_a_global_batch_is_forwarded_once_whatever_the_workers(
    num: int, world_size: int, group: int, is_ghost: bool
) -> None:
    batch = batch_of(num)
    pieces = [
        deal_pieces(
            [batch], is_global=True, rank=rank, world_size=world_size, is_ghost=is_ghost, ghost_group=group
        )[0]
        for rank in range(world_size)
    ]
    rows = [piece.positions for piece in pieces if not piece.is_empty]
    assert sorted(np.concatenate(rows).tolist()) == list(range(num))
    assert [piece.rows_of_rank for piece in pieces] == [[len(r) for r in map(_own, pieces)]] * world_size
    if is_ghost:
        # No worker cuts a group: the sizes of all workers, one after the other, are the groups.
        chunks = [chunk for piece in pieces if not piece.is_empty for chunk in piece.chunks]
        sizes = [size for chunk in chunks for size in chunk.ghost_sizes]
        assert sizes == group_sizes(num, group)


def _own(piece: object) -> np.ndarray:
    return piece.order[piece.rows]  # type: ignore[attr-defined]


@given(num_batches=st.integers(1, 9), world_size=st.integers(1, 5))
def test_local_batches_are_dealt_out_whole(num_batches: int, world_size: int) -> None:
    batches = [batch_of(6) for _ in range(num_batches)]
    dealt = []
    for rank in range(world_size):
        pieces = deal_pieces(
            batches, is_global=False, rank=rank, world_size=world_size, is_ghost=False, ghost_group=4
        )
        assert pieces  # DDP counts on every worker
        dealt += [piece.batch for piece in pieces if not piece.is_empty]
    assert sorted(dealt) == list(range(num_batches))


def write(folder: CheckpointFolder, step: int, best_step: int = -1, table: str = "") -> Path:
    method: dict[str, torch.Tensor | str | int] = {"means": torch.full((2,), float(step))}
    if table:
        method["table"] = table
    progress = Progress(global_step=step, best_step=best_step)
    return folder.write(
        progress, network={"w": torch.ones(3) * step}, optimizer={}, method=method, catalogue="abc"
    )


def test_checkpoints_keep_the_newest_and_the_best(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep=2, owner=None)
    assert folder.latest() is None
    assert folder.best() is None
    for step in (10, 20, 30, 40, 50):
        write(folder, step, best_step=20 if step >= 20 else -1, table=f"t{step}")
        stay = folder.prune()
    assert [path.name for path in stay] == ["step-00000020", "step-00000040", "step-00000050"]
    assert folder.finished() == stay
    assert tables_of(stay) == {"t20", "t40", "t50"}
    best, latest = folder.best(), folder.latest()
    assert best is not None
    assert latest is not None
    assert read_checkpoint(best, torch.device("cpu")).network["w"].tolist() == [20.0] * 3
    found = read_checkpoint(latest, torch.device("cpu"))
    assert found.progress == Progress(global_step=50, best_step=20)
    assert found.method["table"] == "t50"


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    folder = write(CheckpointFolder(tmp_path, keep=2, owner=None), 10)
    data = bytearray((folder / TENSORS).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / TENSORS).write_bytes(data)
    with pytest.raises(TrainingError, match=r"state\.pt is damaged"):
        read_checkpoint(folder, torch.device("cpu"))
    (folder / TENSORS).unlink()
    with pytest.raises(TrainingError, match=r"state\.pt is missing"):
        read_checkpoint(folder, torch.device("cpu"))
    (folder / "checkpoint.json").write_text("{")
    with pytest.raises(TrainingError, match=r"checkpoint\.json is damaged"):
        read_checkpoint(folder, torch.device("cpu"))


def test_a_stale_owner_publishes_no_checkpoint(tmp_path: Path) -> None:
    stale = CheckpointFolder(tmp_path, keep=2, owner=Owner.claim(tmp_path))
    Owner.claim(tmp_path)
    with pytest.raises(StaleOwnerError, match="stops writing"):
        write(stale, 10)
    assert stale.finished() == []


def test_a_table_is_read_by_row_across_its_parts(tmp_path: Path) -> None:
    same, other = np.arange(14).reshape(7, 2), np.arange(100, 121).reshape(7, 3)
    rows = np.concatenate([same, other], axis=1)
    write_part(tmp_path, 1, 4, rows[4:])
    write_part(tmp_path, 0, 0, rows[:4])
    write_part(tmp_path, 2, 7, rows[7:])  # a worker without a share
    table = NeighbourTable.open(tmp_path, 2, 5)
    found_same, found_other = table.rows(np.array([6, 0, 4, 3]))
    assert found_same.tolist() == same[[6, 0, 4, 3]].tolist()
    assert found_other.tolist() == other[[6, 0, 4, 3]].tolist()
    assert NeighbourTable.reopen(tmp_path, 2, 5, table.crc32).step == 5
    with pytest.raises(TrainingError, match="the checkpoint needs"):
        NeighbourTable.reopen(tmp_path, 2, 5, table.crc32 + 1)
    with pytest.raises(TrainingError, match="is missing"):
        NeighbourTable.reopen(tmp_path / "gone", 2, 5, table.crc32)


def test_progress_says_what_is_left() -> None:
    line = {
        "step": 25, "epoch": 2, "train/loss": 0.5, "train/images_seen": 250.0,
        "time/images_per_s": 100.0, "time/data_wait_s": 0.002,
    }  # fmt: skip
    text = describe_progress(line, num_epochs=10, num_steps=10, num_images=0, elapsed_s=20, done_steps=20)
    assert "epoch 3/10  step 5/10" in text
    assert "at most 1:15 left" in text
    text = describe_progress(line, num_epochs=10, num_steps=10, num_images=300, elapsed_s=20, done_steps=20)
    assert "at most 0:05 left" in text
    assert json.dumps(line)
