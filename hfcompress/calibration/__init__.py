"""Statistics of a model on calibration rows."""
