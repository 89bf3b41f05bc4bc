"""A layer around a recurrence that a kernel computes: what GPU backends share.

The products over all T·B rows before and after it, and the memory between, are the same for all of them; what computes
the recurrence is handed in.
"""
