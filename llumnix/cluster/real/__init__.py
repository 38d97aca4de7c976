"""The cluster in wall-clock time: llumlets around real engines, a front end, and the scheduler that both worlds share.

Only actors.py knows Ray; everything else is threads and plain calls, which is also how tests run it.
"""
