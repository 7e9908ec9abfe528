"""The small networks whose versions become pairs: MobileNetV2-like, ResNet-like, a plain CNN and a detector.

Needs PyTorch, which only the benchmark's own environment has.
"""

import torch
from torch import Tensor, nn

SIDE, DETECTOR_SIDE = 32, 64
CLASSES = 10
#: Boxes that each cell of the detector's two grids may report.
ANCHORS = 2


def new_network(kind: str, *, seed: int) -> nn.Module:
    """A network with random weights of a fixed seed."""
    torch.manual_seed(seed)
    if kind in MOBILES:
        return _mobile(kind)
    return {"residual": _residual, "plain": _plain, "detector": Detector}[kind]()


def head_of(network: nn.Module) -> list[nn.Parameter]:
    """The weights of what names the answer: all that a head-only change trains."""
    layers = network.heads if isinstance(network, Detector) else [network[-1]]  # type: ignore[index]
    return [weight for layer in layers for weight in layer.parameters()]


def _conv(inputs: int, outputs: int, size: int = 3, *, stride: int = 1, groups: int = 1, act: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([nn.ReLU()] if act else []))


class Inverted(nn.Module):
    """MobileNetV2's block: widen, filter each channel, narrow; added to its input where the shapes allow."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, widen: int = 6) -> None:
        super().__init__()
        wide = inputs * widen
        self.way = nn.Sequential(_conv(inputs, wide, 1), _conv(wide, wide, stride=stride, groups=wide), _conv(wide, outputs, 1, act=False))
        self.is_added = stride == 1 and inputs == outputs

    def forward(self, value: Tensor) -> Tensor:
        return value + self.way(value) if self.is_added else self.way(value)


class Residual(nn.Module):
    """ResNet's basic block, with a 1x1 convolution on the short way where shapes change."""

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.first = _conv(inputs, outputs, stride=stride)
        self.second = _conv(outputs, outputs, act=False)
        self.short = nn.Identity() if (stride, inputs) == (1, outputs) else _conv(inputs, outputs, 1, stride=stride, act=False)

    def forward(self, value: Tensor) -> Tensor:
        return torch.relu(self.second(self.first(value)) + self.short(value))


#: MobileNetV2-like bodies: channels in, channels out, stride of each block; and channels before the head.
MOBILES = {
    "mobile": ([(16, 16, 1), (16, 24, 2), (24, 24, 1), (24, 40, 2), (40, 40, 1), (40, 56, 1), (56, 56, 1)], 128),
    "mobile2": ([(16, 24, 1), (24, 32, 2), (32, 32, 1), (32, 48, 2), (48, 48, 1), (48, 64, 1)], 160),
    "mobile3": ([(12, 16, 1), (16, 20, 2), (20, 20, 1), (20, 20, 1), (20, 32, 2), *[(32, 32, 1)] * 5, (32, 48, 1)], 128),
}


def _mobile(name: str) -> nn.Sequential:
    blocks, last = MOBILES[name]
    body = [Inverted(inputs, outputs, stride=stride) for inputs, outputs, stride in blocks]
    return nn.Sequential(
        _conv(1, blocks[0][0], stride=2),
        *body,
        _conv(blocks[-1][1], last, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(last, CLASSES),
    )


def _residual() -> nn.Sequential:
    blocks = [(24, 48, 2), (48, 96, 1), (96, 160, 2), (160, 160, 1)]
    body = [Residual(inputs, outputs, stride=stride) for inputs, outputs, stride in blocks]
    return nn.Sequential(_conv(1, 24, stride=2), *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(160, CLASSES))


def _plain() -> nn.Sequential:
    """No normalisation, biases everywhere, and most weights in a fully connected layer, as older networks have it."""
    widths = ((1, 24), (24, 48), (48, 96))
    body = [layer for inputs, outputs in widths for layer in (nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.ReLU())]
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(96 * 16, 128), nn.ReLU(), nn.Linear(128, CLASSES))


class Detector(nn.Module):
    """One-stage detector with two grids (8 x 8, 4 x 4): n x cells * anchors x (4 box, 1 object, classes)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(1, 16, stride=2), _conv(16, 32, stride=2), _conv(32, 64), _conv(64, 64, stride=2), _conv(64, 64))
        self.small = nn.Sequential(_conv(64, 96, stride=2), _conv(96, 96))
        width = ANCHORS * (5 + CLASSES)
        self.heads = nn.ModuleList([nn.Conv2d(64, width, 1), nn.Conv2d(96, width, 1)])

    def forward(self, picture: Tensor) -> Tensor:
        fine = self.body(picture)
        grids = (self.heads[0](fine), self.heads[1](self.small(fine)))
        return torch.cat([grid.permute(0, 2, 3, 1).reshape(grid.shape[0], -1, 5 + CLASSES) for grid in grids], dim=1)
