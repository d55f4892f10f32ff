"""The channels of slots: told, measured by an example, inferred, and checked at the forward."""

import pytest
import torch
from foreign import Net, X
from gatings import EACH_GATE, OPTIONS, randomise
from torch import nn

from spem import attach, detach


class Split(nn.Module):
    """As YOLO's C2f: what joins the branches is declared before them."""

    def __init__(self):
        super().__init__()
        self.cv1, self.cv2 = nn.Conv2d(16, 16, 1), nn.Conv2d(24, 32, 1)
        self.m = nn.ModuleList([nn.Conv2d(8, 8, 1)])

    def forward(self, x):
        a, b = self.cv1(x).chunk(2, 1)
        return self.cv2(torch.cat([a, b, self.m[0](b)], 1))


class Fire(nn.Module):
    """As SqueezeNet's: the branches are joined."""

    def __init__(self):
        super().__init__()
        self.one, self.three = nn.Conv2d(16, 12, 1), nn.Conv2d(16, 20, 3, padding=1)

    def forward(self, x):
        return torch.cat([self.one(x), self.three(x)], 1)


class Shuffle(nn.Module):
    """As ShuffleNet's: a part of the channels passes by."""

    def __init__(self):
        super().__init__()
        self.branch = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())

    def forward(self, x):
        a, b = x.chunk(2, 1)
        return torch.cat([a, self.branch(b)], 1)


class Frozen(nn.Module):
    """As torchvision's FrozenBatchNorm2d under another name: buffers alone."""

    def __init__(self, channels):
        super().__init__()
        self.register_buffer("weight", torch.ones(channels))

    def forward(self, x):
        return x * self.weight[:, None, None]


class FrozenNorm(Frozen):
    pass


class Attended(nn.Module):
    """A block that ends in an attention of its own, whose last convolution has one channel."""

    def __init__(self):
        super().__init__()
        self.conv, self.mask = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 1, 1)

    def forward(self, x):
        x = self.conv(x)
        return x * self.mask(x).sigmoid()


class Last(nn.Module):
    """Positions before channels, as in Swin."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(16)

    def forward(self, x):
        return self.norm(x.permute(0, 2, 3, 1))


def behind(block, width=16):
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), block)


# name: (block, channels in, channels out)
GUESSED_WRONG = {"split": (Split, 32), "fire": (Fire, 32), "shuffle": (Shuffle, 16)}
GUESSED_WRONG |= {"attended": (Attended, 16)}
UNKNOWN = {"frozen": (lambda: Frozen(16), 16)}
INFERRED = {
    "group norm": (lambda: nn.GroupNorm(4, 16), 16),
    "instance norm": (lambda: nn.InstanceNorm2d(16), 16),
    "frozen norm": (lambda: FrozenNorm(16), 16),
    "transposed": (lambda: nn.ConvTranspose2d(16, 8, 2, 2), 8),
    "relu": (nn.ReLU, 16),
    "pooling": (lambda: nn.MaxPool2d(2), 16),
    "conv norm relu": (
        lambda: nn.Sequential(nn.Conv2d(16, 8, 1), nn.BatchNorm2d(8), nn.ReLU()),
        8,
    ),
}


def options(gate):
    return OPTIONS.get(gate, {})


@pytest.mark.parametrize("gate", EACH_GATE)
@pytest.mark.parametrize("name", [*GUESSED_WRONG, *UNKNOWN, *INFERRED])
def test_an_example_measures_the_channels_of_every_block(name, gate):
    build, width = (GUESSED_WRONG | UNKNOWN | INFERRED)[name]
    model = behind(build())
    (entry,) = attach(model, gate, at="1", example=X, **options(gate))
    assert entry.channels == width
    assert randomise(model)(X).shape[1] == width
    told = behind(build())
    attach(told, gate, at="1", channels=width, **options(gate))
    assert told.state_dict().keys() == model.state_dict().keys()
    told.load_state_dict(model.state_dict())
    assert torch.equal(told.eval()(X), model.eval()(X))


@pytest.mark.parametrize("gate", EACH_GATE)
@pytest.mark.parametrize("name", INFERRED)
def test_layers_tell_their_channels(name, gate):
    build, width = INFERRED[name]
    model = behind(build())
    (entry,) = attach(model, gate, at="1", **options(gate))
    assert entry.channels == width
    assert randomise(model)(X).shape[1] == width


@pytest.mark.parametrize("gate", EACH_GATE)
@pytest.mark.parametrize("name", GUESSED_WRONG)
def test_a_wrong_inference_is_named_at_the_first_forward(name, gate):
    build, width = GUESSED_WRONG[name]
    model = behind(build())
    try:
        (entry,) = attach(model, gate, at="1", **options(gate))
    except ValueError:
        return  # the inferred width is too small for an option of the gate
    message = rf"'1' has {width} channels, its gate was built for {entry.channels}, .*example="
    with pytest.raises(ValueError, match=message):
        model(X)
    detach(model)
    attach(model, gate, at="1", example=X, **options(gate))
    model(X)


def test_what_is_not_known_names_the_two_ways_out():
    with pytest.raises(ValueError, match=r"'0' does not tell its channels: give example=.*channel"):
        attach(nn.Sequential(Frozen(3)), "se", at="0")


def test_an_example_leaves_the_network_as_it_was():
    model = Net()
    model.layer1.eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    attach(model, "se", at="stage", example=(X,))
    own = [module for name, module in model.named_modules() if "gate" not in name.split(".")]
    assert [module.training for module in own] == modes
    for name, value in state.items():
        assert torch.equal(model.state_dict()[name], value)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [len(m._forward_hooks) for m in model.modules() if m._forward_hooks] == [1, 1]


def test_an_example_gives_lazy_layers_their_channels():
    model = nn.Sequential(nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d())
    (entry,) = attach(model, "se", at="1", reduction=4, example=X)
    assert (entry.channels, entry.path) == (8, "norm")


def test_channels_by_name_go_before_what_is_inferred():
    model = Net()
    report = attach(model, "se", at="stage", channels={"layer2": 16})
    assert [entry.channels for entry in report] == [8, 16]


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.act = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 1), nn.ReLU()

    def forward(self, x):
        return self.act(self.b(self.act(self.a(x))))


@pytest.mark.parametrize(
    ("prepare", "arguments", "message"),
    [
        (Net, {"channels": 0}, "channels is 0, must be a whole number from 1"),
        (Net, {"channels": {"layer1.0.bn2": "8"}}, "channels of 'layer1.0.bn2' is '8'"),
        (Net, {"channels": {"bn2": 8}}, "unknown slot in channels 'bn2'"),
        (Net, {"example": "x"}, "example is 'x', must be an input of the model or a tuple"),
        (Net, {"example": X[0, 0]}, "does not take the example Tensor of shape .*Error"),
        (Net, {"at": "fc", "example": X}, r"that of 'fc' is \(2, 4\): attach it elsewhere by at="),
        (
            lambda: behind(Last()),
            {"at": "1", "example": X[:, :, :9]},
            r"as of \(N, H, W, C\)",
        ),
        (Twice, {"at": "act", "example": X}, r"'act' runs 2 times .* gives \[4, 8\] channels"),
        (
            lambda: nn.ModuleDict({"a": Net(), "b": Net()}),
            {"example": X},
            "does not take the example",
        ),
    ],
)
def test_what_an_example_cannot_tell_is_a_sentence(prepare, arguments, message):
    model = prepare()
    before = list(model.state_dict())
    with pytest.raises(ValueError, match=message):
        attach(model, "se", **{"reduction": 1, **arguments})
    assert list(model.state_dict()) == before
    assert not any(module._forward_hooks for module in model.modules())


def test_a_slot_that_does_not_run_is_named():
    model = Net()
    model.unused = nn.BatchNorm2d(4)
    with pytest.raises(ValueError, match="'unused' did not run in the example"):
        attach(model, "se", at="unused", example=X)


def test_channels_last_is_named_at_the_forward():
    model = behind(Last())
    attach(model, "se", at="1")
    with pytest.raises(ValueError, match=r"'1' is \(2, 16, 16, 16\)|\(N, H, W, C\)") as caught:
        model(torch.randn(2, 3, 12, 12))
    assert "(N, H, W, C)" in str(caught.value)
