"""How long a verb takes on this machine: a few of its units are run, by its own code, and timed.

What is counted is the wall time of a command's work once the interpreter, torch and transformers are imported: getting
ready, loading, every unit, writing and checking what is written.
"""
