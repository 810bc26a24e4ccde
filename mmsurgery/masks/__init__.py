"""Masks from saliency: the paper's rule, masks of a given density, controls. No torch."""
