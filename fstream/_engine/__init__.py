"""What owns a row of stages and waits: the run, the queues of threads, interrupts.

It imports `_plan` and `_flow` alone, and knows no kind of workers by name.
"""
