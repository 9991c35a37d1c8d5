"""The page of a grid: its claims and their verdicts, tables, and how it was done."""
import math
import os

from study.claims import RULE, find
from study.grids import claims_of, own_flags
from study.interval import interval


def spread(values, digits):
    """'mean ± half of the 95 % interval (n)' of the values that are not None."""
    found = [value for value in values if value is not None]
    mean, half = interval(found)
    error = f" ± {half:.{digits}f}" if half < math.inf else ""
    return f"{mean:.{digits}f}{error} ({len(found)})" if found else "–"


def table(arms, columns, results):
    """Lines of a table: a row for each of {arm: Results} with one of the `columns`."""
    yield "| | " + " | ".join(columns) + " |"
    yield "|---" * (len(columns) + 1) + "|"
    for arm, found in results.items():
        cells = [spread([measure(result) for result in found], digits)
                 for measure, digits in columns.values()]
        if set(cells) != {"–"}:
            yield f"| {arms[arm].name} | " + " | ".join(cells) + " |"


def claim_row(finding):
    """A line of the table of claims."""
    found = [value for value in finding.values if value is not None]
    if not found:
        return (f"| {finding.claim.text} | 0 of {len(finding.values)} | – | – | – | – | "
                f"{finding.verdict} |")
    low, high = finding.mean - finding.half, finding.mean + finding.half
    return (f"| {finding.claim.text} | {len(found)} of {len(finding.values)} | "
            f"{finding.mean:.3f} | {low:.3f} to {high:.3f} | {finding.p:.4f} | "
            f"{finding.corrected:.4f} | {finding.verdict} |")


def page(grid, scale, results, command, drawings, config, hours):
    """The text of reproduction.md or one of the others."""
    s, arms, count = grid.scales[scale], grid.arms, max(map(len, results.values()))
    findings = find(claims_of(grid, scale), results)
    conditions = grid.valid(results) if grid.valid else []
    if not all(met for _, met in conditions):
        findings = [finding._replace(verdict="invalid") for finding in findings]
    of = ("all claims but the first, which is tested alone" if findings[0].claim.family else
          "all claims of this page")
    without = [f"{sum(r.record.genotype is None for r in found)} of {len(found)} "
               f"({arms[arm].name})" for arm, found in results.items()
               if any(r.record.genotype is None for r in found)]
    lines = [
        f"# {grid.title}", "",
        f"Written by `{command}`: seeds {grid.first} to {grid.first + count - 1}. What held, held "
        "*here*, at this scale.", "",
        "| claim | seeds | difference | 95 % interval | p | p, Holm | verdict |",
        "|---|---|---|---|---|---|---|", *map(claim_row, findings), "",
        f"{RULE.format(of=of)}. This was fixed in the code before these runs.", "",
        *(f"- {'Met' if met else '**Not met**'}: {condition}." for condition, met in conditions),
        *[""] * bool(conditions), grid.notes(results), ""]
    lines += grid.further(results) if grid.further else []
    if s.networks and grid.random:
        lines += ["A random network has as many edges as the one it is compared with, no more than "
                  "two into a node, and the same seed.", ""]
    for heading, columns in grid.tables.items():
        rows = [*table(arms, columns, results)]
        if len(rows) > 2:
            lines += [f"## {heading}", "",
                      "Mean ± half of the 95 % interval (number of seeds).", "", *rows, ""]
    lines += [
        "## How it was done", "",
        f"- Searches without a genotype: {', '.join(without) or 'none'}.",
        f"- All searches: `{' '.join(s.search)}`, otherwise the recipe of train_search.py.",
        *(f"- {arms[arm].name}: {'as if with ' * bool(arms[arm].of)}"
          f"`{' '.join(own_flags(grid, scale, arm))}`" for arm in s.arms
          if own_flags(grid, scale, arm))]
    if s.networks:
        lines += [f"- All trainings: `{' '.join(s.train)}`, otherwise the recipe of train_eval.py."]
    lines += [
        *("- " + line for line in grid.how[scale]),
        f"- {hours:.1f} hours of computing, summed over the runs; torch {config['torch']}, Python "
        f"{config['python']}, {config['machine']}, {os.cpu_count()} cores, "
        f"threads of a run: {config['threads']}.", ""]
    for name, (caption, _) in drawings.items():
        lines += [f"![{caption}](figures/{name}.png)", ""]
    return "\n".join(lines)
