"""Real text for calibration and for held-out measurement, split by document."""
