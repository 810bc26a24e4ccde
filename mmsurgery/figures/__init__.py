"""Figures: numbers ready to be drawn, and drawn without a display."""
