"""Baselines from frozen features: logistic and ridge regressions, nearest neighbours, class means."""
