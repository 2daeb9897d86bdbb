"""Scaling laws: functional forms, fits, bootstrap intervals, goodness of fit and forecasts."""
