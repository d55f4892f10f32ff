"""Copies, averages and optimisers of models with attached gates."""

import copy
import io
import pickle

import pytest
import torch
from foreign import Net, X

from spem import attach, detach


@pytest.mark.parametrize("at", ["residual", "stage"])
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_copies_use_their_own_gates(at, how):
    model = Net().eval()
    attach(model, "se", at=at)
    model(X)
    if how == "deepcopy":
        twin = copy.deepcopy(model)
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(model))
    else:
        torch.save(model, buffer := io.BytesIO())
        buffer.seek(0)
        twin = torch.load(buffer, weights_only=False)
    assert torch.equal(twin(X), model(X))
    for parameter in (p for n, p in twin.named_parameters() if ".gate." in n):
        parameter.data.add_(1)
    assert not torch.equal(twin(X), model(X))
    detach(twin)
    assert twin.state_dict().keys() == Net().state_dict().keys()


def test_an_average_of_the_model_moves_its_own_gates():
    model = Net()
    attach(model, "spem", at="stage")
    average = torch.optim.swa_utils.AveragedModel(model, use_buffers=True).eval()
    before = average(X)
    for name, parameter in model.eval().named_parameters():
        parameter.data.add_(1 if ".gate." in name else 0)
    assert torch.equal(average(X), before)
    assert not torch.equal(model(X), before)
    average.update_parameters(model)
    assert torch.equal(average(X), model(X))


def test_three_training_steps_move_all_gates():
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=0.01)
    attach(model, "srm", optimizer=optimizer)
    assert [len(g["params"]) for g in optimizer.param_groups[1:]] == [12]
    assert optimizer.param_groups[1]["weight_decay"] == 0
    assert optimizer.param_groups[1]["lr"] == 0.1
    gates = {n: p.detach().clone() for n, p in model.named_parameters() if ".gate." in n}
    for _ in range(3):
        model(X).square().mean().backward()
        optimizer.step()
    moved = {n for n, p in model.named_parameters() if n in gates and not torch.equal(p, gates[n])}
    assert moved == gates.keys()
    detach(model, optimizer)
    assert len(optimizer.param_groups) == 1
    held = {id(p) for p in optimizer.param_groups[0]["params"]}
    assert held == {id(p) for p in model.parameters()}
    assert all(id(p) in held for p in optimizer.state)
