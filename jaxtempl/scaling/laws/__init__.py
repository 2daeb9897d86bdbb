"""Scaling laws: functional forms, fits, bootstrap intervals, goodness of fit and forecasts.

`fit` fits a law to anyone's table.
"""

from jaxtempl.scaling.laws.table import TableFit, fit

__all__ = ["TableFit", "fit"]
