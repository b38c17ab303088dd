"""Makes tasks from real packages: bugs that the package's own tests find.

```
packages -> mutate -> validate -> statements -> build
sdist       one bug   runs of     what fails,   SWE-bench rows
            each      the suite   in words      in balanced splits
```

Everything runs offline, except for fetching pinned source distributions. The same seed makes the same rows.
"""
