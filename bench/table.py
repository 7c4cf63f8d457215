"""Show records as a table."""
from rich.console import Console
from rich.table import Column, Table


def show(columns, records):
    """Print the records; columns is {heading: format}, such as {"step ms": "{step_ms:.1f}"}; None becomes a dash."""
    table = Table(*(Column(heading, justify="right" if ":" in form else "left") for heading, form in columns.items()),
                  box=None)
    for record in records:
        table.add_row(*(cell(form, record) for form in columns.values()))
    console = Console()
    if not console.is_terminal:                 # a file has no width
        console.width = 200
    console.print(table)


def cell(form, record):
    try:
        return form.format(**record)
    except TypeError:                           # None has no such format
        return "-"
