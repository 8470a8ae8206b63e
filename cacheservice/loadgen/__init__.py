"""The load generator behind `cacheservice bench`: what is asked for, when, from which processes, and how long
that takes.
"""
