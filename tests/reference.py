"""Slow references, written from the paper's equations with plain loops; never from the library's code."""

from __future__ import annotations

import math


def sim(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    cosine = dot / (math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(y * y for y in b)))
    return min(max(cosine, 1e-4), 0.9999)


def l_match(v_f, v_b, u_f, lambda_b: float) -> float:
    """Equation (1) over lists of pairs."""
    total = 0.0
    for f, b, t in zip(v_f, v_b, u_f, strict=True):
        total += -math.log(sim(f, t)) - lambda_b * math.log(1 - sim(b, t))
    return total / len(v_f)


def l_prompt(u_b, v_b, u_f, lambda_t: float) -> float:
    """Equation (2) over lists of pairs."""
    total = 0.0
    for p, b, t in zip(u_b, v_b, u_f, strict=True):
        total += -math.log(sim(p, b)) - lambda_t * math.log(1 - sim(p, t))
    return total / len(u_b)


def l_prompt_release(u_b, v_b, u_f, lambda_t: float) -> float:
    """The release's variant of (2): + lambda_T log sim(u_b, u_f)."""
    total = 0.0
    for p, b, t in zip(u_b, v_b, u_f, strict=True):
        total += -math.log(sim(p, b)) + lambda_t * math.log(sim(p, t))
    return total / len(u_b)


def l_prompt_foreground(u_b, v_f) -> float:
    """Ours beside (2), E[-log(1 - sim(u_b, v_f))], over lists of pairs."""
    total = 0.0
    for p, f in zip(u_b, v_f, strict=True):
        total -= math.log(1 - sim(p, f))
    return total / len(u_b)


def l_refine(v_f, u_b) -> float:
    """Equation (3)'s L_refine over lists of pairs."""
    total = 0.0
    for f, p in zip(v_f, u_b, strict=True):
        total += -math.log(1 - sim(f, p))
    return total / len(v_f)


def refine_weight(match_gradients, refine_gradients, share: float) -> float:
    """lambda that makes the lower median over pairs of |lambda g_refine| / |g_match| the share; pairs have both."""
    norm = lambda gradient: math.sqrt(sum(x * x for x in gradient))  # noqa: E731
    ratios = []
    for match, refine in zip(match_gradients, refine_gradients, strict=True):
        if norm(match) > 0 and norm(refine) > 0:
            ratios.append(norm(refine) / norm(match))
    return share / sorted(ratios)[(len(ratios) - 1) // 2]


def min_max(cam: list[list[float]], eps: float) -> list[list[float]]:
    values = [value for row in cam for value in row]
    low, high = min(values), max(values)
    return [[(value - low) / (high - low + eps) for value in row] for row in cam]


def hardened(mask: list[list[float]], tau: float) -> list[list[float]]:
    return [[min(value / tau, 1.0) for value in row] for row in mask]


def numeric_gradient(function, vectors: list[list[float]], step: float = 1e-6) -> list[list[float]]:
    """Central differences of a function of a list of vectors."""
    gradient = []
    for i, vector in enumerate(vectors):
        row = []
        for j in range(len(vector)):
            values = []
            for sign in (1, -1):
                moved = [list(v) for v in vectors]
                moved[i][j] += sign * step
                values.append(function(moved))
            row.append((values[0] - values[1]) / (2 * step))
        gradient.append(row)
    return gradient
