"""Faults of real machines, repeated.

Kills, full disks, damaged files, lost hosts and hostile records. `python -m benchmarks.faults --help`.
"""
