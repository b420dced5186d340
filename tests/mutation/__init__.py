"""Change the tables and the core one thing at a time and see whether a test notices: `python -m tests.mutation`.

| file | what |
|---|---|
| `mutant.py` | what a mutant is |
| `of_tables.py` | those of the tables: rows, targets, guards, effects, deadlines, close codes |
| `of_code.py` | those of Python: comparisons, conditions, arithmetic, constants, results, statements |
| `watch.py` | which test looks at which row and line |
| `harness.py` | gives each mutant to the tests that look at it, in a process of its own |
| `page.py` | `docs/mutation.md`, out of `figures.json` and `argued.toml` |
| `guards.toml` | the guards of ten faults: without them the tests of the fault must fail |
"""
