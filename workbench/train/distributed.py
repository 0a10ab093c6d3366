"""The processes that train one model together, as `torchrun` starts them.

Each holds the whole model, reads its own rows of every batch and keeps their part of the carry;
gradients are averaged (DistributedDataParallel, arXiv:2006.15704). Process 0 *leads*: it alone
writes into the run folder, and what it found there is what all go on from. A run in one process is
a world of one, in which everything here is a matter of course.

Tensors that stay on the device go through NCCL on GPUs and gloo on CPUs. Flags, plain data and what
goes into a checkpoint go through gloo in any case: nobody waits for a GPU because of them.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from workbench import carry as carries
from workbench.carry import Carry
from workbench.errors import ConfigError, NonFiniteLoss, ProcessLost

PATIENCE = timedelta(minutes=30)
"""how long a process waits for the others, who may be writing a checkpoint or validating"""
LAST_WORDS_S = 3.0
"""how long the reason of a process that has ended is waited for"""


class World(NamedTuple):
    """Who this process is among those that train together."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """among those on this machine: which of its GPUs is ours"""
    control: Any = None
    """the gloo group of all processes; None in a world of one"""
    board: Any = None
    """the store by which they found each other, where one that ends leaves its reason"""

    @property
    def leads(self) -> bool:
        """Whether this process writes into the run folder."""
        return self.rank == 0

    def highest(self, *numbers: float) -> list[float]:
        """The largest of each number over all processes."""
        if self.size == 1:
            return list(numbers)
        values = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(values, dist.ReduceOp.MAX, group=self.control)
        return values.tolist()

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes, (*) in float64, on the CPU."""
        values = values.detach().double().cpu()
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values, group=self.control)
        return values

    def wait(self) -> None:
        """Until all processes have come here."""
        if self.size > 1:
            dist.barrier(group=self.control)

    def from_leader(self, data: Any) -> Any:
        """What process 0 gives: numbers, text, None, and lists and dicts of them."""
        if self.size == 1:
            return data
        text = json.dumps(data).encode() if self.leads else b""
        length = torch.tensor([len(text)])
        dist.broadcast(length, 0, group=self.control)
        letters = torch.frombuffer(bytearray(text or bytes(int(length))), dtype=torch.uint8)
        dist.broadcast(letters, 0, group=self.control)
        return json.loads(bytes(letters.tolist()))

    def from_all(self, data: Any) -> list[Any]:
        """What each process gives, in their order: data as `from_leader` takes it."""
        if self.size == 1:
            return [data]
        text = json.dumps(data).encode()
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(sizes, torch.tensor([len(text)]), group=self.control)
        longest = max(int(n) for n in sizes)
        parts = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.size)]
        own = torch.frombuffer(bytearray(text.ljust(longest)), dtype=torch.uint8)
        dist.all_gather(parts, own, group=self.control)
        return [json.loads(bytes(part.tolist())) for part in parts]

    @contextmanager
    def agreeing(self) -> Iterator[None]:
        """What is done inside succeeds in all processes, or is an error in all of them.

        Inside, no process waits for another.

        Raises:
            ProcessLost: another process failed; says which, and why.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as caught:
            if self.size == 1:
                raise
            error = caught
        reasons = self.from_all(None if error is None else _reason(error))
        failed = [(rank, reason) for rank, reason in enumerate(reasons) if reason is not None]
        # the leader's own is raised as it is: most errors are everybody's
        if error is not None and self.leads:
            raise error
        if failed:
            raise self._lost(*failed[0])

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, an error of one process ends the others' waiting for it, and they know why.

        Raises:
            ProcessLost: another process has ended.
        """
        try:
            yield
        except Exception as error:
            if self.size > 1 and _is_silence(error):
                raise self._lost(*self._last_words()) from error
            self._leave_word(error)
            raise

    def _leave_word(self, error: Exception) -> None:
        if self.board is not None and not isinstance(error, ProcessLost):
            # the first one is the cause of the others
            self.board.compare_set(_BOARD, "", json.dumps([self.rank, _reason(error)]))

    def _last_words(self) -> tuple[int | None, str]:
        """Which process ended, and its reason, as far as they are known."""
        end = time.monotonic() + LAST_WORDS_S
        while self.board is not None and time.monotonic() < end:
            if self.board.check([_BOARD]):
                rank, reason = json.loads(self.board.get(_BOARD))
                return rank, reason
            time.sleep(0.1)
        return None, "it was killed, or does not answer any more"

    def _lost(self, rank: int | None, reason: str) -> ProcessLost:
        which = "a process" if rank is None else f"process {rank}"
        return ProcessLost(
            f"{which} of the {self.size} that train together has ended: {reason}\n"
            "All end with it. Mend the cause and start them again: they continue from the last "
            "checkpoint"
        )

    def gather(self, rows: Tensor) -> list[Tensor]:
        """Tensors of one shape and type from all processes, in their order, on the CPU.

        Returns:
            in process 0 all of them, elsewhere nothing.
        """
        rows = rows.detach().cpu().contiguous()
        if self.size == 1:
            return [rows]
        # as bytes: gloo does not know every type
        flat = rows.view(-1).view(torch.uint8) if rows.numel() else rows.new_empty(0).byte()
        parts = [torch.empty_like(flat) for _ in range(self.size)] if self.leads else None
        if flat.numel():
            dist.gather(flat, parts, group=self.control)
        return [part.view(rows.dtype).view(rows.shape) for part in parts or []]

    def join(self, carry: Carry) -> Carry:
        """The carry of all rows, in process 0, on the CPU; elsewhere it means nothing."""
        if self.size == 1:
            return carry
        return carries.map_tensors(lambda x: torch.cat(self.gather(x) or [x.cpu()]), carry)

    def rows(self, carry: Carry) -> Carry:
        """This process's rows of a carry of all rows."""
        return carries.map_tensors(
            lambda x: x[len(x) * self.rank // self.size : len(x) * (self.rank + 1) // self.size],
            carry,
        )


ALONE = World()
_BOARD = "workbench/ended"


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _is_silence(error: Exception) -> bool:
    """Whether it says no more than that another process does not answer."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def world(device: str = "cpu") -> World:
    """The world that this process was started into: by `torchrun`, or alone.

    Args:
        device: `train.device`; `auto` and `cuda` give each process of a machine a GPU of its own.

    Raises:
        ConfigError: there are more processes than GPUs.
    """
    if not dist.is_available() or not dist.is_torchelastic_launched():
        return ALONE
    local_rank, local_size = (int(os.environ[f"LOCAL_{n}"]) for n in ("RANK", "WORLD_SIZE"))
    on_gpus = device != "cpu" and torch.cuda.is_available()
    check_gpus(device, local_size)
    if on_gpus:
        torch.cuda.set_device(local_rank)
    if not _joined:
        store, rank, size = next(dist.rendezvous("env://", timeout=PATIENCE))
        backend = "nccl" if on_gpus else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
        control = dist.new_group(backend="gloo", timeout=PATIENCE)
        _joined.append(World(rank, size, local_rank, control, store))
    return _joined[0]


_joined: list[World] = []
"""the world of this process, once it has joined one"""


def check_gpus(device: str, processes: int) -> None:
    """Refuse more processes than this machine has GPUs, if they are to train on GPUs.

    Raises:
        ConfigError: says how many there are.
    """
    on_gpus = device != "cpu" and torch.cuda.is_available()
    if on_gpus and processes > (n_gpus := torch.cuda.device_count()):
        raise ConfigError(
            f"got {processes} processes on a machine with {n_gpus} GPUs, expected one for each at "
            "most; start fewer, or set train.device: cpu"
        )


def told_elsewhere(error: Exception | None = None) -> bool:
    """Whether another process says the same: one line on a terminal is enough.

    Args:
        error: that ends this process; None for what happens in all of them alike.
    """
    if not dist.is_available() or not dist.is_torchelastic_launched():
        return False
    if not _joined:
        # so far all are alike; the machines may not be
        return os.environ["LOCAL_RANK"] != "0"
    return not _joined[0].leads and isinstance(error, ProcessLost | NonFiniteLoss)


def leave() -> None:
    """Part from the other processes, at the end of a program."""
    if _joined:
        _joined.clear()
        dist.destroy_process_group()


def own_seed(seed: int, rank: int) -> int:
    """A seed for each process, that of process 0 being `seed`: their rows must not be dropped
    alike."""
    return (seed + rank * 0x9E3779B97F4A7C15) % 2**63


def states_of_all(world: World, state: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """The random generators' states of all processes, in process 0."""
    parts = {name: world.gather(tensor) for name, tensor in state.items()}
    count = len(next(iter(parts.values())))
    return [{name: tensors[i] for name, tensors in parts.items()} for i in range(count)]


def state_of(world: World, states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor] | None:
    """This process's own of what `states_of_all` gave; None where another number of processes gave
    it and this one has no predecessor."""
    return states[world.rank] if world.rank < len(states) else None
