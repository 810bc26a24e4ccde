"""Scores: multiple choice by option likelihood, columns with intervals, paired and matched comparisons."""

from __future__ import annotations

from mmsurgery.evaluate.run import EvalResult, evaluate, gate

__all__ = ["EvalResult", "evaluate", "gate"]
