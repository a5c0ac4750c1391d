"""What people's files and words can look like when they are damaged, and what is made of them.

``python -m tests.fuzz --count 10000`` runs as many cases of each kind and prints the table of
docs/testing.md; `test_fuzz.py` runs some hundred of each. A case follows from its kind and its
number alone: ``python -m tests.fuzz checkpoints --first 123 --count 1`` repeats one.
"""
