"""What timm, torchvision and ultralytics do to parameters and norms, on networks with gates."""

import copy
import warnings
from types import SimpleNamespace

import pytest
import torch

import spem

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")
X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def timm_weight_decay(model):
    from timm.optim import param_groups_weight_decay

    return param_groups_weight_decay(model, 1e-4)


def timm_layer_decay(model):
    from timm.optim import param_groups_layer_decay

    return param_groups_layer_decay(model, 1e-4, layer_decay=0.75)


def torchvision_norms(model):
    from torchvision.ops._utils import split_normalization_params

    norms, others = split_normalization_params(model)
    return [{"params": norms, "weight_decay": 0.0}, {"params": others}]


def ultralytics_groups(model):
    trainer = pytest.importorskip("ultralytics.engine.trainer")
    owner = SimpleNamespace(args=SimpleNamespace(warmup_bias_lr=0.1), data={"nc": 5})
    build = trainer.BaseTrainer.build_optimizer
    return build(owner, model, name="SGD", lr=0.01, momentum=0.9, decay=1e-5).param_groups


def ours(model):
    return spem.parameter_groups(model, weight_decay=1e-4, gate_lr=0.01, norm_weight_decay=0.0)


IDIOMS = [timm_weight_decay, timm_layer_decay, torchvision_norms, ultralytics_groups, ours]


@pytest.mark.parametrize("gate", ["spem", "se"])
@pytest.mark.parametrize("at", ["residual", "stage"])
@pytest.mark.parametrize("idiom", IDIOMS, ids=lambda idiom: idiom.__name__)
def test_each_parameter_is_in_one_group(idiom, gate, at):
    model = timm.create_model("resnet18", num_classes=5)
    spem.attach(model, gate, at=at)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        groups = idiom(model)
        held = [id(p) for group in groups for p in group["params"]]
        assert sorted(held) == sorted(map(id, model.parameters()))
        optimizer = torch.optim.SGD([{"params": group["params"]} for group in groups], 1e-3)
        for _ in range(2):
            model(X).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        model(X)


@pytest.mark.parametrize("gate", ["spem", "se"])
def test_timms_optimizer_factory_takes_gates(gate):
    from timm.optim import create_optimizer_v2

    model = timm.create_model("resnet18", num_classes=5)
    spem.attach(model, gate)
    optimizer = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.75)
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(map(id, model.parameters()))


def test_an_average_of_timm_follows_gates_that_both_networks_have():
    from timm.utils import ModelEmaV3

    model = timm.create_model("resnet18", num_classes=5)
    average = ModelEmaV3(model, decay=0.5)
    for each in (model, average.module):
        spem.attach(each, "se")
    average.module.load_state_dict(model.state_dict())
    for parameter in model.parameters():
        parameter.data.add_(1)
    average.update(model)
    key = "layer1.0.bn2.gate.fc1.weight"
    torch.testing.assert_close(average.module.state_dict()[key], model.state_dict()[key] - 0.5)


def freeze_by_timm(model):
    from timm.utils.model import freeze_batch_norm_2d

    return freeze_batch_norm_2d(model)


def convert_by_timm(model):
    from timm.layers import convert_sync_batchnorm

    return convert_sync_batchnorm(model)


@pytest.mark.parametrize("convert", [freeze_by_timm, convert_by_timm])
def test_what_replaces_norms_is_refused_and_works_before(convert):
    model = timm.create_model("resnet18", num_classes=5)
    first = convert(copy.deepcopy(model)).eval()
    spem.attach(model, "se")
    with pytest.raises(RuntimeError, match=r"attach (them|gates) after"):
        convert(model)(X)
    plain = first(X)
    spem.attach(first, "se", at="layer*.*.conv2")
    torch.testing.assert_close(first(X), plain)


def test_timms_checkpoints_load(tmp_path):
    from timm.utils import CheckpointSaver, ModelEmaV3

    plain = timm.create_model("resnet18", num_classes=5)
    optimizer = torch.optim.SGD(plain.parameters(), 0.1)
    saver = CheckpointSaver(
        plain,
        optimizer,
        model_ema=ModelEmaV3(plain),
        checkpoint_dir=str(tmp_path),
        recovery_dir=str(tmp_path),
    )
    saver.save_checkpoint(0, 1.0)
    checkpoint = torch.load(tmp_path / "last.pth.tar", weights_only=False)
    model = timm.create_model("resnet18", num_classes=5)
    spem.attach(model, "spem")
    with pytest.raises(ValueError, match=r"checkpoint\['state_dict'\] or .*\['state_dict_ema'\]"):
        spem.load_backbone(model, checkpoint)
    loaded = spem.load_backbone(model, checkpoint["state_dict_ema"])
    assert len(loaded.loaded) == len(plain.state_dict())
