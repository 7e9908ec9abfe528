"""How a version becomes the next: the training that stands behind each kind of pair."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.delta_pairs import scenes
from benchmarks.delta_pairs.networks import Detector, head_of

BATCH = 32
#: Rounds over the site's 500 scans of each later version.
ROUNDS = 5
SPARSE_SHARE = 0.05
Data = Callable[[int], tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class Change:
    """A kind of change: Adam's rate, or None where nothing is trained, and which weights it may move."""

    name: str
    rate: float | None
    moves: str = "all"
    is_pinned: bool = False


RECALIBRATED = Change("recalibrated", None)
HEAD = Change("head", 1e-3, "head")
MEDIUM = Change("medium", 1e-4)
SMALL = Change("small", 1e-5)
SPARSE = Change("sparse", 1e-3, "sparse", is_pinned=True)
CHANGES = (RECALIBRATED, HEAD, MEDIUM, SMALL, SPARSE)


def train_first(network: nn.Module, data: Data, *, rounds: int) -> nn.Module:
    """The first version, trained from random weights."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, rounds)
    network.train()
    for number in range(rounds):
        _round(network, optimizer, data(number))
        schedule.step()
    return network.eval()


def apply(change: Change, first: nn.Module, data: Data) -> nn.Module:
    """The next version: a copy of the first, trained as the change says."""
    network = copy.deepcopy(first)
    if change.rate is None:
        return network
    weights = head_of(network) if change.moves == "head" else list(network.parameters())
    network.requires_grad_(False)
    for weight in weights:
        weight.requires_grad_(True)
    masks = _chosen(network, data(ROUNDS)) if change.moves == "sparse" else None
    if masks is not None:
        weights = list(masks)
    optimizer = torch.optim.Adam(weights, lr=change.rate)
    # Where all weights move, batch statistics follow, as a plain training script does it; otherwise they stay.
    network.train(change.moves == "all")
    for number in range(ROUNDS):
        _round(network, optimizer, data(number), masks)
    return network.eval()


def accuracy(network: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    """Share of frames named right; of the detector, share of objects whose cell says object and class."""
    pictures, wanted = data
    with torch.no_grad():
        answer = network(pictures)
    if not isinstance(network, Detector):
        return (answer.argmax(1) == wanted).float().mean().item()
    is_object = wanted[..., 4] > 0
    right = (answer[..., 4] > 0) & (answer[..., 5:].argmax(-1) == wanted[..., 5:].argmax(-1))
    return right[is_object].float().mean().item()


def _chosen(network: nn.Module, data: tuple[Tensor, Tensor]) -> dict[nn.Parameter, Tensor]:
    """The 5 % of each layer's weights that the site's pictures pull hardest."""
    network.zero_grad()
    _loss(network, data).backward()
    masks = {}
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer.weight.grad is not None:
            pull = layer.weight.grad.abs().flatten()
            kept = pull.topk(max(1, int(len(pull) * SPARSE_SHARE))).indices
            mask = torch.zeros_like(pull)
            mask[kept] = 1
            masks[layer.weight] = mask.view_as(layer.weight)
    return masks


def _round(
    network: nn.Module, optimizer: torch.optim.Optimizer, data: tuple[Tensor, Tensor], masks: dict[nn.Parameter, Tensor] | None = None
) -> None:
    pictures, wanted = data
    for rows in _batches(len(pictures)):
        optimizer.zero_grad()
        _loss(network, (pictures[rows], wanted[rows])).backward()
        for weight, mask in (masks or {}).items():
            if weight.grad is not None:
                weight.grad *= mask
        optimizer.step()


def _batches(count: int) -> Iterable[Tensor]:
    return (rows for rows in torch.randperm(count).split(BATCH) if len(rows) > 1)


def _loss(network: nn.Module, data: tuple[Tensor, Tensor]) -> Tensor:
    pictures, wanted = data
    answer = network(pictures)
    if not isinstance(network, Detector):
        return nn.functional.cross_entropy(answer, wanted)
    is_object = wanted[..., 4] > 0
    box = nn.functional.l1_loss(answer[..., :4][is_object], wanted[..., :4][is_object])
    objects = nn.functional.binary_cross_entropy_with_logits(answer[..., 4], wanted[..., 4], pos_weight=torch.tensor(20.0))
    digits = nn.functional.cross_entropy(answer[..., 5:][is_object], wanted[..., 5:][is_object])
    return 5 * box + objects + digits


def data_of(kind: str, scans: scenes.Scans, light: scenes.Light, *, seed: int) -> Data:
    """Fresh pictures for each round, the same at every making."""
    draw = scenes.mosaics if kind == "detector" else scenes.frames
    return lambda number: draw(scans, light, seed=seed * 1000 + number)
