"""How the commands print tables."""

from spem.compare.tables import show


def test_names_are_printed_as_they_are(capsys):
    """A class or a folder in brackets is no markup of rich, and one between colons no picture."""
    names = ["a[b]", "[bold]x[/bold]", "[/]", "c:+1:d", "$x$", "<b>", "a|b"]
    show(["class [red]", ""], [(name, 1) for name in names])
    printed = capsys.readouterr().out
    assert all(f" {name} " in printed for name in [*names, "class [red]"])
