"""The one forward path and the way back: schedules, targets, weights, the denoiser, guidance, samplers, tasks."""
