"""Convolutions padded as TensorFlow's SAME: what networks trained in TensorFlow expect."""

from torch import Tensor, nn
from torch.nn import functional


class SameConv2d(nn.Conv2d):
    """A convolution whose output is ⌈size / stride⌉ wide; zeros are split between both sides, an odd one at the end.

    Weights and state_dict keys are torch's. It differs from symmetric padding for a stride above 1 and an even size.
    """

    def forward(self, input: Tensor) -> Tensor:
        """`input` (float [n, in, h, w]) → float [n, out, ⌈h / stride⌉, ⌈w / stride⌉]."""
        height, width = (
            _zeros(size, *geometry)
            for size, *geometry in zip(
                input.shape[-2:], self.kernel_size, self.stride, self.dilation, strict=True
            )
        )
        padded = functional.pad(input, (width // 2, width - width // 2, height // 2, height - height // 2))
        return functional.conv2d(
            padded, self.weight, self.bias, self.stride, dilation=self.dilation, groups=self.groups
        )


def _zeros(size: int, kernel: int, stride: int, dilation: int) -> int:
    """Zeros that a line of `size` pixels lacks for ⌈size / stride⌉ positions of the kernel."""
    num_positions = -(-size // stride)
    return max(0, (num_positions - 1) * stride + dilation * (kernel - 1) + 1 - size)


def apply_same_padding(model: nn.Module) -> None:
    """Give every strided convolution inside `model` SAME padding, in place; weights are kept.

    Convolutions of stride 1 with odd kernels need no change: their symmetric padding is already SAME.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d) and max(child.stride) > 1:
                setattr(parent, name, _padded_same(child))


def _padded_same(convolution: nn.Conv2d) -> SameConv2d:
    changed = SameConv2d(
        convolution.in_channels,
        convolution.out_channels,
        (convolution.kernel_size[0], convolution.kernel_size[1]),
        stride=(convolution.stride[0], convolution.stride[1]),
        dilation=(convolution.dilation[0], convolution.dilation[1]),
        groups=convolution.groups,
        bias=convolution.bias is not None,
        device="meta",
    )
    changed.weight, changed.bias = convolution.weight, convolution.bias
    return changed
