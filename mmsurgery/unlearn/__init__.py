"""Training under a mask: the loop, the masked update, what a run leaves behind, and its proof."""
