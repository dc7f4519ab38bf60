"""Student's t and the beta distribution, for intervals from few draws; what scipy.stats has, without scipy."""

import math
from functools import cache

from workbench.errors import WorkbenchError


@cache
def student_quantile(probability: float, freedom: float) -> float:
    """Where Student's t distribution with `freedom` degrees, whole or not, has this cumulative `probability`.

    WorkbenchError for a probability outside 0 to 1 (both excluded) or freedom not above 0.
    """
    if not 0 < probability < 1 or not freedom > 0:
        raise WorkbenchError(
            f"Student's t has no quantile {probability} at {freedom} degrees of freedom: give 0 < p < 1."
        )
    x = beta_quantile(2 * min(probability, 1 - probability), freedom / 2, 0.5)
    return math.copysign(math.sqrt(freedom * (1 - x) / x), probability - 0.5)


def student_p_value(t: float, freedom: float) -> float:
    """P(|T| >= |t|) of Student's t distribution with `freedom` degrees."""
    return incomplete_beta(freedom / (freedom + t * t), freedom / 2, 0.5)


def beta_quantile(probability: float, a: float, b: float) -> float:
    """Where the beta distribution has this cumulative `probability`, by halving."""
    low, high = 0.0, 1.0
    for _ in range(200):  # as many as keep a quantile near 0 exact in its leading digits
        middle = (low + high) / 2
        low, high = (middle, high) if incomplete_beta(middle, a, b) < probability else (low, middle)
    return (low + high) / 2


def incomplete_beta(x: float, a: float, b: float) -> float:
    """Regularised incomplete beta function I_x(a, b), by its continued fraction (DLMF 8.17.22)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # beyond, the fraction of the other tail converges faster
        return 1 - incomplete_beta(1 - x, b, a)
    fraction, terms = 0.0, 60 + 4 * math.isqrt(math.ceil(a + b))
    for index in range(terms, 0, -1):  # from the innermost term outwards
        m = index // 2
        if index % 2:
            term = -(a + m) * (a + b + m) / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) / ((a + 2 * m - 1) * (a + 2 * m))
        fraction = term * x / (1 + fraction)
    logarithm = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(logarithm) / (a * (1 + fraction))
