"""Baselines from frozen features: logistic regressions, nearest neighbours, class means."""
