"""Workers without threads, processes and loops: one thread does what many would, as a schedule says."""
