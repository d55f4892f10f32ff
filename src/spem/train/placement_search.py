"""Which blocks of a network benefit from a gate: a controller learns masks on a supernet."""

import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from spem._files import write_text
from spem._messages import say, shorten
from spem.data.batches import Batches
from spem.models import create_model
from spem.train.fitting import fit
from spem.train.metrics import evaluate
from spem.train.progress import format_duration
from spem.train.recipe import Recipe
from spem.train.recipe_files import load_recipe
from spem.train.setup import load_data
from spem.train.supernet import Supernet


@dataclass(frozen=True, kw_only=True)
class Search:
    """Settings of the controller, by default those of the authors.

    Args:
        steps: steps of the controller.
        samples: masks drawn in each step.
        lr: learning rate of Adam, for the controller and the curiosity bonus.
        temperature: divides the controller's logits.
        sparsity: reward of a mask without gates, in points of accuracy.
        offset: subtracted from every reward, in points.
        momentum: of the moving average of the rewards, the controller's baseline.
        replay_from: step from which each step also learns from one old mask.
        replay_size: number of the newest masks that are kept for it.
        replay_weight: weight of its loss.
        replay_clip: largest distance of its importance ratio from 1.

    Raises:
        ValueError: steps or samples is below 1.
    """

    steps: int = 300
    samples: int = 3
    lr: float = 0.05
    temperature: float = 5.0
    sparsity: float = 2.0
    offset: float = 54.0
    momentum: float = 0.95
    replay_from: int = 10
    replay_size: int = 30
    replay_weight: float = 0.1
    replay_clip: float = 0.1

    def __post_init__(self) -> None:
        for name in ("steps", "samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, must be at least 1")


class Found(NamedTuple):
    """The result of a search.

    Attributes:
        mask: the more probable bit of every block, in the network's order; `create_model` and
            `attach` take it.
        probabilities: probability of a gate in each block.
        accuracy: validation top-1 of the supernet with the mask, and without gates.
        history: one row for each step: mean reward, mean accuracy, mean share of gated blocks.
        folder: of the supernet's run, with `placement.json`.
    """

    mask: list[int]
    probabilities: list[float]
    accuracy: tuple[float, float]
    history: list[dict[str, float]]
    folder: Path | None = None


class Controller(nn.Module):
    """A network that learns, from a constant input, the probability of a gate in each block."""

    def __init__(self, blocks: int, settings: Search):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(20, 50), nn.ReLU(), nn.Linear(50, 2 * blocks))
        self.optimizer = torch.optim.Adam(self.parameters(), settings.lr)
        self.settings, self.baseline, self.steps = settings, 0.0, 0
        # Masks, their rewards, and their log-probabilities when they were drawn.
        self.kept: deque[tuple[Tensor, float, float]] = deque(maxlen=settings.replay_size)

    def forward(self) -> Tensor:
        """Return log-probabilities, (blocks, 2), of a plain and of a gated block."""
        logits = self.layers(torch.zeros(20)) / self.settings.temperature
        return logits.unflatten(0, (-1, 2)).log_softmax(-1)

    def learn(self, logs: Tensor, masks: Tensor, rewards: Tensor) -> None:
        """Take one step of REINFORCE, later on together with one old mask.

        Args:
            logs: what `forward` returned, from which the masks were drawn.
            masks: (samples, blocks).
            rewards: (samples,).
        """
        momentum = self.settings.momentum if self.steps else 0.0
        self.baseline = momentum * self.baseline + (1 - momentum) * rewards.mean().item()
        chosen = _log_probability(logs, masks)
        loss = -(chosen * (rewards - self.baseline)).mean()
        if self.steps >= self.settings.replay_from and self.kept:
            loss = loss + self._replay(logs)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.kept.extend(zip(masks, rewards.tolist(), chosen.tolist(), strict=True))
        self.steps += 1

    def _replay(self, logs: Tensor) -> Tensor:
        """Return the loss of an old mask."""
        mask, reward, before = self.kept[int(torch.randint(len(self.kept), ()))]
        now, clip = _log_probability(logs, mask[None])[0], self.settings.replay_clip
        ratio = (now.detach() - before).exp().clamp(1 - clip, 1 + clip)
        return -self.settings.replay_weight * ratio * now * (reward - self.baseline)


class Curiosity:
    """A bonus for unfamiliar masks: the error of a network that learns to imitate a fixed one."""

    def __init__(self, blocks: int, lr: float):
        layers = [nn.Linear(blocks, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU()]
        self.fixed = nn.Sequential(*layers, nn.Linear(32, 64)).requires_grad_(False)
        self.learned = nn.Sequential(nn.Linear(blocks, 32), nn.ReLU(), nn.Linear(32, 64))
        self.optimizer = torch.optim.Adam(self.learned.parameters(), lr)

    def bonus(self, masks: Tensor) -> float:
        """Return the error, summed over masks (samples, blocks), and train on them."""
        error = (self.learned(masks) - self.fixed(masks)).square().sum()
        self.optimizer.zero_grad()
        error.backward()
        self.optimizer.step()
        return error.item()


def search_placement(
    recipe: Recipe,
    gate: str,
    *,
    settings: Search | None = None,
    out: str | None = None,
    overwrite: bool = False,
    **gate_options: Any,
) -> Found:
    """Train a supernet on the training images, then search for the best mask on held-out ones.

    Args:
        recipe: for training the supernet; its `validation` images judge the masks.
        gate: a key of `GATES`.
        settings: of the controller; None: those of the authors.
        out: folder of the supernet's run; None: the next free one below `runs/`.
        overwrite: replace the run in `out`.
        gate_options: keyword arguments of the gate.

    Raises:
        ValueError: the recipe has no validation split, or names a gate, a placement or a mask, or
            the gate cannot be used in a supernet.
        FileExistsError: `out` is in use.

    Source: Huang et al., "Efficient Attention Network", 2020 (arXiv 2011.14058). The authors' code
        is for ImageNet's ResNet-50 only; here the sizes follow the network.
    """
    for key in ("gate", "placement", "at", "mask"):
        if (value := getattr(recipe, key)) is not None:
            raise ValueError(
                f"the recipe's {key} is {shorten(value)}: the supernet brings its own gates"
            )
    dataset = load_data(recipe)
    if (held_out := dataset.validation) is None:
        raise ValueError("validation is none, but the search judges masks on held-out images")
    with torch.random.fork_rng([]):
        torch.manual_seed(recipe.seed)
        classes, channels = len(dataset.classes), dataset.train.images.shape[1]
        plain = create_model(recipe.model, None, classes, channels, block=recipe.block)
        supernet = Supernet(plain, gate, **gate_options)
        run = fit(recipe, supernet, out=out, overwrite=overwrite)
        device = next(supernet.parameters()).device
        kept = load_recipe(str(run.folder / "recipe.yaml"))  # with mean and std
        batches = Batches(held_out, mean=kept.mean, std=kept.std, device=device)

        def accuracy(mask: list[int]) -> float:
            supernet.mask = mask
            return evaluate(supernet, batches)["top1"]

        torch.manual_seed(recipe.seed)
        tell = say if recipe.progress else None
        found = search_masks(accuracy, len(supernet.mask), settings or Search(), tell)
    record = {"gate": gate, "gate_options": gate_options, "blocks": supernet.names}
    record |= {key: value for key, value in found._asdict().items() if key != "folder"}
    write_text(run.folder / "placement.json", json.dumps(record, indent=1) + "\n")
    return found._replace(folder=run.folder)


def search_masks(
    accuracy: Callable[[list[int]], float],
    blocks: int,
    settings: Search,
    tell: Callable[[str], None] | None = None,
) -> Found:
    """Search for the mask with the highest reward; draws from torch's global generator.

    Args:
        accuracy: returns the accuracy of a mask, a fraction of 1; called once for each mask.
        blocks: number of bits of a mask.
        settings: of the controller.
        tell: called with a line after each tenth of the steps.
    """

    @cache
    def points(*mask: int) -> float:
        return 100 * accuracy(list(mask))

    controller = Controller(blocks, settings)
    curiosity = Curiosity(blocks, settings.lr)
    history, started = [], perf_counter()
    for step in range(1, settings.steps + 1):
        logs = controller()
        draws = [torch.multinomial(logs.exp(), 1)[:, 0] for _ in range(settings.samples)]
        masks = torch.stack(draws)
        bonus = curiosity.bonus(masks.float())
        scores = [points(*mask) for mask in masks.tolist()]
        zeros = 1 - masks.float().mean(1)
        rewards = torch.tensor(scores) + settings.sparsity * zeros - settings.offset + bonus
        controller.learn(logs, masks, rewards)
        row = {"reward": rewards.mean().item(), "top1": sum(scores) / len(scores) / 100}
        history.append(row | {"gates": 1 - zeros.mean().item()})
        if tell and step % max(1, settings.steps // 10) == 0:
            left = (perf_counter() - started) / step * (settings.steps - step)
            tell(_describe_step(step, settings.steps, history[-1], left))
    probabilities = controller().exp()[:, 1].tolist()
    mask = [int(p > 0.5) for p in probabilities]
    plain = points(*[0] * blocks) / 100
    return Found(mask, probabilities, (points(*mask) / 100, plain), history)


def _describe_step(step: int, steps: int, row: dict[str, float], left: float) -> str:
    return (
        f"search step {step}/{steps}: validation top-1 {row['top1']:.2%}, {row['gates']:.0%} of the"
        f" blocks with a gate, {format_duration(left)} left"
    )


def _log_probability(logs: Tensor, masks: Tensor) -> Tensor:
    """Return the log-probability of masks (samples, blocks), (samples,)."""
    return torch.where(masks.bool(), logs[:, 1], logs[:, 0]).sum(1)
