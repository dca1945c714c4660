"""One case in a process of its own: time and memory of its steps."""

import ctypes
import gc
import re
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, process_time
from typing import Literal, Self

import torch
from cases import CASES, Case
from floor import Floor, Products
from sizes import Size
from torch import Tensor
from torch.optim import AdamW

MIB = 2**20


@dataclass
class Inspection:
    """What a process saw that looked at memory.

    Attributes:
        peak_mib: greatest memory of a step, less what weights and optimizer take.
        step_mib: the same with them.
        loss, gradient_norm: of the first step.
        store_seconds, store_mib: see `Step`.
    """

    peak_mib: float
    step_mib: float
    loss: float
    gradient_norm: float
    store_seconds: float | None
    store_mib: float | None


class Training:
    """Policy and optimizer; `prepare` makes the reference and the step."""

    def __init__(self, case: Case, size: Size) -> None:
        self.case = case
        self.size = size
        self.policy = case.policy(size)
        self.parameters = [each for each in self.policy.parameters() if each.requires_grad]
        # The update is the same in every case, so that ratios are of the methods.
        self.optimizer = AdamW(self.parameters, lr=1e-5, fused=True)
        self._make_moments()

    def prepare(self) -> Self:
        self.prepared = self.case.prepare(self.policy, self.size)
        self._move_policy()
        return self

    def _make_moments(self) -> None:
        rate = self.optimizer.param_groups[0]["lr"]
        self.optimizer.param_groups[0]["lr"] = 0.0
        for each in self.parameters:
            each.grad = torch.zeros_like(each)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.optimizer.param_groups[0]["lr"] = rate

    @torch.no_grad()
    def _move_policy(self) -> None:
        """Away from the reference: where the two agree, losses do not show what they are made of."""
        torch.manual_seed(1)
        for each in self.parameters:
            each.add_(torch.randn_like(each), alpha=0.02)

    def gradients(self) -> Tensor:
        """The loss; leaves its gradients on the parameters."""
        loss = self.prepared.loss()
        self.prepared.backward(loss)
        return loss.detach()

    def step(self) -> None:
        self.gradients()
        self.optimizer.step()
        self.optimizer.zero_grad()


def inspect(key: str, size: Size, threads: int) -> Inspection:
    """Runs in a fresh process, which no time is taken of."""
    torch.set_num_threads(threads)
    case = CASES[key]
    memory = AllocatorMemory() if size.device == "cuda" else ResidentMemory()
    # Kernels are loaded and threads started before memory is looked at.
    Training(case, size.tiny()).prepare().step()
    training = Training(case, size)
    weights_and_optimizer = memory.now()
    training.prepare()
    loss = training.gradients().item()
    gradients = [each.grad for each in training.parameters if each.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients).item()
    del gradients
    training.optimizer.zero_grad()
    memory.reset_peak()
    training.step()
    peak = memory.peak()
    prepared = training.prepared
    return Inspection(
        (peak - weights_and_optimizer) / MIB,
        peak / MIB,
        loss,
        norm,
        prepared.store_seconds,
        prepared.store_mib,
    )


def seconds(
    case: str | Floor, size: Size, threads: int, warmup: int, steps: int, clock: Literal["wall", "processor"]
) -> list[float]:
    """Of each step of a case or a floor. Runs in a fresh process."""
    torch.set_num_threads(threads)
    now = {"wall": perf_counter, "processor": process_time}[clock]
    finished = torch.cuda.synchronize if size.device == "cuda" else int
    training = Products(case, size) if isinstance(case, Floor) else Training(CASES[case], size).prepare()
    for _ in range(warmup):
        training.step()
    taken = []
    for _ in range(steps):
        finished()
        start = now()
        training.step()
        finished()
        taken.append(now() - start)
    return taken


def profile(key: str, size: Size, threads: int) -> str:
    """The operators of a step that take most time, as a table."""
    torch.set_num_threads(threads)
    training = Training(CASES[key], size).prepare()
    training.step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
        training.step()
    return recorded.key_averages().table(sort_by="self_cpu_time_total", row_limit=15)


class ResidentMemory:
    """Resident set of this process, in bytes, as Linux counts it, without what malloc keeps of freed memory."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None)
        # M_MMAP_THRESHOLD: whatever is larger goes back at once when it is freed.
        self._libc.mallopt(-3, 2**16)

    def now(self) -> int:
        gc.collect()
        self._libc.malloc_trim(0)
        return self._status("VmRSS")

    def reset_peak(self) -> None:
        self.now()
        # proc_pid_clear_refs(5): the peak becomes the present size.
        Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> int:
        return self._status("VmHWM")

    def _status(self, field: str) -> int:
        match = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
        assert match
        return 1024 * int(match[1])


class AllocatorMemory:
    """What PyTorch has allocated on the GPU, in bytes."""

    def now(self) -> int:
        gc.collect()
        return torch.cuda.memory_allocated()

    def reset_peak(self) -> None:
        torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated()
