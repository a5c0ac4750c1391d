"""Hours of one training, killed again and again, beside the same training that nothing happens to.

``python -m tests.soak --hours 2 --folder F`` writes what happened to ``F/record.json``; with
``--page docs/testing.md`` also there. `training` is what is trained, in a process of its own.
"""
