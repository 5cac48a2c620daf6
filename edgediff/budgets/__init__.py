"""Budgets: what a student may cost on its device, and the search for the one that keeps most within that.

`blocks` says what a forward is made of and `measure` times it on a device, which gives a `table`; `costs` predicts any
student of the `space` from it; `kept` says how much of the importance it keeps; `search` and `choice` find the student.
"""
