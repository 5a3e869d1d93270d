"""The report of the accuracy benchmark: its table in, a page of the documentation out.

    uv run python benchmarks/report.py --table benchmarks/results/accuracy.csv

Writes ``docs/accuracy.md``, ``docs/_static/accuracy.csv`` and ``docs/_static/accuracy_*.png``.
Every statement on the page is derived from the table; explanations of failures are written by hand
in ``benchmarks/report_notes.md``, under the data set's name, and included where they belong.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import report_figures
from natsort import natsorted
from report_numbers import (
    BASELINES,
    NOT_MEASURED,
    Comparison,
    compare,
    compare_all,
    failing,
    load,
    on_shared_seeds,
    summarise,
    way_to_ceiling,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

HERE = Path(__file__).resolve().parent
_JUDGED = ["ahead", "level", "behind"]

# -- targets ------------------------------------------------------------------------------------

_TARGETS = [
    ("simulated default", "seen", "ite_corr", "≥", 0.95),
    ("simulated default", "held out", "ite_corr", "≥", 0.93),
    ("simulated default", "seen", "r2_delta", "≥", 0.96),
    ("simulated default", "held out", "r2_delta", "≥", 0.88),
    ("kang pairs", "held out", "r2_delta", "≥", 0.70),
    ("kang pairs", "held out", "pearson_delta", "≥", 0.84),
]
_LABELS = {
    "ite_corr": "individual-effect correlation",
    "mse": "MSE per cell",
    "r2_delta": "ΔR²",
    "pearson_delta": "Δ-Pearson",
    "rmse": "RMSE of means",
}


def targets(scores: pd.DataFrame, numbers: pd.DataFrame) -> list[list[str]]:
    """Rows of the table of targets: what, wanted, measured, met or not."""
    rows = []
    for dataset, pair, metric, relation, bound in _TARGETS:
        label = f"{dataset} ({pair}): {_LABELS[metric]}"
        found = _pick(numbers, dataset=dataset, pair=pair, method="VCI", metric=metric)
        value = found["mean"].iloc[0] if len(found) else np.nan
        met = value >= bound if relation == "≥" else value <= bound
        rows.append([label, f"{relation} {bound:g}", _spread(found), _met(value, met)])
    rows.append(_worst_stratum(scores))
    for dataset in [d for d in scores["dataset"].cat.categories if d.startswith("mcfaline")]:
        group = scores[scores["dataset"] == dataset]
        found = compare(group, "rmse", others=["no change"])
        text = NOT_MEASURED
        if found:
            text = f"{_number(found.value)} against {_number(found.other_value)}; " + _gap(found)
        met = found is not None and found.verdict in ("ahead", "level")
        rows.append(
            [
                f"{dataset}: RMSE of means, beside no change",
                "not behind",
                text,
                _met(found.error if found else np.nan, met),
            ]
        )
    return rows


def _worst_stratum(scores: pd.DataFrame) -> list[str]:
    label = ["kang pairs (held out): ΔR² less that of additive, worst cell type", "≥ -0.05"]
    group = scores[scores["dataset"] == "kang pairs"]
    wide = group.pivot_table(index=["stratum", "seed"], columns="method", values="r2_delta")
    if not {"VCI", "additive"} <= set(wide):
        return [*label, NOT_MEASURED, ""]
    gap = (wide["VCI"] - wide["additive"]).dropna().groupby("stratum")
    worst = gap.mean().idxmin()
    value, spread = gap.mean()[worst], gap.std()[worst]
    return [*label, f"{_number(value)} ± {_number(spread)} ({worst})", _met(value, value >= -0.05)]


def _met(value: float, met: bool) -> str:
    return "" if not np.isfinite(value) else "met" if met else "**NOT met**"


# -- text ---------------------------------------------------------------------------------------


def _number(value: float) -> str:
    if not np.isfinite(value):
        return "–"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3f}"


def _pick(table: pd.DataFrame, **values: str) -> pd.DataFrame:
    keep = np.ones(len(table), dtype=bool)
    for column, value in values.items():
        keep &= (table[column] == value).to_numpy()
    return table[keep]


def _spread(found: pd.DataFrame) -> str:
    """``mean ± sd``; without ± where there is one seed."""
    if found.empty:
        return NOT_MEASURED
    mean, sd = found["mean"].iloc[0], found["sd_between_seeds"].iloc[0]
    return _number(mean) + (f" ± {_number(sd)}" if np.isfinite(sd) else "")


def _gap(found: Comparison) -> str:
    error = f" ± {_number(found.error)}" if np.isfinite(found.error) else ""
    return f"{found.advantage:+.3f}{error}"


def _bold(verdict: str) -> str:
    return f"**{verdict}**" if verdict == "behind" else verdict


def markdown(header: list[str], rows: Iterable[Iterable[str]]) -> str:
    """Write a table."""
    lines = [header, ["---"] * len(header), *rows]
    clean = [[str(cell).replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in clean)


def ceiling_table(found: pd.DataFrame) -> str:
    """How much of the way from the additive baseline to the reproducibility of real cells."""
    rows = []
    for line in found.to_dict("records"):
        way, gap = line["VCI"] - line["additive"], line["ceiling"] - line["additive"]
        # Where the ceiling is no higher than the baseline, there is no way to go.
        share = f"{way / gap:.0%}" if gap > 0.02 else "–"
        values = [_number(line[name]) for name in ("additive", "VCI", "ceiling")]
        rows.append([line["dataset"], line["pair"], *values, share])
    header = ["data set", "pairs", "additive", "VCI", "half of the real cells", "of the way"]
    return markdown(header, rows) if rows else "The table holds no such comparison."


def regime_table(compared: pd.DataFrame, metrics: tuple[str, ...]) -> str:
    """Model and best baseline on some metrics, one line per data set and kind of pair."""
    header, rows = ["data set", "pairs"], []
    for metric in metrics:
        header += [f"{_LABELS[metric]}: VCI", "best baseline", "advantage", "verdict"]
    for line in compared.to_dict("records"):
        if not any(line[metric] for metric in metrics):
            continue
        row = [line["dataset"], line["pair"]]
        for found in (line[metric] for metric in metrics):
            if found is None:
                row += ["–"] * 4
                continue
            other = f"{_number(found.other_value)} ({found.other})"
            row += [_number(found.value), other, _gap(found), _bold(found.verdict)]
        rows.append(row)
    return markdown(header, rows) if rows else "The table holds no such comparison."


def method_table(scores: pd.DataFrame, methods: list[str]) -> str:
    """Methods beside the model on the data sets and seeds for which they were run."""
    scores = on_shared_seeds(scores, methods)
    numbers = summarise(scores)
    if numbers.empty:
        return "The table holds none."
    metrics = ["ite_corr", "mse", "r2_delta", "rmse"]
    header = ["data set", "pairs", "method", *(_LABELS[m] for m in metrics)]
    header += ["RMSE: advantage over VCI", "seeds", "s per fit"]
    rows = []
    extra = numbers[numbers["method"].isin(methods)]
    for (dataset, pair), _ in extra.groupby(["dataset", "pair"], sort=False):
        group = _pick(scores, dataset=dataset, pair=pair)
        for method in ["VCI", *methods]:
            mine = _pick(numbers, dataset=dataset, pair=pair, method=method)
            if mine.empty:
                continue
            values = [_pick(mine, metric=m) for m in metrics]
            found = None if method == "VCI" else compare(group, "rmse", method, ["VCI"])
            rows.append(
                [
                    dataset,
                    pair,
                    method,
                    *("" if v.empty else _spread(v) for v in values),
                    _gap(found) if found else "",
                    str(mine["n_seeds"].max()),
                    f"{mine['seconds_per_case'].iloc[0]:.0f}",
                ]
            )
    return markdown(header, rows)


def plain_summary(compared: pd.DataFrame, notes: dict[str, str]) -> str:
    """Say what the model is good for, where a mean is enough, and where it fails."""
    parts = ["### What the model is good for", ""]
    kinds = {
        "real": "real cells",
        "planted": "real cells with planted effects",
        "simulated": "simulated cells",
    }
    for kind, name in kinds.items():
        own = compared[compared["kind"] == kind]
        truth = own[own["individuals"].isin(_JUDGED)]
        ahead = truth[truth["individuals"] == "ahead"]
        if len(truth):
            parts.append(
                f"- **Single cells, {name}.** VCI is ahead of the best baseline in {len(ahead)} "
                f"of {len(truth)} comparisons (data set and kind of pair)"
                + (f": {_names(ahead, truth)}." if len(ahead) else ".")
                + _range(ahead)
            )
        judged = own[own["means"].isin(_JUDGED)]
        good, behind = (judged[judged["means"] == verdict] for verdict in ("ahead", "behind"))
        if len(judged):
            parts.append(
                f"- **Means, {name}.** Ahead in {len(good)}, behind in {len(behind)} of "
                f"{len(judged)}" + (f"; ahead: {_names(good, judged)}." if len(good) else ".")
            )
    enough = compared[compared["means"].isin(["level", "behind"])]
    parts += ["", "### Where a mean is enough", ""]
    if len(enough):
        parts.append(
            "If only the mean of a population is asked for, a baseline does as well (VCI level) "
            "or better (VCI behind), in a fraction of the time:\n"
        )
        best = enough["rmse"].map(lambda found: found.other)
        for (verdict, other), lines in enough.groupby(["means", best], sort=True):
            parts.append(f"- {verdict}, {other}: {_names(lines)}.")
    else:
        parts.append("In no comparison of the table.")
    parts += ["", "### What the model is not good for", "", _failures(compared, notes)]
    left = compared[compared["means"] == "not judged"]
    if len(left):
        parts += ["", f"Fewer than three seeds or pairs, not judged: {_names(left)}."]
    return "\n".join(parts)


def _names(lines: pd.DataFrame, of: pd.DataFrame | None = None) -> str:
    """Names of data sets with the kinds of pair concerned; of most of many, the exceptions."""
    if of is not None and len(lines) > 4:
        rest = of.drop(lines.index)
        if rest.empty:
            return "all of them"
        if len(rest) < len(lines):
            return f"all but {_names(rest)}"
    kinds = lines.groupby("dataset", sort=False, observed=True)["pair"].agg(list)
    return ", ".join(f"{name} ({', '.join(pairs)})" for name, pairs in kinds.items())


def _range(lines: pd.DataFrame) -> str:
    found = [c for c in lines["ite_corr"] if c is not None]
    if not found:
        return ""
    mine, best = ([getattr(c, name) for c in found] for name in ("value", "other_value"))
    return (
        f" Its correlation with the true individual effects is {min(mine):.2f}–{max(mine):.2f} "
        f"there; the best baseline's is {min(best):.2f}–{max(best):.2f}."
    )


def _failures(compared: pd.DataFrame, notes: dict[str, str]) -> str:
    lines = failing(compared)
    if lines.empty:
        return "No comparison is behind on means or not ahead on known individuals."
    parts = [
        "Behind the best baseline on means by more than two standard errors, or not ahead of it "
        "on single cells although their truth is known:"
    ]
    for dataset, group in lines.groupby("dataset", sort=False, observed=True):
        parts += ["", f"#### {dataset}", ""]
        for line in group.to_dict("records"):
            if line["means"] == "behind":
                parts.append(_failure(line["pair"], "means behind", "rmse", line["rmse"]))
            if line["individuals"] in ("level", "behind"):
                metric = "ite_corr" if line["ite_corr"] else "mse"
                says = f"single cells {line['individuals']}"
                parts.append(_failure(line["pair"], says, metric, line[metric]))
        parts += ["", notes.get(dataset, "*Not explained yet.*")]
    return "\n".join(parts)


def _failure(pair: str, says: str, metric: str, found: Comparison) -> str:
    return (
        f"- {pair}: {says} — {_LABELS[metric]} {_number(found.value)}, {found.other} "
        f"{_number(found.other_value)}, advantage {_gap(found)}"
    )


def read_notes(path: Path) -> dict[str, str]:
    """Explanations by data set: the text under each ``## data set``."""
    if not path.exists():
        return {}
    pieces = re.split(r"^## +(.+)$", path.read_text(), flags=re.MULTILINE)
    found = dict(zip(map(str.strip, pieces[1::2]), map(str.strip, pieces[2::2]), strict=True))
    return {name: text for name, text in found.items() if text}


def error_table(errors: pd.DataFrame) -> str:
    """List what failed and why."""
    if errors.empty:
        return "Nothing failed."
    counted = errors.groupby(["dataset", "method", "error"], sort=True)["seed"]
    rows = [[*keys, ", ".join(map(str, sorted(set(seeds))))] for keys, seeds in counted]
    return markdown(["data set", "method", "reason", "seeds"], rows)


def _provenance(table: pd.DataFrame) -> str:
    seeds = sorted(table["seed"].unique())
    versions = sorted(table["versions"].dropna().unique()) if "versions" in table else []
    lines = [f"- Seeds: {', '.join(map(str, seeds))}."]
    for text in versions:
        found = json.loads(text)
        lines.append("- Versions: " + ", ".join(f"{k} {v}" for k, v in found.items()) + ".")
    if "commit" in table:
        for commit, methods in table.groupby("commit")["method"].unique().items():
            names = ", ".join(natsorted(methods))
            lines.append(f"- Code {commit}: {names}.")
        n_commits = table.groupby("method", observed=True)["commit"].nunique()
        mixed = natsorted(n_commits.index[n_commits > 1])
        if mixed:
            lines.append(f"- **Rows of different code are mixed**: {', '.join(mixed)}.")
    return "\n".join(lines)


def page(
    scores: pd.DataFrame, errors: pd.DataFrame, figures: dict[str, str], notes: dict[str, str]
) -> str:
    """Build the whole page."""
    numbers, compared = summarise(scores), compare_all(scores)
    simulated = compared["kind"] == "simulated"
    ablations = natsorted(m for m in scores["method"].unique() if m.startswith("VCI "))
    known = [*BASELINES, "VCI", *ablations]
    peers = sorted(m for m in scores["method"].unique() if m not in known)
    picture = {name: f"![{text}](_static/{name}.png)" for name, text in figures.items()}
    text = (HERE / "report_template.md").read_text()
    fields = {
        "provenance": _provenance(pd.concat([scores, errors])),
        "summary": plain_summary(compared, notes),
        "targets": markdown(["target", "wanted", "measured", ""], targets(scores, numbers)),
        "means_real": regime_table(compared[~simulated], ("rmse", "r2_delta")),
        "means_simulated": regime_table(compared[simulated], ("rmse", "r2_delta")),
        "individuals_planted": regime_table(compared[~simulated], ("ite_corr",)),
        "individuals_simulated": regime_table(compared[simulated], ("ite_corr", "mse")),
        "ceiling": ceiling_table(way_to_ceiling(scores)),
        "ablations": method_table(scores, ablations),
        "peers": method_table(scores, peers) if peers else "",
        "errors": error_table(errors),
    }
    fields |= {
        f"figure_{part}": picture.get(f"accuracy_{part}", "")
        for part in ("means", "individuals", "ablations", "peers")
    }
    for name, value in fields.items():
        text = text.replace("{{" + name + "}}", value)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", type=Path, default=HERE / "results" / "accuracy.csv")
    parser.add_argument("--docs", type=Path, default=HERE.parent / "docs")
    parser.add_argument("--notes", type=Path, default=HERE / "report_notes.md")
    chosen = parser.parse_args(arguments)
    static = chosen.docs / "_static"
    static.mkdir(parents=True, exist_ok=True)
    scores, errors = load(chosen.table)
    numbers = summarise(scores)
    numbers.to_csv(static / "accuracy.csv", index=False, float_format="%.4g")
    figures = report_figures.draw_all(scores, static)
    notes = read_notes(chosen.notes)
    (chosen.docs / "accuracy.md").write_text(page(scores, errors, figures, notes))
    failed = set(failing(compare_all(scores))["dataset"])
    for name in sorted(failed - set(notes)):
        print(f"fails, and {chosen.notes.name} does not say why: {name}", file=sys.stderr)
    for name in sorted(set(notes) - failed):
        print(f"does not fail, and {chosen.notes.name} explains it: {name}", file=sys.stderr)


if __name__ == "__main__":
    main()
