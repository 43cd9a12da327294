"""Judges a file of any format by what the database says it should hold: another program's reader, cell by cell.

    formats.py FORMAT FILE DUMP COLUMN...

FORMAT is json, jsonl, markdown or xlsx (csv has judge.py); DUMP and COLUMNs are as for judge.py, with two more kinds:
NAME:number and NAME:date. Readers: Python's json, markdown-it-py, openpyxl. Nothing of the product is used.
"""

import json
import os
import re
import sys
from decimal import Decimal

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from judge import exactly, moment, of_copy  # noqa: E402


class Number(str):
    """A number as it is written."""


def objects(rows, names):
    for row in rows:
        if list(row) != list(names):
            sys.exit(f"a row has {list(row)}, not {list(names)}")
        yield list(row.values())


def read_json(file, names):
    with open(file, encoding="utf-8") as opened:
        yield from objects(json.load(opened, parse_int=Number, parse_float=Number), names)


def read_jsonl(file, names):
    with open(file, encoding="utf-8", newline="\n") as opened:
        yield from objects((json.loads(line, parse_int=Number, parse_float=Number) for line in opened), names)


def read_markdown(file, names):
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark").enable("table")
    with open(file, encoding="utf-8", newline="\n") as opened:
        lines = opened.read().split("\n")
    if lines.pop() != "":
        sys.exit("the last line has no end")
    head, rows = lines[:2], lines[2:]
    # A table's row is a line, so a thousand at a time under the same head are the same table; all at once need gigabytes.
    for start in range(0, max(len(rows), 1), 1000):
        cells, row, count = [], [], 0
        for token in parser.parse("\n".join(head + rows[start : start + 1000]) + "\n"):
            if token.type == "inline":
                kinds = [child.type for child in token.children]
                if kinds == ["em_open", "text", "em_close"] and token.children[1].content == "NULL":
                    row.append(None)
                elif set(kinds) <= {"text"}:
                    row.append("".join(child.content for child in token.children))
                else:
                    sys.exit(f"a cell is more than text: {token.content!r:.200} {kinds}")
            elif token.type == "tr_close":
                cells.append(row)
                row = []
            elif token.type == "table_open":
                count += 1
            elif not token.type.startswith(("table", "thead", "tbody", "tr", "th", "td")):
                sys.exit(f"not only a table: {token.type} in line {start + token.map[0] if token.map else '?'}")
        if count != 1 or cells[0] != list(names):
            sys.exit(f"{count} tables, headed {cells[:1]}")
        if len(cells) - 1 != len(rows[start : start + 1000]):
            sys.exit(f"{len(cells) - 1} rows are read of {len(rows[start : start + 1000])} lines")
        yield from cells[1:]


def read_xlsx(file, names):
    import datetime

    import openpyxl

    def value(cell):
        if isinstance(cell, bool):
            return cell
        if isinstance(cell, datetime.datetime):
            return cell.date().isoformat()
        if isinstance(cell, (int, float)):
            return Number(repr(cell))
        return cell if cell is None else re.sub("_x([0-9A-Fa-f]{4})_", lambda match: chr(int(match[1], 16)), cell)

    # A file object: by name it takes only files that end in .xlsx.
    for sheet in openpyxl.load_workbook(open(file, "rb"), read_only=True):
        rows = sheet.iter_rows(values_only=True)
        if list(next(rows)) != list(names):
            sys.exit("the sheet's header is another")
        for row in rows:
            row = [value(cell) for cell in row]
            # What a cell does not hold continues behind the last column.
            cells, more = row[: len(names)], iter(row[len(names) :])
            for said in more:
                if said is not None:
                    name, count = re.fullmatch("(.*) continued in ([0-9]+) cells?", said).groups()
                    cells[names.index(name)] += "".join(next(more) for _ in range(int(count)))
            # The reader leaves empty cells at a row's end out.
            yield cells + [None] * (len(names) - len(cells))


def agrees(form, kind, cell, dumped):
    if kind == "json" and form in ("json", "jsonl") and dumped is not None:
        # It is JSON in JSON, where its null and NULL are one.
        return plain(cell) == exactly(dumped)
    if cell is None or dumped is None:
        return cell is dumped
    if kind == "json":
        return exactly(cell) == exactly(dumped)
    if isinstance(cell, bool):
        cell = "true" if cell else "false"
    if kind in ("time", "date"):
        return cell == moment(dumped)
    if isinstance(cell, Number):
        return kind == "number" and Decimal(cell) == Decimal(dumped)
    return cell == dumped


def plain(value):
    """The same with numbers as plain texts."""
    if isinstance(value, dict):
        return {name: plain(member) for name, member in value.items()}
    return [plain(member) for member in value] if isinstance(value, list) else str(value) if isinstance(value, Number) else value


READERS = {"json": read_json, "jsonl": read_jsonl, "markdown": read_markdown, "xlsx": read_xlsx}


def main(form, file, dump, *columns):
    names, kinds = zip(*[(name, kind or "text") for name, _, kind in (column.partition(":") for column in columns)])
    wrong = count = 0
    with open(dump, encoding="utf-8", newline="\n") as opened:
        rows = READERS[form](file, names)
        for count, line in enumerate(opened, 1):
            row = next(rows, None)
            if row is None:
                sys.exit(f"the file has {count - 1} rows, the table more")
            for name, kind, cell, field in zip(names, kinds, row, line.removesuffix("\n").split("\t"), strict=True):
                dumped = of_copy(field)
                if not agrees(form, kind, cell, dumped):
                    wrong += 1
                    if wrong <= 20:
                        print(f"row {count}, {name}: the file says {cell!r:.200}, the table {dumped!r:.200}", file=sys.stderr)
        if next(rows, None) is not None:
            sys.exit(f"the file has more than the table's {count} rows")
    if wrong:
        sys.exit(f"{wrong} cells differ")
    print(json.dumps({"rows": count, "cells": count * len(names)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
