"""Muon (orthogonalised momentum, https://kellerjordan.github.io/posts/muon/) with AdamW for the rest.

On the narrow RMS-normalised layers of the miniature AdamW alone crawls; orthogonalising
the update of every weight matrix lets all directions of a kernel learn at one rate.
"""

from __future__ import annotations

from collections import defaultdict

import torch

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients from the reference above
STEPS = 5


def orthogonalise(batch: torch.Tensor) -> torch.Tensor:
    """Nearest semi-orthogonal matrices of a batch [n, rows, cols], roughly, by Newton-Schulz."""
    a, b, c = NEWTON_SCHULZ
    flip = batch.shape[1] > batch.shape[2]
    x = batch.mT if flip else batch
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).bfloat16()
    for _ in range(STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if flip else x).float()


class MuonAdamW(torch.optim.Optimizer):
    """Muon on a module's matrices (kernels are flattened to [out, rest]), AdamW on the rest.

    The rest are norms, biases, small tables and embeddings. Both use the group's `lr`;
    Muon's update is scaled to AdamW's typical size (0.2 root-mean-square per element),
    so one schedule serves both. Frozen parameters are left out.
    """

    def __init__(self, module: torch.nn.Module, lr: float, momentum: float = 0.95):
        tables = {id(m.weight) for m in module.modules() if isinstance(m, torch.nn.Embedding)}
        params = [p for p in module.parameters() if p.requires_grad]
        matrices = [
            p for p in params if id(p) not in tables and p.ndim >= 2 and min(len(p), p[0].numel()) > 1
        ]
        chosen = {id(p) for p in matrices}
        others = [p for p in params if id(p) not in chosen]
        groups = [dict(params=matrices, muon=True), dict(params=others, muon=False)]
        super().__init__(groups, dict(lr=lr, momentum=momentum))

    @torch.no_grad()
    def step(self) -> None:
        """One update; parameters without a gradient are left alone."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            (self._muon if group["muon"] else self._adamw)(params, group)

    def _muon(self, params, group) -> None:
        by_shape = defaultdict(list)
        for p in params:
            state = self.state[p]
            if not state:
                state["momentum"] = torch.zeros_like(p)
            state["momentum"].lerp_(p.grad, 1 - group["momentum"])
            update = p.grad.lerp(state["momentum"], group["momentum"])
            flat = update.reshape(len(p), -1)
            by_shape[flat.shape].append((p, flat))
        for shape, members in by_shape.items():
            update = orthogonalise(torch.stack([flat for _, flat in members]))
            scale = 0.2 * max(shape) ** 0.5 * group["lr"]
            for (p, _), delta in zip(members, update):
                p.add_(delta.view_as(p), alpha=-scale)

    def _adamw(self, params, group) -> None:
        for p in params:
            state = self.state[p]
            if not state:
                state.update(step=0, mean=torch.zeros_like(p), square=torch.zeros_like(p))
            state["step"] += 1
            state["mean"].lerp_(p.grad, 0.1)
            state["square"].lerp_(p.grad.square(), 0.01)
            mean = state["mean"] / (1 - 0.9 ** state["step"])
            square = state["square"] / (1 - 0.99 ** state["step"])
            p.addcdiv_(mean, square.sqrt() + 1e-8, value=-group["lr"])
