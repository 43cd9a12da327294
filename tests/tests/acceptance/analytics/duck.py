"""Holds answers about metrics to what DuckDB counts on the same rows: duck.py EVENTS.ndjson ANSWERS.json

Counts, sums, extremes and rates must be equal; percentiles within 1 %, uniques within 5 % (three standard errors of 1.63 %),
and equal up to 256 of them.
"""

import json
import math
import sys
from fractions import Fraction

import duckdb

events, answers = sys.argv[1], json.load(open(sys.argv[2]))
db = duckdb.connect()
db.execute("SET TimeZone = 'UTC'")
db.execute(
    f"""CREATE TABLE e AS SELECT * FROM read_json('{events}', format = 'newline_delimited', columns = {{
        id: 'VARCHAR', time: 'TIMESTAMPTZ', "user": 'VARCHAR', name: 'VARCHAR', section: 'VARCHAR', size: 'DECIMAL(18, 6)', installed: 'DECIMAL(18, 6)'}})"""
)
SIZE = "size IS NOT NULL"
METRICS = {
    "packages": ("count(*)", "true"),
    "bytes": ("sum(size)", SIZE),
    "installed": ("sum(installed), count(installed)", "installed IS NOT NULL"),
    "smallest": ("min(size)", SIZE),
    "largest": ("max(size)", SIZE),
    "libraries": ("count(*) FILTER (WHERE section IN ('libs', 'libdevel', 'oldlibs')), count(*)", "true"),
    "sizes": ("list_sort(list(size))", SIZE),
    "maintainers": ('count(DISTINCT "user")', '"user" IS NOT NULL'),
    "names": ("count(DISTINCT name)", "name IS NOT NULL"),
}
compared, worst = 0, {"percentiles": 0.0, "uniques": 0.0}


def hold(metric, numbers, truth, where):
    global compared
    compared += 1
    value = numbers["value"]
    if metric in ("installed", "libraries"):
        right = float(Fraction(truth[0]) / Fraction(truth[1]))
        assert math.isclose(value, right, rel_tol=1e-12), (where, value, right)
    elif metric == "sizes":
        for name, percent in (("p50", 50), ("p90", 90), ("p95", 95), ("p99", 99)):
            # By the nearest rank: of n values in order the one at ceil(share * n).
            read, right = numbers["percentiles"][name], float(truth[0][max(-(-percent * len(truth[0]) // 100), 1) - 1])
            error = abs(read - right) / right
            worst["percentiles"] = max(worst["percentiles"], error)
            assert error <= 0.010001, (where, name, read, right)
    elif metric in ("maintainers", "names"):
        error = abs(value - truth[0]) / truth[0]
        worst["uniques"] = max(worst["uniques"], error)
        assert error == 0 if truth[0] <= 256 else error <= 0.05, (where, value, truth[0])
    else:
        assert Fraction(str(value)) == Fraction(truth[0]), (where, value, truth[0])


for metric, (what, where) in METRICS.items():
    whole = answers[f"{metric} whole"]
    label = "section" if whole["group_by"] else "NULL"
    truth = {row[0]: row[1:] for row in db.execute(f"SELECT {label}, {what} FROM e WHERE {where} GROUP BY 1").fetchall()}
    shown = {group["labels"].get("section"): group for group in whole["groups"] if not group["other"]}
    assert len(shown) == min(len(truth), 50), (metric, len(shown), len(truth))
    for section, group in shown.items():
        hold(metric, group["total"], truth[section], f"{metric} {section}")
    days = answers[f"{metric} days"]
    local = "strftime(timezone('Asia/Kathmandu', time), '%Y-%m-%d')"
    truth = {row[0]: row[1:] for row in db.execute(f"SELECT {local}, {what} FROM e WHERE {where} GROUP BY 1").fetchall()}
    points = [point for point in days["groups"][0]["points"] if point["count"] > 0]
    assert len(points) == len(truth), (metric, len(points), len(truth))
    for point in points:
        # Midnight in Kathmandu is 18:15 UTC of the day before.
        day = db.execute(f"SELECT strftime(timezone('Asia/Kathmandu', '{point['at']}'::TIMESTAMPTZ), '%Y-%m-%d')").fetchone()[0]
        hold(metric, point, truth[day], f"{metric} {day}")
print(json.dumps({"compared": compared, "worst": worst}))
