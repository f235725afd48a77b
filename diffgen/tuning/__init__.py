"""What makes a trained model better or faster without training it: time grids, moments of its data, extrapolation."""
