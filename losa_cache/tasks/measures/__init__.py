"""Figures of predictions, one module each: of K trials at once, or of one trial under many weightings of its samples.

Every function takes predictions ``(K, N, ...)``, targets ``(N, ...)`` and ``weights``, float64 ``(B, N)``: how often
each sample counts; ``None``: once. A draw of the bootstrap is such a weighting. K and B broadcast: one of them is 1, or
both are the same number M, and M figures come back. Sums are in float64. A figure that is not defined is NaN, and so is
one of predictions that are NaN.

Definitions are those of scikit-learn, which is the tests' oracle, with torchmetrics.
"""
