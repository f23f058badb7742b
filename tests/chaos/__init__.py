"""Chaos: the real service under load while its processes die, freeze and lose Redis; then a checker that looks from outside.

`make chaos RUNS=1000 SEED=7` runs it; the seed decides every call, fault and answer of a receiver. Nothing here imports the
service: it is started as its operators start it, and judged by what it answered, what it called and what lies in its file.
"""
