"""What side memories share; a library for authors of such methods.

Importing this package imports no torch: the pieces are modules of their own (``kedit_memory.routing``,
``kept``, ``pooling``, ``scope``, ``members`` …).
"""
