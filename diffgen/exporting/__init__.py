"""Checkpoints in formats of others: diffusers out and in, and the denoiser as a program for torch and ONNX."""
