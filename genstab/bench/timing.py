"""Measure time and memory of alternatives: interleaved rounds, peak memory, the bandwidth of the machine."""

import gc
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.profiler import profile

from genstab.runtime.provenance import processor

Run = Callable[[], object]
SHORTEST = 2e-4  # seconds of one sample; a quicker program is called several times, for the clock's sake
FEWEST, MOST = 3, 60  # rounds


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of some values."""

    median: float
    quartiles: tuple[float, float]


def spread(values: Sequence[float]) -> Spread:
    """Return the median and the quartiles, interpolated as `numpy.quantile` does.

    >>> spread([1.0, 2.0, 3.0, 4.0, 9.0])
    Spread(median=3.0, quartiles=(2.0, 4.0))
    """
    if len(values) == 1:
        return Spread(values[0], (values[0], values[0]))
    first, middle, third = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(middle, (first, third))


def quotients(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """Return the spread of the ratios, round by round.

    Both programs of a round ran within moments of each other, so a machine that gets slower or busier during the
    measurement changes the times but hardly the quotients.

    >>> quotients([1.0, 2.0, 30.0], [2.0, 4.0, 10.0]).median
    0.5
    """
    return spread([a / b for a, b in zip(numerators, denominators, strict=True)])


def compare(times: Mapping[str, Sequence[float]]) -> dict[str, dict[str, Any]]:
    """Return for each program its `seconds`, and its `ratio` to each of the others: smaller is better.

    `ratio[other]` is the median of the quotients, `ratio_quartiles[other]` their quartiles.

    >>> compare({"a": [1.0, 2.0], "b": [4.0, 4.0]})["a"]["ratio"]
    {'b': 0.375}
    """
    results = {}
    for name, values in times.items():
        seconds = spread(values)
        against = {other: quotients(values, times[other]) for other in times if other != name}
        results[name] = {
            "seconds": seconds.median,
            "seconds_quartiles": list(seconds.quartiles),
            "rounds": len(values),
            "ratio": {other: ratio.median for other, ratio in against.items()},
            "ratio_quartiles": {other: list(ratio.quartiles) for other, ratio in against.items()},
        }
    return results


def synchronize(device: torch.device) -> None:
    """Wait for the accelerator; nothing to do on a CPU."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def interleave(
    programs: Mapping[str, Run],
    seconds: float,
    device: torch.device | None = None,
    clock: Callable[[], float] = time.perf_counter,
    tick: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Run the functions in turn, A B C, B C A, C A B, …; return the seconds of one call, a value a round.

    There are at least `FEWEST` rounds, at most `MOST`, and otherwise as many as begin within `seconds`. The first
    calls, which warm up, are not counted, and Python's garbage collector waits. `tick` is called between programs.
    """
    device = device or torch.device("cpu")

    def sample(run: Run, calls: int) -> float:
        synchronize(device)
        start = clock()
        for _ in range(calls):
            run()
        synchronize(device)
        return (clock() - start) / calls

    calls = {}
    for name, run in programs.items():
        once = sample(run, 1)
        if once < 100 * SHORTEST:  # the first call is slower, and how much matters only for a quick program
            once = sample(run, 2)
        calls[name] = min(1000, max(1, math.ceil(SHORTEST / max(once, 1e-9))))
        tick()
    times: dict[str, list[float]] = {name: [] for name in programs}
    names = list(programs)
    collecting = gc.isenabled()
    gc.disable()
    try:
        start, rounds = clock(), 0
        while rounds < FEWEST or (rounds < MOST and clock() - start < seconds):
            turn = rounds % len(names)
            for name in names[turn:] + names[:turn]:
                times[name].append(sample(programs[name], calls[name]))
                tick()
            rounds += 1
    finally:
        if collecting:
            gc.enable()
    return times


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of tensors, counting shared storage once.

    >>> x = torch.zeros(2, 3)
    >>> storage_bytes([x, x[0], torch.zeros(1, dtype=torch.float64)])
    32
    """
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def peak_memory(run: Run, device: torch.device, resident: Iterable[Tensor] = ()) -> int | None:
    """Return the bytes of `resident` tensors and the most that one call of `run` holds beside them.

    On CUDA the caching allocator keeps the maximum. On a CPU torch's profiler reports each allocation and each release
    of torch's CPU allocator in their order, and their running sum has the peak. That counts what the program asks for,
    to the byte, temporaries inside operators such as reordered weights included, and is the same on every machine
    and at every run. A process's resident set would also have the allocator's fragments and whatever was imported, and
    needs a new process for each number. Elsewhere (MPS) nothing reports a peak: None.

    >>> peak_memory(lambda: torch.zeros(1000).exp().sum(), torch.device("cpu"))
    8000
    """
    held = storage_bytes(resident)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return held + torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu":
        return None
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler prints two lines whenever it is used
    with profile(profile_memory=True) as profiler:
        run()
    assert profiler.kineto_results is not None  # for mypy: set when the context is left
    events = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()  # negative where memory is released
        peak = max(peak, total)
    return held + peak


def copy_bandwidth(device: torch.device, mebibytes: int = 128) -> float:
    """Return bytes per second, read and written together, of copying a tensor of that size."""
    source = torch.ones(mebibytes * 2**18, device=device)
    target = torch.empty_like(source)
    times = interleave({"copy": lambda: target.copy_(source)}, 0.5, device)["copy"]
    return 2 * storage_bytes([source]) / spread(times).median


def machine(device: torch.device) -> dict[str, str | int | float | None]:
    """Return what timings depend on: processor, cores, torch's threads, GPU, copy bandwidth."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "copy_gigabytes_per_second": copy_bandwidth(device) / 1e9,
    }
