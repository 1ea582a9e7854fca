"""What was tried against the gateway, how often, and what was lost: `python -m tests.hardening`.

Each trial counts what it tried and writes down what was not as it must be. The command runs them at
their full length and prints one table; `test_hardening` runs a short version of each.
"""
