"""What is to run: options, stages, what an operation means for one item. It describes, and never runs.

It imports nothing of fstream's but itself.
"""
