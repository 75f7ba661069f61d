"""Communication between training workers; the same calls work for a single process."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, slots=True)
class WorkerGroup:
    """The workers that train one network: rank_of_this among world_size."""

    rank: int = 0
    world_size: int = 1

    @classmethod
    def current(cls) -> "WorkerGroup":
        """The initialised process group, or a group of one process."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    @property
    def is_first(self) -> bool:
        """Whether this worker writes files and speaks for all."""
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """Replace `tensor` by its sum over all workers; returns it."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def average_(self, tensors: list[Tensor]) -> None:
        """Replace each of `tensors` (float, of one dtype) by its mean over all workers."""
        if self.world_size == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        self.sum_(flat).div_(self.world_size)
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def any(self, is_so: bool, device: torch.device) -> bool:
        """Whether it is so on any worker; the same on all of them."""
        return self.sum_(torch.tensor(float(is_so), device=device)).item() > 0

    def barrier(self) -> None:
        """Wait until every worker has come here."""
        if self.world_size > 1:
            dist.barrier()

    def share_text(self, text: str) -> str:
        """Rank 0's text, on every worker."""
        if self.world_size == 1:
            return text
        box = [text]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def first_text(self, text: str) -> str:
        """The text of the first worker, by rank, that has one; empty where none has. The same on every worker."""
        if self.world_size == 1:
            return text
        box = [""] * self.world_size
        dist.all_gather_object(box, text)
        return next(filter(None, box), "")

    def gather_rows(self, local: Tensor, rows_of_rank: list[int]) -> Tensor:
        """Return all workers' rows in the order of ranks: [sum(rows_of_rank), dim].

        local: [rows_of_rank[rank], dim]. Only the local rows carry a gradient. If every worker computes the same loss
        of the gathered rows, each backward pass yields the gradient of its own rows, and the sum over the workers is
        the gradient of the single-process computation.
        """
        if self.world_size == 1:
            return local
        most = max(rows_of_rank)
        padded = local.new_zeros((most, local.shape[1]))
        padded[: len(local)] = local.detach()
        buffers = [torch.empty_like(padded) for _ in range(self.world_size)]
        dist.all_gather(buffers, padded)
        parts = [buffer[:rows] for buffer, rows in zip(buffers, rows_of_rank, strict=True)]
        parts[self.rank] = local
        return torch.cat(parts)

    def gather_equal(self, local: Tensor) -> Tensor:
        """All workers' tensors of the same shape [...], by rank: [world_size, ...]; without gradient."""
        if self.world_size == 1:
            return local[None]
        buffers = [torch.empty_like(local) for _ in range(self.world_size)]
        dist.all_gather(buffers, local.contiguous())
        return torch.stack(buffers)

    def gather_to_first(self, local: Tensor, rows_of_rank: list[int]) -> Tensor | None:
        """Return all workers' rows in the order of ranks on the first worker, in CPU memory; None on the others.

        local: [rows_of_rank[rank], dim].
        """
        if self.world_size == 1:
            return local.detach().cpu()
        padded = local.new_zeros((max(rows_of_rank), local.shape[1]))
        padded[: len(local)] = local.detach()
        buffers = [torch.empty_like(padded) for _ in range(self.world_size)] if self.is_first else None
        dist.gather(padded, buffers)
        if buffers is None:
            return None
        return torch.cat([buffer[:rows].cpu() for buffer, rows in zip(buffers, rows_of_rank, strict=True)])
