"""The records of a comparison as the texts and tables of its report.

`read_contents` reads a folder and returns everything that a report shows, in Markdown and in HTML
alike; a `Group` is what it says of one model and one data set.
"""

from spem.report.tables.cells import TextCell, TextTable
from spem.report.tables.contents import Contents, read_contents
from spem.report.tables.group import Group

__all__ = ["Contents", "Group", "TextCell", "TextTable", "read_contents"]
