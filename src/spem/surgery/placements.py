"""The named placements of `attach`: which modules end the branches and stages of a network.

Blocks are known by the names of their classes, so that no other library is imported.
"""

import re
from collections.abc import Iterable, Iterator
from itertools import pairwise

from torch import nn

# Blocks by class name, and the child that ends their residual branch; the first that exists is it.
_ENDINGS = {
    "BasicBlock": ("bn2", "conv2.bn"),
    # cv2 of YOLO, not its norm, which `fuse` removes.
    "Bottleneck": ("bn3", "conv3.bn", "norm3", "cv2"),
    "ResNestBottleneck": ("bn3",),
    "Bottle2neck": ("bn3",),
    "ResBottleneckBlock": ("f.c.1",),
    "ResNetBasicLayer": ("layer.1.normalization",),
    "ResNetBottleNeckLayer": ("layer.2.normalization",),
    "RegNetXLayer": ("layer.2.normalization",),
    "RegNetYLayer": ("layer.3.normalization",),
    "PreBasicBlock": ("conv2",),
    "PreBottleneck": ("conv3",),
    "PreActBasic": ("conv2",),
    "PreActBottleneck": ("conv3",),
    "DenseLayer": ("conv2",),
    "_DenseLayer": ("conv2",),
    "VGGLayer": ("bn",),
    "InvertedResidual": ("bn3", "conv", "block"),
    "_InvertedResidual": ("layers",),
    "DepthwiseSeparableConv": ("bn2",),
    "EdgeResidual": ("bn2",),
    "UniversalInvertedResidual": ("layer_scale",),
    "MBConv": ("block",),
    "FusedMBConv": ("block",),
    "ConvNeXtBlock": ("drop_path",),  # behind the scale of the layer, where NHWC is NCHW again
    "CNBlock": ("stochastic_depth",),
}
# Behind the depthwise convolution, its norm and activation, where they are not one child.
_DEPTHWISE = {"InvertedResidual": "bn2", "DepthwiseSeparableConv": "bn1"}
_INVERTED = {*_DEPTHWISE, "UniversalInvertedResidual", "MBConv"}
# YOLO's blocks, and the child that joins their branches: their last convolution, not their last
# child.
_JOINS = {
    **dict.fromkeys(("C2", "C2f", "C2PSA", "PSA", "A2C2f", "SPP", "SPPF", "C1"), "cv2"),
    **dict.fromkeys(("C3", "BottleneckCSP"), "cv3"),
    **dict.fromkeys(("RepNCSPELAN4", "ELAN1"), "cv4"),
    "SPPELAN": "cv5",
}
_STAGE = re.compile(r"(.*\.)?(layer[1-9]|stages\.\d+|trunk_output\.block\d+|s[1-9])")
_NORMS = (nn.BatchNorm2d, nn.GroupNorm)

NAMED = ("residual", "stage", "depthwise")


def find_named(model: nn.Module, at: str) -> list[str]:
    """Return the names of the modules at a named placement (see `attach`), in the model's order.

    Args:
        model: any network.
        at: one of `NAMED`.
    """
    modules = dict(model.named_modules())
    names = {
        "residual": lambda: [*_find_endings(modules), *_find_vgg_layers(modules)],
        "stage": lambda: _find_stages(modules),
        "depthwise": lambda: [*_find_depthwise(modules)],
    }[at]()
    return [name for name in modules if name in names]


def joining_child(block: nn.Module) -> nn.Module | None:
    """Return the child whose output is that of a block of YOLO; None for other blocks."""
    found = next((_JOINS[kind] for kind in _kinds(block) if kind in _JOINS), "")
    return getattr(block, found, None)


def is_block(module: nn.Module) -> bool:
    """Return whether a module is a block of one of the families whose blocks are known."""
    return _find_ending(module) is not None


def find_module(model: nn.Module, name: str) -> nn.Module | None:
    """Return the module of this name, or None."""
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


def _kinds(block: nn.Module) -> Iterator[str]:
    return (kind.__name__ for kind in type(block).__mro__)


def _find_endings(modules: dict[str, nn.Module]) -> Iterator[str]:
    for name, block in modules.items():
        if ending := _find_ending(block):
            yield f"{name}.{ending}".lstrip(".")


def _find_ending(block: nn.Module) -> str | None:
    """Return the name, within a block, of the module that ends its residual branch, or None."""
    if "ConvBnAct" in _kinds(block) and getattr(block, "has_skip", False):
        return "bn1"
    endings = (ending for kind in _kinds(block) for ending in _ENDINGS.get(kind, ()))
    return next((ending for ending in endings if find_module(block, ending) is not None), None)


def _find_vgg_layers(modules: dict[str, nn.Module]) -> list[str]:
    """Return the norms of VGGs in torchvision's form, or the convolutions where it has no norm."""
    layers: list[str] = []
    for prefix, features in _vgg_features(modules):
        names = [f"{prefix}.{i}" for i in range(len(features))]
        norms = [name for name in names if isinstance(modules[name], _NORMS)]
        layers += norms or [name for name in names if isinstance(modules[name], nn.Conv2d)]
    return layers


def _vgg_features(modules: dict[str, nn.Module]) -> Iterator[tuple[str, nn.Sequential]]:
    for name, module in modules.items():
        features = getattr(module, "features", None)
        if "VGG" not in _kinds(module) or not isinstance(features, nn.Sequential):
            continue
        if any(isinstance(layer, nn.Conv2d) for layer in features):
            yield f"{name}.features".lstrip("."), features


def _find_stages(modules: dict[str, nn.Module]) -> list[str]:
    """Return what ends the stages: of the rules for families, the first that finds any.

    DenseNet and HRNet come first: the outputs of their stages are those of no module.
    """
    rules = (_dense_stages, _parallel_stages, _named_stages, _yolo_stages, _vgg_stages)
    for rule in (*rules, _block_stages):
        if names := list(rule(modules)):
            return names
    return []


def _named_stages(modules: dict[str, nn.Module]) -> Iterator[str]:
    return (n for n in modules if _STAGE.fullmatch(n) and not any(map(_STAGE.fullmatch, above(n))))


def _dense_stages(modules: dict[str, nn.Module]) -> Iterator[str]:
    """Yield the norms that read the outputs of the dense blocks, which iterate their children."""
    for name in modules:
        if match := re.fullmatch(r"(.*\.)?denseblock(\d+)", name):
            prefix, number = match[1] or "", match[2]
            transition = f"{prefix}transition{number}.norm"
            yield transition if transition in modules else f"{prefix}norm5"


def _parallel_stages(modules: dict[str, nn.Module]) -> Iterator[str]:
    """Yield HRNet's first stage, and the branches of the last module of its others."""
    for name, module in modules.items():
        if "HighResolutionNet" not in _kinds(module):
            continue
        prefix = f"{name}.".lstrip(".")
        yield f"{prefix}layer1"
        stages = [each for each, _ in module.named_children() if re.fullmatch(r"stage\d", each)]
        for stage in (f"{prefix}{each}" for each in stages):
            branches = f"{stage}.{len(modules[stage]._modules) - 1}.branches"
            yield from (f"{branches}.{i}" for i in range(len(modules[branches]._modules)))


def _yolo_stages(modules: dict[str, nn.Module]) -> Iterator[str]:
    """Yield YOLO's blocks of several branches, but those inside of one."""
    joined = {name for name, module in modules.items() if joining_child(module) is not None}
    return (name for name in joined if not joined & {*above(name)})


def _vgg_stages(modules: dict[str, nn.Module]) -> Iterator[str]:
    for prefix, features in _vgg_features(modules):
        pairs = pairwise(features.named_children())
        yield from (f"{prefix}.{n}" for (n, _), (_, m) in pairs if isinstance(m, nn.MaxPool2d))


def _block_stages(modules: dict[str, nn.Module]) -> Iterator[str]:
    """Yield every Sequential of residual blocks; of one with more in it, where a stage ends.

    There a stage ends before a block of stride 2, and before what is no block.
    """
    for name, module in modules.items():
        if not isinstance(module, nn.Sequential):
            continue
        blocks = [_find_ending(block) is not None or _is_convolution(block) for block in module]
        if not any(_find_ending(block) or _is_convolution(block, wide=True) for block in module):
            continue
        if all(blocks):
            yield name
            continue
        for i in (i for i, block in enumerate(blocks) if block):
            if i + 1 == len(module) or not blocks[i + 1] or _strides(module[i + 1]):
                yield f"{name}.{i}"


def _is_convolution(block: nn.Module, *, wide: bool = False) -> bool:
    """Return whether a block is a single convolution, which EfficientNets have among theirs.

    Args:
        block: a child of a Sequential.
        wide: whether only those count that are wider than 1×1: one of 1×1 alone is the head.
    """
    if "ConvBnAct" not in _kinds(block):
        return False
    sizes = [max(m.kernel_size) for m in block.modules() if isinstance(m, nn.Conv2d)]
    return not wide or max(sizes) > 1


def _strides(block: nn.Module) -> bool:
    return any(isinstance(m, nn.Conv2d) and max(m.stride) > 1 for m in block.modules())


def _find_depthwise(modules: dict[str, nn.Module]) -> Iterator[str]:
    """Yield what stands behind the depthwise convolutions of inverted residual blocks."""
    for name, block in modules.items():
        kind = next((kind for kind in _kinds(block) if kind in _INVERTED), None)
        if kind is None:
            continue
        if (child := _DEPTHWISE.get(kind)) and hasattr(block, child):
            yield f"{name}.{child}"
            continue
        convs = [(n, m) for n, m in block.named_modules() if isinstance(m, nn.Conv2d)]
        depthwise = [n for n, conv in convs if 1 < conv.groups == conv.in_channels]
        # The module of convolution, norm and activation, which ShuffleNet's blocks do not have.
        around = f"{name}.{depthwise[-1].rpartition('.')[0]}" if depthwise else ""
        if around and type(modules[around]) is not nn.Sequential:
            yield around


def above(name: str) -> Iterable[str]:
    """Return the names of the modules that contain a module, from the outermost."""
    parts = name.split(".")
    return (".".join(parts[:i]) for i in range(1, len(parts)))
