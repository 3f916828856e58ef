"""fstream beside its peers and beside hand-written floors, in one run on one machine: `python -m benchmarks`.

Layout:
    __main__.py      the command line
    harness.py       interleaved rounds over one process per contender; medians, table, JSON
    child.py         the process of one contender
    rows.py          what a row of the table is; how work is timed
    adapters.py      fstream and its peers behind one signature
    floors.py        the hand-written rivals
    per_item.py      the cost of one item that costs nothing
    efficiency.py    CPU-bound items on two processes: by item cost, skewed, three stages
    waiting.py       items that sleep
    payload.py       arrays of 8 MB
    http.py          requests to a local server
    memory.py        how far a stage runs ahead of a slow consumer
    pool.py          many streams at once on one pool of processes
    startup.py       import and the first output of a warm pipeline
    plot.py          efficiency against item cost, as an SVG
    profile_item.py  where the microseconds of one item's way go (a script of its own)
"""
