"""Draw the pictures of the documentation.

    python docs/pictures/draw.py

`spem.svg` is a diagram of SPEM; `max-and-min.png` shows real feature maps, those of a bundled
network for a photograph of scikit-learn.
"""

from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from PIL import Image
from sklearn.datasets import load_sample_image

from spem.data.batches import normalise
from spem.data.images import prepare_image
from spem.export import load_network
from spem.models.pretrained import find_run

FOLDER = Path(__file__).parent
# Of Okabe and Ito's palette, which colour-blind readers tell apart.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#666666"
NETWORK = "resnet20-spem-cifar10"


def draw_diagram(folder: Path) -> None:
    """Draw SPEM as three stages: pooling, excitation and reweighting, recalibration."""
    figure = Figure(figsize=(10, 3.4))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 100), ylim=(0, 34))
    axes.axis("off")

    def box(x: float, y: float, width: float, text: str, color: str, height: float = 6) -> None:
        shape = FancyBboxPatch(
            (x, y), width, height, "round,pad=0.4", facecolor=color + "22", edgecolor=color, lw=1.6
        )
        axes.add_patch(shape)
        axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=10.5)

    def arrow(*points: tuple[float, float]) -> None:
        axes.plot(*zip(*points[:-1], strict=True), color=GREY, lw=1.4)
        axes.add_patch(
            FancyArrowPatch(
                *points[-2:],
                arrowstyle="-|>",
                mutation_scale=13,
                color=GREY,
                lw=1.4,
                shrinkA=0,
                shrinkB=0,
            )
        )

    for x, title in ((29, "pooling"), (57, "excitation and reweighting"), (88, "recalibration")):
        axes.text(x, 32, title, ha="center", va="center", fontsize=11, color=GREY, style="italic")
    box(1, 13, 13, "feature map x\nN × C × H × W", GREY, 8)
    box(21, 21, 15, "maximum m\nof each channel", BLUE)
    box(21, 7, 15, "minimum q\nof each channel", ORANGE)
    box(45, 21, 24, "e = σ(w₁·(w₂·u + b₂) + b₁)\nwith u = λ·m + (1 − λ)·q", GREEN)
    box(45, 7, 24, "r = σ(w₂·(m + q) + 2·b₂)", GREEN)
    box(76, 13, 8, "e · r", GREEN, 8)
    box(90, 13, 9, "y = e·r·x", GREY, 8)
    arrow((14.6, 18.5), (17.5, 18.5), (17.5, 24), (20.4, 24))
    arrow((14.6, 15.5), (17.5, 15.5), (17.5, 10), (20.4, 10))
    axes.plot((40.5, 40.5), (10, 24), color=GREY, lw=1.4)  # both extrema reach both formulas
    arrow((36.6, 24), (44.4, 24))
    arrow((36.6, 10), (44.4, 10))
    arrow((69.6, 24), (72.5, 24), (72.5, 18.5), (75.4, 18.5))
    arrow((69.6, 10), (72.5, 10), (72.5, 15.5), (75.4, 15.5))
    arrow((84.6, 17), (89.4, 17))
    arrow((7.5, 12.4), (7.5, 2.5), (94.5, 2.5), (94.5, 12.4))
    axes.text(51, 3.6, "the feature map itself", ha="center", fontsize=9.5, color=GREY)
    with mpl.rc_context({"svg.hashsalt": "spem", "svg.fonttype": "none"}):
        figure.savefig(folder / "spem.svg", metadata={"Date": None})


def pick_channels(maps: torch.Tensor) -> tuple[int, int]:
    """Return two channels of a feature map, (C, H, W), of like mean and unlike maximum."""
    means, peaks = maps.mean((1, 2)), maps.amax((1, 2))
    spread = maps.std().item()
    near = (means[:, None] - means).abs() < 0.1 * spread
    distance = (peaks[:, None] - peaks).where(near, torch.tensor(-np.inf))
    best = int(distance.argmax())
    return best // len(maps), best % len(maps)


def draw_feature_maps(folder: Path) -> None:
    """Draw a photograph and two channels with the same mean, which their extrema tell apart."""
    model, config = load_network(find_run(NETWORK))
    photograph = Image.fromarray(load_sample_image("flower.jpg"))
    pixels = prepare_image(photograph, size=128, channels=3)
    found: dict[str, torch.Tensor] = {}
    gated = model.get_submodule("layer1.2.bn2")
    plain = torch.nn.BatchNorm2d(gated.num_features).eval()
    plain.load_state_dict({k: v for k, v in gated.state_dict().items() if "gate" not in k})
    gated.register_forward_pre_hook(lambda _, args: found.update(x=plain(args[0])))
    with torch.no_grad():
        model(normalise(pixels, config["mean"], config["std"])[None])
    maps = found["x"][0]
    chosen = pick_channels(maps)
    figure = Figure(figsize=(9, 3.3), dpi=150, layout="constrained")
    left, *others = figure.subplots(1, 3)
    left.imshow(pixels.permute(1, 2, 0).numpy())
    left.set_title("photograph", fontsize=10)
    limit = maps[list(chosen)].abs().max().item()
    image = None
    for axes, channel in zip(others, chosen, strict=True):
        own = maps[channel]
        image = axes.imshow(own.numpy(), cmap="PuOr_r", vmin=-limit, vmax=limit)
        words = f"mean {own.mean():+.2f}, max {own.max():+.2f}, min {own.min():+.2f}"
        axes.set_title(f"channel {channel} before its gate\n{words}", fontsize=9)
    for axes in (left, *others):
        axes.set(xticks=[], yticks=[])
    figure.colorbar(image, ax=others, shrink=0.8)
    figure.savefig(folder / "max-and-min.png", metadata={"Software": None})


if __name__ == "__main__":
    draw_diagram(FOLDER)
    draw_feature_maps(FOLDER)
