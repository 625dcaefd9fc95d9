"""The conformance suite: cases that every implementation of the operators must pass.

`cases` says what is tried, `data` draws the inputs, `oracle` computes what is right, `implementations` says
on what it is tried, `check` compares.
"""
