"""How training code groups parameters: the ideas of common libraries, written out."""

from torch import nn

NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, nn.GroupNorm, nn.LayerNorm)


def by_module_type(model):
    """Norms without decay, convolutions and linear layers with it."""
    decay, rest = [], []
    for module in model.modules():
        if isinstance(module, NORMS):
            rest += module.parameters()
        elif isinstance(module, nn.Conv2d | nn.Linear):
            decay += module.parameters()
    return [{"params": decay}, {"params": rest, "weight_decay": 0}]


def own_by_module_type(model):
    """The same, and only what the modules themselves own."""
    decay, rest = [], []
    for module in model.modules():
        if isinstance(module, NORMS):
            rest += module.parameters(recurse=False)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            decay += module.parameters(recurse=False)
    return [{"params": decay}, {"params": rest, "weight_decay": 0}]


def by_attributes(model):
    """Biases, weights of norms, other weights, as early YOLOs have it."""
    biases, norms, weights = [], [], []
    for module in model.modules():
        if isinstance(getattr(module, "bias", None), nn.Parameter):
            biases.append(module.bias)
        if isinstance(getattr(module, "weight", None), nn.Parameter):
            (norms if isinstance(module, NORMS) else weights).append(module.weight)
    return [{"params": biases}, {"params": norms, "weight_decay": 0}, {"params": weights}]


def visit_own(model):
    """One group a parameter, by the module that owns it, as detectron2 has it."""
    seen, groups = set(), []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and parameter not in seen:
                seen.add(parameter)
                decay = 0 if isinstance(module, NORMS) or name == "bias" else 1e-4
                groups.append({"params": [parameter], "weight_decay": decay})
    return groups


def visit_children(model):
    """From parent to child, as torchvision's references set the weight decay."""
    norms, others = [], []

    def visit(module):
        own = [p for p in module.parameters(recurse=False) if p.requires_grad]
        (norms if isinstance(module, NORMS) else others).extend(own)
        for child in module.children():
            visit(child)

    visit(model)
    return [{"params": norms, "weight_decay": 0}, {"params": others}]


def leaves(model):
    """Leaves by their type, and what other modules own, as torchvision splits off its norms."""
    norms, others = [], []
    for module in model.modules():
        leaf = next(module.children(), None) is None
        own = [p for p in module.parameters(recurse=leaf) if p.requires_grad]
        (norms if leaf and isinstance(module, NORMS) else others).extend(own)
    return [{"params": norms, "weight_decay": 0}, {"params": others}]


def by_dimension(model):
    """Vectors without decay, as timm has it."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    vectors = [p for name, p in named if p.ndim <= 1 or name.endswith(".bias")]
    rest = [p for name, p in named if not (p.ndim <= 1 or name.endswith(".bias"))]
    return [{"params": vectors, "weight_decay": 0}, {"params": rest}]


def by_layer(model):
    """A rate for each depth, by the first part of the name, as timm's layer decay has it."""
    layers = {}
    for name, parameter in model.named_parameters():
        layers.setdefault(name.partition(".")[0], []).append(parameter)
    return [{"params": p, "lr": 0.1 * 0.75**i} for i, p in enumerate(reversed(layers.values()))]


IDIOMS = [by_module_type, own_by_module_type, by_attributes, visit_own, visit_children, leaves]
IDIOMS += [by_dimension, by_layer]
