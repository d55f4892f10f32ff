"""The depths of networks that papers use, and those that ImageNet's networks share."""

# Of the CIFAR networks; other depths of ResNets and DenseNets can be built as well.
USUAL = (
    *(f"resnet{depth}" for depth in (8, 20, 32, 44, 50, 56, 101, 110, 152, 164)),
    *(f"preresnet{depth}" for depth in (20, 56, 110, 164)),
    *(f"vgg{depth}" for depth in (11, 13, 16, 19)),
    *(f"densenet{depth}" for depth in (40, 100)),
    *(f"attention{depth}" for depth in (56, 92)),
)
_IMAGENET = {
    **{f"resnet{depth}": f"ResNet-{depth}" for depth in (18, 34, 50, 101, 152)},
    **{f"preresnet{depth}": f"pre-activation ResNet-{depth}" for depth in (18, 34, 50, 101, 152)},
    **{f"vgg{depth}": f"VGG-{depth}" for depth in (11, 13, 16, 19)},
    **{f"densenet{depth}": f"DenseNet-{depth}" for depth in (121, 161, 169, 201)},
    **{f"attention{depth}": f"Attention-{depth}" for depth in (56, 92)},
}


def imagenet_note(name: str) -> str:
    """Return that a network is not ImageNet's of the same depth; "" if there is none.

    Args:
        name: of a network of `create_model`.
    """
    return f"a CIFAR network, not ImageNet's {_IMAGENET[name]}" if name in _IMAGENET else ""


def imagenet_advice(name: str) -> str:
    """Return where ImageNet's network of a name that cannot be built is found; "" if there is none.

    Args:
        name: the name that was asked for.
    """
    if name not in _IMAGENET:
        return ""
    return (
        f"; for ImageNet's {_IMAGENET[name]}, give spem.attach the network of torchvision or timm"
    )
