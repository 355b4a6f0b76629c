"""Measure alternatives: times of functions that run in turn, their ratios, and peak memory."""

import math
import os
import statistics
import timeit
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.profiler import profile
from torch.utils import benchmark
from tqdm import tqdm

Run = Callable[[], object]
SHORTEST = 2e-4  # seconds of one sample; a quicker function is called several times, for the clock's sake
FEWEST = 3  # rounds

quartiles = partial(statistics.quantiles, n=4, method="inclusive")  # as numpy interpolates


def time_in_turn(
    functions: Mapping[str, Run], seconds: float, clock: Callable[[], float] = benchmark.timer
) -> dict[str, list[float]]:
    """Run the functions in turn, A B C, B C A, C A B, …; return the seconds of one call of each, a value a round.

    There are as many rounds as begin within `seconds`, and at least `FEWEST`. The first calls, which warm up, are not
    counted. The clock waits for an accelerator, and Python's garbage collector waits until a sample is taken.
    """
    timers = {name: timeit.Timer(run, timer=clock) for name, run in functions.items()}
    calls = {}
    times: dict[str, list[float]] = {name: [] for name in functions}
    names = list(functions)
    with tqdm(desc=f"{len(names)} in turn", unit="sample", delay=1, leave=False, disable=None) as progress:
        for name, timer in timers.items():
            once = timer.timeit(1)
            if once < 100 * SHORTEST:  # the first call is slower, and how much matters only for a quick function
                once = timer.timeit(2) / 2
            calls[name] = min(1000, max(1, math.ceil(SHORTEST / max(once, 1e-9))))
            progress.update()
        start, rounds = clock(), 0
        while rounds < FEWEST or clock() - start < seconds:
            first = rounds % len(names)
            for name in names[first:] + names[:first]:
                times[name].append(timers[name].timeit(calls[name]) / calls[name])
                progress.update()
            rounds += 1
    return times


def compare(times: Mapping[str, list[float]]) -> dict[str, dict[str, Any]]:
    """Return the median `seconds` of each function and its `ratio` to each of the others, with their quartiles.

    A ratio is the median of those of each round, which a machine that gets slower hardly changes.
    """
    results = {}
    for name, values in times.items():
        low, median, high = quartiles(values)
        by_round = {other: zip(values, times[other], strict=True) for other in times if other != name}
        ratios = {other: quartiles([a / b for a, b in pairs]) for other, pairs in by_round.items()}
        results[name] = {
            "seconds": median,
            "seconds_quartiles": [low, high],
            "rounds": len(values),
            "ratio": {other: ratio[1] for other, ratio in ratios.items()},
            "ratio_quartiles": {other: [ratio[0], ratio[2]] for other, ratio in ratios.items()},
        }
    return results


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of tensors, counting shared storage once."""
    return sum({tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


def peak_memory(run: Run, device: torch.device, resident: Iterable[Tensor] = (), calls: int = 1) -> int | None:
    """Return the bytes of `resident` tensors plus the most that calls of `run`, one after the other, hold beside them.

    On CUDA the caching allocator keeps the maximum. On a CPU torch's profiler records each allocation and release of
    torch's allocator in order, and their running sum has the peak: to the byte, with the temporaries inside operators,
    and the same on every machine, which a process's resident set is not. Elsewhere (MPS) nothing reports a peak: None.
    """
    held = storage_bytes(resident)
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        for _ in range(calls):
            run()
        return held + torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu":
        return None
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler prints two lines whenever it is used
    with profile(profile_memory=True) as profiler:
        for _ in range(calls):
            run()
    assert profiler.kineto_results is not None  # for mypy: set when the context is left
    events = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()  # negative where memory is released
        peak = max(peak, total)
    return held + peak
