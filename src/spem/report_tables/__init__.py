"""The records of a comparison as what a report shows, in Markdown and in HTML alike."""

from spem.report_tables.contents import Contents, read_contents
from spem.report_tables.group import Group, TextCell, TextTable

__all__ = ["Contents", "Group", "TextCell", "TextTable", "read_contents"]
