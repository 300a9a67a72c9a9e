"""Reports: run folders in, one self-contained HTML page and its tables as Markdown out.

run folder --records--> RunRecord --tables, curves--> tables and figures of its numbers
its pictures and encoder --examples, feature_space--> views, neighbours, a map
both --sections--> page --writing--> files
"""

from rayssl.html_report.records import RunRecord, find_run, read_run
from rayssl.html_report.writing import to_html, to_markdown, write_report

__all__ = ["RunRecord", "find_run", "read_run", "to_html", "to_markdown", "write_report"]
