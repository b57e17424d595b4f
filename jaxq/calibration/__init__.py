"""Calibration: what the activations were, and the thresholds drawn from it."""
