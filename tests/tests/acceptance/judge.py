"""Judges a CSV file by what the database says it should hold: another program's reader, cell by cell.

    judge.py CSV DUMP COLUMN...

CSV is the exported file. DUMP is what `COPY (SELECT ...) TO STDOUT` wrote for the same rows in the same order, in COPY's text
format, with DateStyle ISO and TimeZone UTC. A COLUMN is NAME, NAME:time or NAME:json, in the file's order: a `time` is dumped
as Postgres writes it and stands in the file as RFC 3339, or ISO 8601 where RFC 3339 ends; a `json` is compared as JSON.

Read twice: by Python's csv, which can't tell NULL from the empty string, and by the grammar of RFC 4180, strictly, where an
empty field without quotes is NULL and one with them is the empty string.
"""

import csv
import json
import re
import sys

FIELD = re.compile(r'("[^"]*(?:""[^"]*)*"|[^",\r\n]*)(,|\r\n)')
ESCAPE = re.compile(r"\\(.)", re.DOTALL)
ESCAPED = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
ESCAPED_FORMULA = re.compile("'+[=+\\-@\\t\\r\\n\\0＝＋－＠]")
MOMENT = re.compile(r"(\d+)-(\d\d-\d\d)(?: (\d\d:\d\d:\d\d(?:\.\d+)?)(\+00)?)?( BC)?")


def by_grammar(text):
    """Rows of cells; None for NULL. RFC 4180 section 2, with a line's end after the last row."""
    rows, row, end = [], [], 0
    for match in FIELD.finditer(text):
        if match.start() != end:
            break
        end = match.end()
        field, after = match.groups()
        row.append(field[1:-1].replace('""', '"') if field.startswith('"') else field or None)
        if after == "\r\n":
            rows.append(row)
            row = []
    if end != len(text) or row:
        sys.exit(f"not RFC 4180 from character {end} on: {text[end:end + 80]!r}")
    return rows


def of_copy(field):
    """A field of COPY's text format; None for NULL."""
    if field == r"\N":
        return None
    if "\\" not in field:
        return field
    return ESCAPE.sub(lambda match: ESCAPED.get(match[1], match[1]), field)


def moment(text):
    """What a date or time of Postgres is in RFC 3339, or in ISO 8601 with expanded years."""
    match = MOMENT.fullmatch(text)
    if not match:
        return text
    year, day, time, zone, before_christ = match.groups()
    number = 1 - int(year) if before_christ else int(year)
    shown = f"{number:04d}" if 0 <= number <= 9999 else f"{number:+07d}"
    return f"{shown}-{day}" + (f"T{time}" if time else "") + ("Z" if zone else "")


def exactly(text):
    """JSON with its numbers as they are written."""
    return json.loads(text, parse_float=str, parse_int=str)


def agrees(kind, cell, dumped):
    if cell is None or dumped is None:
        return cell is dumped
    # Formulas are escaped unless an export was asked not to: one apostrophe comes off.
    if ESCAPED_FORMULA.match(cell):
        cell = cell[1:]
    if kind == "time":
        return cell == moment(dumped)
    if kind == "json":
        return exactly(cell) == exactly(dumped)
    return cell == dumped


def main(file, dump, *columns):
    csv.field_size_limit(1 << 30)
    names, kinds = zip(*[(name, kind or "text") for name, _, kind in (column.partition(":") for column in columns)])
    with open(file, encoding="utf-8", newline="") as opened:
        text = opened.read()
    rows = by_grammar(text)
    with open(file, encoding="utf-8", newline="") as opened:
        by_csv = list(csv.reader(opened, strict=True))
    if by_csv != [[cell or "" for cell in row] for row in rows]:
        sys.exit("Python's csv reads other cells than the grammar")
    if not rows or tuple(rows[0]) != names:
        sys.exit(f"the header is {rows[:1]}, not {names}")
    with open(dump, encoding="utf-8", newline="\n") as opened:
        expected = [line.removesuffix("\n").split("\t") for line in opened]
    if len(rows) - 1 != len(expected):
        sys.exit(f"the file has {len(rows) - 1} rows, the table {len(expected)}")
    wrong = 0
    for number, (row, fields) in enumerate(zip(rows[1:], expected), 1):
        if len(row) != len(names):
            sys.exit(f"row {number} has {len(row)} cells, not {len(names)}")
        for name, kind, cell, field in zip(names, kinds, row, fields, strict=True):
            dumped = of_copy(field)
            if not agrees(kind, cell, dumped):
                wrong += 1
                if wrong <= 20:
                    print(f"row {number}, {name}: the file says {cell!r:.200}, the table {dumped!r:.200}", file=sys.stderr)
    if wrong:
        sys.exit(f"{wrong} cells differ")
    print(json.dumps({"rows": len(expected), "cells": len(expected) * len(names), "nulls": sum(row.count(None) for row in rows[1:]), "empty": sum(row.count("") for row in rows[1:])}))


if __name__ == "__main__":
    main(*sys.argv[1:])
