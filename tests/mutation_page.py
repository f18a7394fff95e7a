"""The page of the mutation tests, from their record: how many changes were caught, by package, and each that was not."""

from collections import Counter

HEAD = """# Changes that the tests must notice

Of the code of losses, objectives and training {total} places were drawn by a seed, and one operator, comparison, number or
condition was changed in each. The tests of that file then have to fail. {caught} changes were caught. {same} change
nothing that can be read; the reasons stand below. {missed} that change a value were missed: **{rate:.1f} %** of those that
change a value are caught. One command changes, asks and writes this page:

```
make mutation
```

- Date: {date}
- Software: {software}
- Changes by cosmic-ray; annotations are left alone, and of several changes of one place one is drawn
- Asked of each: `tests/test_PACKAGE_FILE*.py`, the examples in its docstrings, the tests that `tests/mutation.py` names
  beside, and of a loss the laws of all losses
{history}
| package | changed | caught | change no value | missed |
| --- | --- | --- | --- | --- |
"""


def page(record: dict) -> str:
    """The page as Markdown.

    A survivor of the record has a ``"why"``, and ``"changes"``: whether a value changes by it. Lines under ``"history"`` say
    what earlier runs found.
    """
    mutants = record["mutants"]
    survivors = [one for one in mutants if not one["caught"]]
    for one in survivors:
        if not {"why", "changes"} <= one.keys():
            raise ValueError(
                f"{one['file']} {one['change']} survived; the record must say why, and whether it changes a value."
            )
    same = [one for one in survivors if not one["changes"]]
    missed = [one for one in survivors if one["changes"]]
    caught = len(mutants) - len(survivors)
    lines = [
        HEAD.format(
            total=len(mutants),
            caught=caught,
            same=len(same),
            missed=len(missed),
            rate=100 * caught / (caught + len(missed)),
            history="".join(f"- {line}\n" for line in record.get("history", ())),
            **record["about"],
        ).rstrip("\n")
    ]
    counts = [Counter(one["file"].split("/")[0] for one in each) for each in (mutants, same, missed)]
    for package in sorted(counts[0]):
        total, equal, lost = (count[package] for count in counts)
        lines.append(f"| `{package}` | {total} | {total - equal - lost} | {equal} | {lost} |")
    for title, which in (("Missed", missed), ("Changes of no value", same)):
        if which:
            lines += ["", f"## {title}"]
        for one in sorted(which, key=lambda one: one["file"]):
            lines += ["", f"`kdjax/{one['file']}`: {one['why']}", "", "```diff", *one["change"], "```"]
    return "\n".join(lines) + "\n"
