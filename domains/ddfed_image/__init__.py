"""Images for ddfed: data sets, whitening, networks, differentiable augmentation, pictures and exports."""
