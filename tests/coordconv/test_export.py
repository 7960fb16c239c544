"""The layers under torch.compile, torch.export and ONNX, with height and width left open."""

import copy
import io
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend
from torch.export import Dim

from papers.coordconv.method import CoordConv2d, CoordConvTranspose2d, SplitCoordConv1x1

torch.set_num_threads(1)
SHAPES = [(2, 3, 7, 9), (1, 3, 12, 4), (3, 3, 6, 6)]


class Net(nn.Module):
    """Every scaling, the radius and both directions of size change."""

    def __init__(self):
        super().__init__()
        self.down = CoordConv2d(3, 4, 3, padding=1, stride=2, with_r=True)
        self.across = CoordConv2d(4, 4, 1, scaling="raw", order="yx")
        self.up = CoordConvTranspose2d(4, 2, 2, 2, scaling="fourier", fourier_bands=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.across(self.down(x)).relu())


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def exported(net: Net) -> torch.export.ExportedProgram:
    free = {"x": {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}}
    return torch.export.export(net, (torch.randn(2, 3, 8, 10),), dynamic_shapes=free)


def same(out: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def test_one_graph_serves_every_size_with_its_gradients(net):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    plain, compiled = copy.deepcopy(net), copy.deepcopy(net)
    step = torch.compile(compiled, backend=counter, fullgraph=True, dynamic=True)
    for height, width in ((7, 9), (12, 4), (20, 21)):
        x = torch.randn(2, 3, height, width)
        out, expected = step(x), plain(x)
        same(out, expected)
        out.mean().backward()
        expected.mean().backward()
    assert counter.frame_count == 1
    for one, other in zip(compiled.parameters(), plain.parameters(), strict=True):
        same(one.grad, other.grad)


def test_the_split_layer_compiles():
    torch._dynamo.reset()
    layer, counter = SplitCoordConv1x1(3, 4), CompileCounter()
    compiled = torch.compile(layer, backend=counter, fullgraph=True, dynamic=True)
    for size in ((5, 7), (9, 4)):
        z = torch.randn(2, 3)
        same(compiled(z, size), layer(z, size))
    assert counter.frame_count == 1


def test_exported_program_runs_at_other_sizes(net, exported):
    assert not exported.constants and set(exported.state_dict) == set(net.state_dict())
    for shape in SHAPES:
        x = torch.randn(shape)
        same(exported.module()(x), net(x))


def compare_in_onnxruntime(model: bytes, net: Net) -> None:
    session = pytest.importorskip("onnxruntime").InferenceSession(model)
    for shape in SHAPES:
        x = torch.randn(shape)
        (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        same(torch.from_numpy(out), net(x))


def test_onnx_in_onnxruntime(net, exported):
    pytest.importorskip("onnxscript")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(exported, (), dynamo=True, verbose=False, optimize=False)
    compare_in_onnxruntime(program.model_proto.SerializeToString(), net)


def test_onnx_by_tracing_in_onnxruntime(net):
    """The older exporter, which records tensors instead of reading code."""
    pytest.importorskip("onnx")
    file, axes = io.BytesIO(), {"x": {0: "batch", 2: "height", 3: "width"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (torch.randn(2, 3, 8, 10),), file, dynamo=False, input_names=["x"], dynamic_axes=axes)
    compare_in_onnxruntime(file.getvalue(), net)
