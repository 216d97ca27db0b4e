"""README: Wan's schedules, its three solvers, and the solver trajectories of a synthetic model.

The schedules are those of Wan2.2's image2video.py: its UniPC takes sigmas from float32(0.999) down to 0, its DPM++
from 1 down to 0. Solver steps are diffusers' with these sigmas and timesteps put in. ``float64`` holds an independent
float64 version of the same formulas, which shows how far float32 rounding moves a trajectory."""

import math

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

import portable

STEPS = (4, 12, 40)
SHIFTS = (3.0, 5.0, 12.0)
TRAJECTORY_SHIFT = 5.0
TRAJECTORY_SHAPE = (16, 2, 4, 6)
SOLVERS = ("unipc", "dpm++", "euler")


def schedule(solver: str, steps: int, shift: float) -> tuple[np.ndarray, np.ndarray]:
    """(timesteps int32 [steps], sigmas float32 [steps + 1]). Euler has UniPC's schedule."""
    sigma_max = 1.0 if solver == "dpm++" else float(np.float32(0.999))
    x = np.linspace(sigma_max, 0.0, steps + 1)[:-1]
    sigmas = shift * x / (1 + (shift - 1) * x)
    timesteps = (sigmas * 1000).astype(np.int64).astype(np.int32)
    return timesteps, np.append(sigmas, 0.0).astype(np.float32)


def scheduler(solver: str, steps: int, shift: float):
    """diffusers' scheduler with Wan's sigmas and integer timesteps put in."""
    flow = dict(prediction_type="flow_prediction", use_flow_sigmas=True)
    if solver == "unipc":
        result = UniPCMultistepScheduler(solver_order=2, solver_type="bh2", predict_x0=True, **flow)
    elif solver == "dpm++":
        result = DPMSolverMultistepScheduler(
            solver_order=2, solver_type="midpoint", algorithm_type="dpmsolver++", lower_order_final=True, **flow
        )
    else:
        result = FlowMatchEulerDiscreteScheduler()
    result.set_timesteps(steps)
    timesteps, sigmas = schedule(solver, steps, shift)
    result.sigmas = torch.from_numpy(sigmas)
    # diffusers' Euler scheduler takes integers for indices and refuses them.
    result.timesteps = torch.from_numpy(timesteps).to(torch.float32 if solver == "euler" else torch.int64)
    result.set_begin_index(0)
    return result


def velocity(x, t: int, c):
    """The synthetic model: smooth, nonlinear, dependent on time. Works on tensors and arrays alike."""
    tanh = torch.tanh if isinstance(x, torch.Tensor) else np.tanh
    return tanh(0.7 * x + math.sin(t / 1000 * 3)) - 0.3 * x + c


def start() -> tuple[np.ndarray, np.ndarray]:
    """(first sample, constant c) of the synthetic trajectory."""
    x = portable.input("common", "schedule.x", TRAJECTORY_SHAPE, 1.7)
    return x, portable.input("common", "schedule.c", TRAJECTORY_SHAPE, 0.5)


def trajectory(solver: str, steps: int, shift: float = TRAJECTORY_SHIFT) -> np.ndarray:
    """Samples after every step, float32 [steps, ...]."""
    x, c = (torch.from_numpy(a) for a in start())
    solve = scheduler(solver, steps, shift)
    kept = []
    for t in solve.timesteps:
        x = solve.step(velocity(x, int(t), c), t, x, return_dict=False)[0]
        kept.append(x.numpy().copy())
    return np.stack(kept)


def _lambda(sigma: float) -> float:
    """Half the log signal-to-noise ratio of a flow: ln((1 - sigma) / sigma)."""
    if sigma in (0.0, 1.0):
        return math.inf if sigma == 0.0 else -math.inf
    return math.log1p(-sigma) - math.log(sigma)


def _ratio(a: float, b: float) -> float:
    """a / b where an infinite a (the step from sigma 1) is allowed."""
    return math.inf if math.isinf(a) else a / b


def float64(solver: str, steps: int, shift: float = TRAJECTORY_SHIFT) -> np.ndarray:
    """``trajectory`` in float64, from the formulas: UniPC (arXiv 2302.04867, B2) and DPM-Solver++ 2M (2211.01095)."""
    timesteps, sigmas = schedule(solver, steps, shift)
    s = [float(v) for v in sigmas]
    lam = [_lambda(v) for v in s]
    x, c = (a.astype(np.float64) for a in start())
    kept, data, last, order = [], [], None, 0
    for i, t in enumerate(timesteps):
        v = velocity(x, int(t), c)
        if solver == "euler":
            x = x + (s[i + 1] - s[i]) * v
            kept.append(x)
            continue
        m = x - s[i] * v
        if solver == "unipc" and i > 0:
            h = lam[i] - lam[i - 1]
            phi1 = math.expm1(-h)
            base = s[i] / s[i - 1] * last - (1 - s[i]) * phi1 * data[-1]
            if order == 1:
                correction = 0.5 * (m - data[-1])
            else:
                r = (lam[i - 2] - lam[i - 1]) / h
                phi2 = phi1 / -h - 1
                b = [phi2 / phi1, 2 * (phi2 / -h - 0.5) / phi1]
                rho = np.linalg.solve(np.array([[1.0, 1.0], [r, 1.0]]), np.array(b))
                correction = rho[0] * (data[-2] - data[-1]) / r + rho[1] * (m - data[-1])
            x = base - (1 - s[i]) * phi1 * correction
        last = x
        data.append(m)
        final = i == steps - 1
        order = 1 if i == 0 or final else 2
        h = lam[i + 1] - lam[i]
        phi1 = math.expm1(-h)
        x = s[i + 1] / s[i] * x - (1 - s[i + 1]) * phi1 * m
        if order == 2:
            # D1 is (m - m_before) / r with r > 0 in DPM++; UniPC writes the same with both signs turned.
            x = x - (1 - s[i + 1]) * phi1 * 0.5 * (m - data[-2]) / _ratio(lam[i] - lam[i - 1], h)
        kept.append(x)
    return np.stack(kept)


def tensors() -> dict[str, np.ndarray]:
    """The schedule part of the common golden file, and prints the float32-to-float64 distances."""
    out = {}
    for solver in ("unipc", "dpm++"):
        for steps in STEPS:
            for shift in SHIFTS:
                timesteps, sigmas = schedule(solver, steps, shift)
                key = f"schedule/{solver}/steps{steps}_shift{shift:g}"
                out[f"{key}/timesteps"], out[f"{key}/sigmas"] = timesteps, sigmas
    for solver in SOLVERS:
        for steps in STEPS:
            x, exact = trajectory(solver, steps), float64(solver, steps)
            out[f"trajectory/{solver}/steps{steps}"] = x if steps == 12 else x[-1]
            difference = np.abs(x - exact).max()
            print(f"trajectory {solver} {steps} steps: |x| max {np.abs(exact).max():.3f}, float32 off by {difference:.2e}")
    return out
