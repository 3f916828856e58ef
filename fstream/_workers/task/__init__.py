"""Worker tasks, and all else that lives on an event loop: queues, feeders of async sources, async consumers."""
