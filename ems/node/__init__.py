"""What runs on a node: standard library only, Python 3.8 or newer, no import from the rest of ``ems``.

This folder and ``ems/__init__.py`` are copied to the target (``ROOT/lib/HASH/ems``), so that a run needs
nothing installed.
"""
