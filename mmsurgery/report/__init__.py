"""`report`: one offline HTML page of what a workspace holds."""

from __future__ import annotations

from mmsurgery.report.write import ReportResult, write_report

__all__ = ["ReportResult", "write_report"]
