"""Published tables as data, one file each; `TABLES` has them by name."""

from __future__ import annotations

from . import official_page, table1, table2, table3, table4
from .base import DERIVED, ROW, Column, PublishedRow, PublishedTable

TABLES: dict[str, PublishedTable] = {
    table.name: table
    for table in (
        table1.TABLE,
        table2.TABLE,
        table3.TABLE,
        table4.TABLE_A,
        table4.TABLE_B,
        official_page.EXTENDED,
        official_page.THIRTEEN_B,
    )
}

__all__ = ["DERIVED", "ROW", "TABLES", "Column", "PublishedRow", "PublishedTable"]
