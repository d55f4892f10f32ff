"""The records of a comparison as what a report shows, in Markdown and in HTML alike."""

from spem.report.tables.contents import Contents, read_contents
from spem.report.tables.group import Group, TextCell, TextTable

__all__ = ["Contents", "Group", "TextCell", "TextTable", "read_contents"]
