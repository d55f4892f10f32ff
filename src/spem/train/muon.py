"""Muon for the weights of hidden layers, with AdamW for all other parameters, as one optimiser."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon


def matrices(model: nn.Module) -> set[Tensor]:
    """Return the parameters that Muon takes: weights of linear layers and of full convolutions.

    Not of depthwise ones, and no tables of numbers, such as those of relative positions.
    """
    layers = (m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d))
    return {layer.weight for layer in layers if layer.weight.shape[1] > 1}


class MuonAdamW(AdamW):
    """`torch.optim.Muon` for the groups with `muon: True`, AdamW for the others.

    Muon takes the weight (O, I, H, W) of a convolution as a matrix (O, I·H·W), as its author does.
    Its rate is scaled to the size of AdamW's steps (`match_rms_adamw`), so that one rate serves
    both.

    Args:
        groups: with the key `muon`.
        lr, weight_decay: of both; the decay is decoupled.
        momentum, nesterov: of Muon; AdamW has PyTorch's betas.

    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024; the
        scale: Liu et al., "Muon is Scalable for LLM Training", 2025 (arXiv 2502.16982).
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float,
        weight_decay: float,
        momentum: float,
        nesterov: bool,
    ):
        groups = [group | {"momentum": momentum, "nesterov": nesterov} for group in groups]
        super().__init__(groups, lr=lr, weight_decay=weight_decay)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take one step; see `torch.optim.Optimizer.step`."""
        every = self.param_groups
        self.param_groups = [group for group in every if not group["muon"]]
        try:
            loss = super().step(closure)
        finally:
            self.param_groups = every
        for group in every:
            if group["muon"]:
                self._step_matrices(group)
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        """Let Muon step a group, on matrices that share the memory of its parameters."""
        changed = [p for p in group["params"] if p.grad is not None]
        if not changed:
            return
        settings = {key: group[key] for key in ("lr", "weight_decay", "momentum", "nesterov")}
        matrices = [_as_matrix(parameter, parameter) for parameter in changed]
        muon = Muon(matrices, adjust_lr_fn="match_rms_adamw", **settings)
        for parameter, matrix in zip(changed, matrices, strict=True):
            matrix.grad = _as_matrix(parameter.grad, parameter)
            state = self.state[parameter]
            if not state:
                # AdamW looks for the step wherever it loads a state.
                state |= {"step": torch.tensor(0.0), "momentum_buffer": torch.zeros_like(parameter)}
            muon.state[matrix]["momentum_buffer"] = _as_matrix(state["momentum_buffer"], parameter)
        muon.step()


def _as_matrix(tensor: Tensor, parameter: Tensor) -> Tensor:
    """Return a tensor shaped like a parameter as a matrix; it shares memory where it is dense.

    In the NHWC format the columns stand in another order, which Muon's step does not depend on.
    """
    nhwc = parameter.dim() == 4 and not parameter.is_contiguous()
    wide = tensor.detach().permute(0, 2, 3, 1) if nhwc else tensor.detach()
    return wide.flatten(1)
