"""The depthwise convolution: torch's own, outputs and gradients, whatever the shape."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from nas.models.depthwise import depthwise_conv2d


def reference(x, weight, stride, dilation):
    padding = dilation * (weight.shape[-1] // 2)
    return F.conv2d(x, weight, None, stride, padding, dilation, groups=x.shape[1])


@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 5),
    height=st.integers(1, 13),
    width=st.integers(1, 13),
    kernel=st.sampled_from([3, 5, 7]),
    stride=st.sampled_from([1, 2]),
    dilation=st.sampled_from([1, 2]),
    memory_format=st.sampled_from([torch.contiguous_format, torch.channels_last]),
    wanted=st.sampled_from([("x", "weight"), ("x",), ("weight",)]),
    seed=st.integers(0, 2**32 - 1),
)
def test_outputs_and_gradients_are_those_of_conv2d(
    batch, channels, height, width, kernel, stride, dilation, memory_format, wanted, seed
):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x = draw(batch, channels, height, width).contiguous(memory_format=memory_format)
    tensors = {"x": x, "weight": draw(channels, 1, kernel, kernel)}
    leaves = [tensors[name].requires_grad_() for name in wanted]
    outputs = [convolve(**tensors, stride=stride, dilation=dilation) for convolve in (depthwise_conv2d, reference)]
    torch.testing.assert_close(*outputs)
    factor = draw(*outputs[0].shape)
    gradients = [torch.autograd.grad((y * factor).sum(), leaves) for y in outputs]
    for value, expected in zip(*gradients, strict=True):
        assert value.shape == expected.shape
        torch.testing.assert_close(value, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5])
def test_second_derivatives(kernel, dilation, stride):
    x = torch.randn(2, 2, 5, 6).double().requires_grad_()
    weight = torch.randn(2, 1, kernel, kernel).double().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x, w: depthwise_conv2d(x, w, stride, dilation), (x, weight))


def test_images_in_channels_last_stay_so():
    x = torch.randn(2, 4, 8, 8).contiguous(memory_format=torch.channels_last).requires_grad_()
    for dilation in (1, 2):
        y = depthwise_conv2d(x, torch.randn(4, 1, 5, 5), 1, dilation)
        gradient = torch.autograd.grad(y, x, torch.randn_like(y))[0]
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert gradient.is_contiguous(memory_format=torch.channels_last)


def test_other_devices_compute_with_conv2d():
    x, weight = torch.empty(2, 3, 9, 9, device="meta", requires_grad=True), torch.empty(3, 1, 5, 5, device="meta")
    for stride, size in ((1, 9), (2, 5)):
        for dilation in (1, 2):
            y = depthwise_conv2d(x, weight, stride, dilation)
            assert y.shape == (2, 3, size, size)
            assert type(y.grad_fn).__name__ == "ConvolutionBackward0"
