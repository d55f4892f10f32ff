"""Named placements, measured channels and replay on the networks of other libraries."""

import copy
import json

import numpy as np
import pytest
import torch
from gatings import EACH_GATE, OPTIONS, WITHOUT_IDENTITY, randomise

import spem
from spem import attach, attachment

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")
ultralytics = pytest.importorskip("ultralytics")

# name: number of slots at "residual", "stage" and "depthwise"
FAMILIES = {
    "torchvision mobilenet_v2": (17, 5, 17),
    "torchvision mobilenet_v3_small": (11, 4, 11),
    "torchvision efficientnet_b0": (16, 7, 16),
    "torchvision mnasnet0_5": (16, 6, 0),
    "torchvision convnext_tiny": (18, 4, 0),
    "torchvision vgg11_bn": (8, 5, 0),
    "torchvision vgg11": (8, 5, 0),
    "torchvision densenet121": (58, 4, 0),
    "torchvision shufflenet_v2_x0_5": (0, 0, 0),
    "timm mobilenetv2_100": (17, 7, 17),
    "timm mobilenetv3_small_100": (11, 5, 11),
    "timm mobilenetv4_conv_small": (12, 4, 12),
    "timm efficientnet_b0": (16, 7, 16),
    "timm tf_efficientnetv2_b0": (20, 6, 16),
    "timm resnest14d": (4, 4, 0),
    "timm res2net50_26w_4s": (16, 4, 0),
    "timm hrnet_w18_small": (23, 10, 0),
    "timm convnext_atto": (12, 4, 0),  # its blocks keep N, C, H, W; those of convnext_tiny do not
    "timm convnext_tiny": (18, 4, 0),
    "timm vgg11_bn": (8, 5, 0),
    "timm densenet121": (58, 4, 0),
}
PLACES = ("residual", "stage", "depthwise")
X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def build(name):
    library, name = name.split()
    if library == "timm":
        return timm.create_model(name, num_classes=5).eval()
    return torchvision.models.get_model(name, num_classes=5).eval()


# In every run one network a family, the others in `make test-gates`.
_FEW = ("mobilenet_v3_small", "efficientnet_b0", "res2net50_26w_4s", "convnext_atto", "densenet121")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n.endswith(_FEW) else pytest.mark.gates) for n in FAMILIES],
)
@torch.no_grad()
def test_named_placements_of_a_family(name):
    plain = build(name)
    for at, count in zip(PLACES, FAMILIES[name], strict=True):
        if not count:
            with pytest.raises(
                ValueError, match=r"matches no module of .*; there are: .*\*.*Conv2d"
            ):
                attach(plain, "se", at=at)
            continue
        model = copy.deepcopy(plain)
        report = attach(model, "se", at=at, reduction=2)
        assert len(report) == count
        assert torch.equal(model(X), plain(X))
        measured = attach(plain, "se", at=at, reduction=2, example=X, dry_run=True)
        assert [entry.channels for entry in measured] == [entry.channels for entry in report]
        twin = copy.deepcopy(plain)
        attach(twin, **json.loads(json.dumps(attachment(model))))
        twin.load_state_dict(randomise(model).state_dict())
        assert torch.equal(twin(X), model(X))


# blocks whose output no layer tells: (network, name of a module, its channels)
MEASURED = [
    ("torchvision squeezenet1_1", "features.3", 128),
    ("torchvision googlenet", "inception3a", 256),
    ("torchvision shufflenet_v2_x0_5", "stage2", 48),
]


@pytest.mark.parametrize("gate", EACH_GATE)
@pytest.mark.parametrize(("name", "at", "channels"), MEASURED)
def test_an_example_measures_blocks_of_branches(name, at, channels, gate):
    options = OPTIONS.get(gate, {})
    model = torchvision.models.get_model(
        name.split()[1], num_classes=5, **({"init_weights": False} if "google" in name else {})
    ).eval()
    if "reduction" in spem.gates.gate_options(gate):
        options = options | {"reduction": 4}
    (entry,) = attach(model, gate, at=at, example=torch.randn(1, 3, 64, 64), **options)
    assert entry.channels == channels
    model(torch.randn(1, 3, 64, 64))


def test_frozen_norms_tell_their_channels():
    norm = torchvision.ops.FrozenBatchNorm2d
    model = torchvision.models.resnet18(norm_layer=norm, num_classes=5).eval()
    plain = copy.deepcopy(model)
    report = attach(model, "spem")
    assert {entry.path for entry in report} == {"hook"}
    assert torch.equal(model(X), plain(X))


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_dense_blocks_are_refused_with_a_placement_that_works(library):
    model = build(f"{library} densenet121")
    with pytest.raises(ValueError, match=r"like at='features\.denseblock1\.denselayer6'") as caught:
        attach(model, "se", at="features.denseblock1", channels=256)
    attach(model, "se", at=str(caught.value).split("'")[3], example=X)
    model(X)


YOLO_BLOCKS = {"C2f", "C2fCIB", "C3", "C3k2", "C2PSA", "PSA", "A2C2f", "SPPF", "SPPELAN"}
YOLO_BLOCKS |= {"RepNCSPELAN4", "ELAN1"}


def yolo(name):
    torch.manual_seed(0)
    return ultralytics.YOLO(name)


@torch.no_grad()
@pytest.mark.parametrize("at", ["residual", "stage"])
@pytest.mark.parametrize(
    "name",
    [
        "yolo11n",
        *(
            pytest.param(n, marks=pytest.mark.gates)
            for n in ("yolov5n", "yolov8n", "yolov9t", "yolov10n", "yolo12n")
        ),
    ],
)
def test_named_placements_of_yolo_survive_fusing_and_predicting(name, at):
    detector = yolo(f"{name}.yaml")
    plain = copy.deepcopy(detector.model).eval()
    report = attach(detector.model, "se", at=at, reduction=2)
    blocks = [n for n, m in plain.model.named_children() if type(m).__name__ in YOLO_BLOCKS]
    assert at == "residual" or [entry.name for entry in report] == [f"model.{n}" for n in blocks]
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(detector.model.eval()(x)[0], plain(x)[0])
    randomise(detector.model)
    ran = []
    gates = [m for m in detector.model.modules() if isinstance(m, spem.Attention)]
    assert len(gates) == len(report)
    before = detector.model.double()(x.double())[0]
    fused = copy.deepcopy(detector.model).fuse(verbose=False)
    assert (fused(x.double())[0] - before).abs().max() < 1e-9 * before.abs().max()
    detector.model.float()
    for gate in gates:
        gate.register_forward_hook(lambda gate, *_: ran.append(gate))
    detector.predict(np.zeros((64, 64, 3), np.uint8), imgsz=64, verbose=False)
    assert len({*ran}) == len(gates)  # of the copy that it makes


# network: a pattern of names, and how many modules have one
PATTERNS = {
    "resnet18": ("layer*.*.bn2", 8),
    "mobilenet_v2": ("features.*.conv.1.1", 16),
    "yolo11n": ("model.[2468]", 4),
}


@torch.no_grad()
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == "yolo11n" else pytest.mark.gates) for n in PATTERNS]
)
@pytest.mark.parametrize("gate", EACH_GATE)
def test_every_gate_goes_where_a_pattern_of_names_says(gate, name):
    at, count = PATTERNS[name]
    plain = yolo(f"{name}.yaml").model.eval() if "yolo" in name else build(f"torchvision {name}")
    model, x = copy.deepcopy(plain), torch.rand(2, 3, 64, 64)
    report = attach(model, gate, at=at, example=x, **OPTIONS.get(gate, {}))
    assert len(report) == count
    expected, found = (out[0] if isinstance(out := m(x), tuple) else out for m in (plain, model))
    assert torch.equal(found, expected) or gate in WITHOUT_IDENTITY
    changed = randomise(model)(x)
    changed = changed[0] if isinstance(changed, tuple) else changed
    assert changed.isfinite().all()
    assert not torch.equal(changed, expected)
    twin = copy.deepcopy(plain)
    attach(twin, **json.loads(json.dumps(attachment(model))))
    twin.load_state_dict(model.state_dict())
    again = twin(x)
    assert torch.equal(again[0] if isinstance(again, tuple) else again, changed)
    spem.detach(model)
    assert model.state_dict().keys() == plain.state_dict().keys()


def test_predicting_with_gates_in_the_norms_names_a_placement_that_works():
    detector = yolo("yolov8n.yaml")
    report = attach(detector.model, "se", at="model.*.cv2.bn")
    with pytest.raises(RuntimeError, match=r"is lost.*like at='model\.2\.cv2', which fusing"):
        detector.predict(np.zeros((64, 64, 3), np.uint8), imgsz=64, verbose=False)
    detector = yolo("yolov8n.yaml")
    attach(detector.model, "se", at=[entry.name.removesuffix(".bn") for entry in report])
    detector.predict(np.zeros((64, 64, 3), np.uint8), imgsz=64, verbose=False)


def draw_dataset(folder):
    from PIL import Image

    for part in ("images", "labels"):
        (folder / part).mkdir()
    for i in range(2):
        Image.new("RGB", (64, 64), (40 * i, 80, 120)).save(folder / f"images/{i}.jpg")
        (folder / f"labels/{i}.txt").write_text("0 0.5 0.5 0.4 0.4\n")
    text = f"path: {folder}\ntrain: images\nval: images\nnames: {{0: square}}\n"
    (folder / "data.yaml").write_text(text)
    return folder / "data.yaml"


def test_ultralytics_trains_a_network_with_gates(tmp_path):
    from ultralytics.models.yolo.detect import DetectionTrainer

    detector = yolo("yolov8n.yaml")
    attach(detector.model, "spem", at="stage")
    stored = attachment(detector.model)

    class Trainer(DetectionTrainer):
        def get_model(self, cfg=None, weights=None, verbose=True):
            model = super().get_model(cfg, None, verbose)
            attach(model, **stored)
            if weights is not None:
                model.load(weights)
            return model

        def final_eval(self):
            """Needs the NMS of torchvision's library, which is not there beside a CPU build."""

        def validate(self):
            return {}, 0.0

    settings = {"imgsz": 64, "epochs": 1, "batch": 2, "workers": 0, "device": "cpu"}
    quiet = {"plots": False, "verbose": False, "project": str(tmp_path), "name": "run"}
    data = draw_dataset(tmp_path)
    detector.train(data=data, trainer=Trainer, val=False, amp=False, **settings, **quiet)
    trained = ultralytics.YOLO(tmp_path / "run/weights/last.pt")
    assert attachment(trained.model)["at"] == stored["at"]
    trained.predict(np.zeros((64, 64, 3), np.uint8), imgsz=64, conf=0.99, verbose=False)


def test_a_hugging_face_network_keeps_its_attachment_in_its_config(tmp_path):
    from transformers import AutoConfig, ResNetConfig, ResNetForImageClassification

    sizes = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "num_labels": 5}
    model = ResNetForImageClassification(ResNetConfig(**sizes)).eval()
    attach(model, "spem")
    model.config.spem = attachment(model)
    randomise(model).save_pretrained(tmp_path)

    class Gated(ResNetForImageClassification):
        def __init__(self, config):
            super().__init__(config)
            attach(self, **config.spem)

    assert AutoConfig.from_pretrained(tmp_path).spem == attachment(model)
    loaded = Gated.from_pretrained(tmp_path)
    assert torch.equal(loaded(X).logits, model(X).logits)
    plain, messages = ResNetForImageClassification.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert any(".gate." in key for key in messages["unexpected_keys"])
    assert plain.config.spem == attachment(model)
