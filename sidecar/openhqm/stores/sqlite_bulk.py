"""Changing many rows with one statement, at half the cost of one statement per row."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

_ROWS = (64, 32, 16, 8, 4, 2, 1)
"""Rows of one statement, most first: few enough statements that all stay prepared."""


class BulkInsert:
    """`INSERT INTO <into> VALUES (<row>), (<row>), ...`.

    Args:
        into: table and columns.
        row: one row's values, a question mark for each that is given.
    """

    def __init__(self, into: str, row: str) -> None:
        self._width = row.count("?")
        self._statements = [
            (rows, f"INSERT INTO {into} VALUES {', '.join([f'({row})'] * rows)}")  # noqa: S608
            for rows in _ROWS
        ]

    def run(self, connection: sqlite3.Connection, values: Sequence[object]) -> None:
        """Insert rows whose values stand one after the other in *values*."""
        start = 0
        for rows, sql in self._statements:
            step = rows * self._width
            while len(values) - start >= step:
                connection.execute(sql, values[start : start + step])
                start += step


class BulkChange:
    """The same change of any number of rows: `<sql> BETWEEN ...` for neighbours, `<sql> IN (...)` for others.

    What is accepted together is mostly leased and settled together, and reading a list of numbers
    and sorting it costs as much as changing the rows.

    Args:
        sql: an UPDATE or DELETE up to the column of the numbers.
    """

    def __init__(self, sql: str) -> None:
        self.of_neighbours = f"{sql} BETWEEN ? AND ?"
        # A JSON list makes one statement of any number of rows.
        self.of_any = f"{sql} IN (SELECT value FROM json_each(?))"  # noqa: S608

    def run(self, connection: sqlite3.Connection, seqs: Sequence[int], *values: object) -> None:
        """Change the rows *seqs*, at least one, each named once; *values* stand before them."""
        first, last = min(seqs), max(seqs)
        if last - first + 1 == len(seqs):
            connection.execute(self.of_neighbours, (*values, first, last))
        else:
            connection.execute(self.of_any, (*values, str(seqs)))
