"""Does it stay forgotten? Probes of an unlearned model, held against vanilla, gold and a destroyed model."""
