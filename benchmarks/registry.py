"""Every row, by name."""

from benchmarks import (
    cluster,
    efficiency,
    free_threaded,
    http,
    memory,
    payload,
    per_item,
    pool,
    seeing,
    stages,
    startup,
    waiting,
)
from benchmarks.rows import Row

ROWS = (
    *per_item.ROWS,
    *efficiency.ROWS,
    *free_threaded.ROWS,
    *waiting.ROWS,
    *stages.ROWS,
    *seeing.ROWS,
    *payload.ROWS,
    *cluster.ROWS,
    *http.ROWS,
    *memory.ROWS,
    *pool.ROWS,
    *startup.ROWS,
)
SWEEP = tuple(row for row in ROWS if row.name.startswith("efficiency")) + efficiency.BETWEEN


def find(name: str) -> Row:
    return next(row for row in (*ROWS, *SWEEP) if row.name == name)
