"""Saliency: Fisher diagonals of data parts, the sums of squared gradients that masks are made from."""
