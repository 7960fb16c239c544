"""A whole training step as one CUDA graph: the host launches it once instead of some thousand kernels.

A graph replays fixed kernels on fixed addresses, so whatever changes from step to step comes in through tensors that
keep their place. A captured function therefore reads nothing back from the device, branches on no tensor's value,
updates its state in place (parameters, optimiser with `capturable=True`, averages, BatchNorm's buffers), and enters
autocast, if at all, with `cache_enabled=False`, so that the conversion of the weights is part of the graph.

Recording runs nothing. The eager calls that must come before it - they choose algorithms, compile, and make the
optimiser's state - are real steps on real inputs, so there is no state to put back, and replayed training is the eager
training, step by step.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
WARM_UP_CALLS = 3
"""Eager calls before recording; PyTorch's own advice for whole steps (its documentation, "CUDA Graphs")."""


class Capture(Protocol):
    """What `StepGraph` needs of a device."""

    def warm_up(self, function: Callable[[], Tensors]) -> Tensors:
        """Run the function eagerly where it will be recorded."""
        ...

    def record(self, function: Callable[[], Tensors]) -> tuple[Callable[[], None], Tensors]:
        """Record the function without running it: (replay, the outputs that every replay overwrites)."""
        ...


class CudaCapture:
    """`torch.cuda.graph` on a stream of its own, the same for warm-up and recording: some libraries make their handles
    at a stream's first use, which a recording does not allow."""

    def __init__(self, device: torch.device):
        self._device, self._stream = device, torch.cuda.Stream(device)

    def warm_up(self, function: Callable[[], Tensors]) -> Tensors:
        """Run the function on the side stream, in order with what was and will be launched on the current one."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            outputs = function()
        current.wait_stream(self._stream)
        return outputs

    def record(self, function: Callable[[], Tensors]) -> tuple[Callable[[], None], Tensors]:
        """Record on the side stream; replays go to the stream that is current then."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            outputs = function()
        return graph.replay, outputs


class StepGraph:
    """Calls `function(inputs) -> outputs`; with a `capture`, from the fourth call on by replaying its recording.

    Inputs and outputs are dictionaries of tensors. After the recording every call must bring inputs of the same names,
    shapes and types (ValueError otherwise), and its outputs hold only until the next call. Without a capture (CPU, MPS,
    several processes) it is the function.
    """

    def __init__(self, function: Callable[[Tensors], Tensors], capture: Capture | None = None):
        self._function, self._capture = function, capture
        self._calls = 0
        self._inputs: Tensors = {}
        self._outputs: Tensors = {}
        self._replay: Callable[[], None] | None = None

    def __call__(self, inputs: Mapping[str, Tensor]) -> Tensors:
        """One step."""
        given = dict(inputs)
        if self._capture is None:
            return self._function(given)
        self._calls += 1
        if self._calls <= WARM_UP_CALLS:
            return self._capture.warm_up(lambda: self._function(given))
        if self._replay is None:
            self._inputs = {name: tensor.clone() for name, tensor in given.items()}
            self._replay, self._outputs = self._capture.record(lambda: self._function(self._inputs))
        else:
            self._copy(given)
        self._replay()
        return self._outputs

    def _copy(self, given: Tensors) -> None:
        expected = {name: (tensor.shape, tensor.dtype) for name, tensor in self._inputs.items()}
        if {name: (tensor.shape, tensor.dtype) for name, tensor in given.items()} != expected:
            raise ValueError(f"the recorded step takes {expected}; other inputs need a StepGraph of their own")
        for name, tensor in self._inputs.items():
            tensor.copy_(given[name])
