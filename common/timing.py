"""How long something takes: of a call, and of several that take turns. Reaches nothing that runs do not use."""

import statistics
import time
from collections.abc import Callable, Sequence


def _synchronize(device: str) -> None:
    if device != "cpu":
        import torch

        torch.cuda.synchronize() if device == "cuda" else torch.mps.synchronize()


def seconds(function: Callable[[], object], device: str = "cpu") -> float:
    """Time of one call, until the device has done its work."""
    _synchronize(device)
    start = time.perf_counter()
    function()
    _synchronize(device)
    return time.perf_counter() - start


def interleaved(
    functions: Sequence[Callable[[], object]], repeats: int, warm_up: int = 1, device: str = "cpu"
) -> list[float]:
    """Median seconds of each function, called in turns a, b, a, b, ...; the first `warm_up` rounds do not count."""
    rounds = [[seconds(function, device) for function in functions] for _ in range(warm_up + repeats)]
    return [statistics.median(times) for times in zip(*rounds[warm_up:], strict=True)]
