"""The choices behind a fit: the checklist of "(Mis)Fitting" (Li et al., 2025, arXiv 2502.18969)."""

from jaxtempl.scaling.laws import fitting
from jaxtempl.scaling.laws.goodness_of_fit import LawAssessment


def checklist(assessment: LawAssessment, counted: str, schedule: str) -> dict[str, str]:
    """Return the choices behind a fit, by topic.

    Args:
        assessment: Fitted law.
        counted: What the variable of parameters counts.
        schedule: Learning-rate schedule of the points.
    """
    fit = assessment.fit
    groups = len(set(fit.data.group.tolist()))
    ranges = [
        f"{name} {low:.3g} to {high:.3g}"
        for name, low, high in zip(fit.law.variables, fit.data.x.min(axis=0), fit.data.x.max(axis=0), strict=True)
    ]
    return {
        "form": f"{fit.law.formula} ({fit.law.source})",
        "points": f"{len(fit.data.y)} of {groups} runs; {', '.join(ranges)}",
        "parameters count": counted,
        "schedule": schedule,
        "objective": f"Huber loss of log residuals, threshold {fit.delta:.3g}; {fit.objective:.6g} at the optimum",
        "optimiser": f"{fitting.GRID_STARTS} starts within bounds, the best {fitting.REFINED_STARTS} by L-BFGS-B",
        "intervals": f"95 %, {len(fit.resampled)} wild bootstrap resamples of runs",
    }
