"""Measuring a model: pure functions on features, likelihoods and denoising errors. No command, no files but weights.

statistics  streaming mean and covariance, the Frechet distance
metrics     kernel distance, inception score, precision and recall, density and coverage, memorisation
extractors  images -> features: the table EXTRACTORS
dinov2      the network of FD-DINOv2
drawing     images, drawn or read, with their features
examiner    a cheap evaluation in training, and the best weights
pictures    images from elsewhere, to be judged
classifier  the small network that diffgen trains itself, and what labels of samples are worth
likelihood  bits per dimension along the ODE, and the variational bound of DDPM
denoising   held-out error in bins of the noise level
measure     all metrics of images, with their floors
model       all metrics of a model itself
reference   features of real images, kept
report      results in words and pictures
"""
