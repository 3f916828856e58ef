"""What decides: what to take, how much, what is next, whether there is room. No lock, no thread, no clock.

The caller holds the run's lock and brings the time. It imports nothing of fstream's but itself.
"""
