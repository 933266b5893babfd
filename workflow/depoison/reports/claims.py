"""Verdicts on a paper's claims: what our cells and what the paper's printed numbers say, as Markdown and JSON."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from depoison.files import json_text, sha256_of
from depoison.papers.claims import Chosen, Claim, Claims, Condition, Statistic, has_claims, read_claims
from depoison.papers.grid import Place, percent
from depoison.papers.tables import CLAIMS, DEFAULT_PAPER, DEFAULT_TRACK, folder_of
from depoison.plan.metrics import MINUS, Metric, decimal
from depoison.plan.plan import Plan
from depoison.plan.specs import fingerprint
from depoison.reports.figures.epochs import course
from depoison.reports.numbers import MISSING, Missing, Reader, mean_and_interval, signed
from depoison.reports.tables import command, escape_markdown, listed, untaken_if

HOLDS, FAILS, UNCERTAIN = "holds", "does not hold", "uncertain"
UNTESTABLE, LACKING, UNPRINTED = "not testable here", "not enough cells", "not printed"
LAST = (UNTESTABLE, LACKING)
"""These stand below the verdicts, in this order."""
FEW = 3
"""Up to so many missing cells are asked for by name, more by their table or figure."""

Numbers = list[tuple[dict[str, Any], float]]
"""Numbers, each with the keys that say what it is of."""

FUNCTIONS: dict[str, Callable[[Sequence[float]], float]] = {
    "mean": statistics.fmean,
    "median": statistics.median,
    "min": min,
    "max": max,
    "range": lambda values: max(values) - min(values),
    "standard-deviation": statistics.stdev,
}


@dataclass(frozen=True)
class Outcome:
    """What a claim's rule gives.

    Attributes:
        state: HOLDS, FAILS or UNCERTAIN; UNTESTABLE or LACKING (of ours) or UNPRINTED (of the paper's).
        value: the statistic; a mean over seeds.
        interval: half width of its 95% confidence interval (Student's t); None for fewer than two seeds.
        values: one for each seed.
        at: the place that gives a minimum or maximum.
    """

    state: str
    value: float | None = None
    interval: float | None = None
    values: tuple[float, ...] = ()
    at: str = ""


@dataclass(frozen=True)
class Verdict:
    """A claim and its outcomes.

    Attributes:
        over, rule: what it is over and what decides it, in words.
        difference: whether the rule's value is one of differences, in percentage points.
        seeds: those for which every cell is there.
        cells: how many cells it is over, all seeds together.
        models: how many backdoored models these are of, with all seeds of one counted once.
        untaken: in how many of these the attack did not take; where the claim is of that, their cells are left out.
        missing: the names of those that are not there.
        commands: what makes them.
        left_out: why cells are left out, or why there are too few.
    """

    id: str
    says: str
    where: str
    over: str
    rule: str
    difference: bool
    why: str
    ours: Outcome
    published: Outcome
    seeds: tuple[int, ...]
    cells: int
    models: int
    untaken: int
    missing: tuple[str, ...]
    commands: tuple[str, ...]
    left_out: tuple[str, ...]


def untestable_in_words(plan: Plan, marked: str) -> str:
    """What a verdict of that name says.

    Args:
        marked: the name as it is shown.
    """
    attack = plan.metrics.attack
    because = f" ({untaken_if(attack)})" if attack else ""
    return (
        f"{marked}: models in which the attack did not take{because} decide it, and what a defense leaves there says nothing "
        "about it."
    )


class _TooFewError(Exception):
    """There are not enough numbers for a statistic."""


def claims_of(plan: Plan, track: str = DEFAULT_TRACK, paper: str = DEFAULT_PAPER) -> list[Verdict]:
    """The verdict on each of a paper's claims from the cells that are there now; empty for a paper without claims.

    Raises:
        DepoisonError: as `read_claims`, or a file that cannot be read.
    """
    if not has_claims(plan.root, paper):
        return []
    return verdicts(plan, read_claims(plan, f"reports/{track}/{paper}/{CLAIMS}"))


def verdicts(plan: Plan, claims: Claims) -> list[Verdict]:
    """In the file's order, but for those that our cells say nothing of: they stand last."""
    read = _Courses(plan.metrics.attack)
    found = [_verdict(plan, claims, claim, read) for claim in claims.claims]
    return sorted(found, key=lambda verdict: LAST.index(verdict.ours.state) + 1 if verdict.ours.state in LAST else 0)


# --- numbers -----------------------------------------------------------------------------------------------------


class _Courses:
    """Reads what there is at the places of claims, each file once.

    Args:
        attack: the metric that says whether an attack took.
    """

    def __init__(self, attack: Metric | None):
        self.attack, self.read, self._course = attack, Reader(), cache(course)

    def at(self, chosen: Chosen, i: int, metric: Metric) -> list[tuple[Any, float | None]] | Missing:
        """Values of a cell at each x of a place; of all but epochs there is one, whose x stands in its keys."""
        files = chosen.files(i, metric)
        if not all(Path(file).exists() for file in files):
            return MISSING
        if chosen.source == "epochs":
            return [(epoch, found[metric.key]) for epoch, found in enumerate(self._course(*files, (metric,)))]
        value = self.read.value(chosen.place, i, metric)
        return MISSING if isinstance(value, Missing) else [(chosen.keys.get("x"), value)]

    def untaken(self, claim: Claim) -> tuple[set[tuple[str, ...]], int]:
        """The backdoored models in which the attack did not take, each by its evaluations, and how many models there are.

        What is left of a backdoor that never was says nothing about a defense. How good a model is on clean images is another
        matter, and so is the attack's success without any defense: for claims on these alone, and for models that were not
        evaluated, every attack counts as taken.
        """
        places = [chosen.place for chosen in (*claim.over, *claim.minus) if chosen.place.cells]
        models = {_model(place): place for place in places}
        defended = any(
            [cell.evaluation for cell in chosen.place.cells] != chosen.place.undefended() or chosen.source == "epochs"
            for chosen in claim.over
        )
        attack, of = self.attack, claim.metric
        clean = attack and attack.no_rescue and of.name == attack.no_rescue.clean
        if attack is None or clean or (of is attack and not defended):
            return set(), len(models)
        known = {model: self.read.before(place, attack).values() for model, place in models.items()}
        return {model for model, values in known.items() if values and statistics.fmean(values) < attack.took}, len(
            models
        )


def _model(place: Place) -> tuple[str, ...]:
    return tuple(artifact.product for artifact in place.undefended())


def _ours(chosen: Iterable[Chosen], metric: Metric, seed: int, read: _Courses) -> tuple[Numbers, list[str], list[str]]:
    """The numbers of a seed, the cells that are missing, and why others are left out."""
    found: dict[tuple[Any, ...], tuple[dict[str, Any], float]] = {}
    missing, reasons = [], []
    for one in chosen:
        if one.place.gaps:
            reasons += map(_gap_in_words, one.place.gaps)
            continue
        (i,) = (i for i, cell in enumerate(one.place.cells) if cell.name.seed == seed)
        cell, axis = one.place.cells[i], read.at(one, i, metric)
        if isinstance(axis, Missing):
            missing.append(cell.name.path)
            continue
        wanted = [(x, value) for x, value in axis if one.selection.on_axis(x)]
        if one.source == "epochs" and (not wanted or len(wanted) < len(one.selection.x or ())):
            reasons.append(f"on this track {one.keys['line'] or 'tuning'} ends after epoch {len(axis) - 1}")
            continue
        for x, value in wanted:
            if value is None:
                reasons.append(f"{cell.name.path} has no {metric.label}")
                continue
            keys = dict(one.keys) | ({"x": x} if one.source == "epochs" else {})
            found[tuple(keys.values())] = keys, value
    return list(found.values()), missing, reasons


def _gap_in_words(gap: str) -> str:
    return f"no cell for {gap}" if gap.startswith("the ") else gap


def _printed(chosen: Iterable[Chosen], metric: Metric) -> Numbers | None:
    """The paper's numbers; None where it does not print all of them, and for figures, which have none."""
    found: dict[tuple[Any, ...], tuple[dict[str, Any], float]] = {}  # what two selections have counts once, as in ours
    for one in chosen:
        if one.source != "table" or not (printed := one.place.published.get(metric.name)):
            return None
        found[tuple(one.keys.values())] = dict(one.keys), float(printed[0])
    return list(found.values())


def statistic_of(statistic: Statistic, values: Sequence[float]) -> float:
    """A statistic of numbers.

    Raises:
        _TooFewError: there is none, or one, which has no standard deviation.
    """
    if len(values) < (2 if statistic.name == "standard-deviation" else 1):
        raise _TooFewError("a standard deviation needs two cells" if values else "there is no cell")
    if statistic.condition is not None:
        return 100 * sum(map(statistic.condition.holds, values)) / len(values)
    return float(FUNCTIONS[statistic.name](values))


def reduced(numbers: Numbers, steps: Iterable[tuple[tuple[str, ...], Statistic]]) -> Numbers:
    """Group numbers by keys and take a statistic of each group, step by step."""
    for per, statistic in steps:
        groups: dict[tuple[Any, ...], list[float]] = defaultdict(list)
        for keys, value in numbers:
            groups[tuple(keys[key] for key in per)].append(value)
        numbers = [(dict(zip(per, key, strict=True)), statistic_of(statistic, v)) for key, v in groups.items()]
    return numbers


def _left(claim: Claim, over: Numbers, minus: Numbers, partial: bool = False) -> Numbers:
    """What the claim's last statistic is of: each step taken, and what is to be subtracted subtracted, or divided by.

    Args:
        partial: whether a number may be left out because what is to be subtracted from it was.

    Raises:
        _TooFewError: there are too few numbers for it.
    """
    left = numbers = reduced(over, claim.steps)
    if claim.file.other:
        per, left = claim.minus_steps[-1][0], []
        others = {tuple(keys[key] for key in per): value for keys, value in reduced(minus, claim.minus_steps)}
        for keys, value in numbers:
            if (place := tuple(keys[key] for key in per)) not in others:
                if partial or any(chosen.place.gaps for chosen in claim.minus):
                    continue
                raise _TooFewError(f"there is no cell to {'subtract' if claim.file.minus else 'divide by'}")
            if claim.file.divided_by and not others[place]:
                raise _TooFewError("what is to be divided by is 0")
            left.append((keys, value / others[place] if claim.file.divided_by else value - others[place]))
    statistic_of(claim.statistic, [value for _, value in left])
    return left


# --- verdicts ----------------------------------------------------------------------------------------------------


def drawn(condition: Condition, values: Sequence[float]) -> tuple[str, float, float | None]:
    """A verdict from the statistic's values for each seed, their mean, and half the width of its interval.

    With several seeds the claim holds where the condition holds in the whole 95% interval of the mean (Student's t), does
    not hold where it holds nowhere in it, and is uncertain else. With one seed the value alone decides.
    """
    mean, half = mean_and_interval(values)
    ends = {condition.holds(mean - (half or 0)), condition.holds(mean + (half or 0))}
    return UNCERTAIN if len(ends) > 1 else HOLDS if ends == {True} else FAILS, mean, half


def _outcome(plan: Plan, claim: Claim, left: Sequence[Numbers]) -> Outcome:
    """Args: left: for each seed what the last statistic is of."""
    values = tuple(statistic_of(claim.statistic, [value for _, value in numbers]) for numbers in left)
    state, mean, half = drawn(claim.condition, values)
    return Outcome(state, mean, half, values, _extreme(plan, claim, left))


def _extreme(plan: Plan, claim: Claim, left: Sequence[Numbers]) -> str:
    """What gives a minimum or maximum, in the mean over seeds, in those of its keys that tell it apart."""
    if claim.statistic.name not in ("min", "max") or len(left[0]) < 2:
        return ""
    by_keys: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    for numbers in left:
        for keys, value in numbers:
            by_keys[tuple(keys.items())].append(value)
    extreme = min if claim.statistic.name == "min" else max
    found = dict(extreme(by_keys, key=lambda keys: statistics.fmean(by_keys[keys])))
    varying = {key for key in found if len({keys[key] for keys, _ in left[0]}) > 1}
    return _name(
        plan, claim, {key: value for key, value in found.items() if key in varying and value not in (None, "")}
    )


def _name(plan: Plan, claim: Claim, keys: dict[str, Any]) -> str:
    """Keys as a place is told to people."""
    epochs = any(chosen.source == "epochs" for chosen in claim.over)
    words = []
    for key, value in keys.items():
        match key:
            case "dataset" | "model" if "table" in keys:
                continue
            case "table" | "figure":
                words.append(source_name(value))
            case "column" if any(chosen.source == "table" for chosen in claim.over):
                words.append(plan.label("defense", value))
            case "dataset" | "model" | "attack":
                words.append(plan.label(key, value))
            case "rate":
                words.append(percent(value))
            case "x" if not isinstance(value, str):
                words.append(f"{'epoch' if epochs else 'at'} {value:g}")
            case _:
                words.append(value)
    return ", ".join(words)


def _verdict(plan: Plan, claims: Claims, claim: Claim, read: _Courses) -> Verdict:
    places = [chosen.place for chosen in (*claim.over, *claim.minus)]
    with_cells = [{cell.name.seed for cell in place.cells} for place in places if place.cells]
    seeds = sorted(set.intersection(*with_cells)) if with_cells else []
    left, complete, missing, reasons = [], [], [], list(claim.absent)
    for seed in seeds:
        over, minus = (_ours(chosen, claim.metric, seed, read) for chosen in (claim.over, claim.minus))
        missing += over[1] + minus[1]
        reasons += over[2] + minus[2]
        if over[1] or minus[1] or claim.absent:
            continue
        try:
            left.append(_left(claim, over[0], minus[0]))
        except _TooFewError as error:
            reasons.append(f"{error}")
            continue
        complete.append(seed)
    if not seeds:
        reasons += [_gap_in_words(gap) for place in places for gap in place.gaps]
        reasons += ["its tables have no seed in common"] if with_cells else []
    missing = list(dict.fromkeys(missing))
    untaken, models = read.untaken(claim)
    ours = _outcome(plan, claim, left) if left else Outcome(LACKING)
    if left and untaken:
        ours = _where_it_took(plan, claim, ours, complete, untaken, read)
        told = f"the attack did not take in {len(untaken)} of the {models} models ({untaken_if(read.attack)})"
        reasons.append(told if ours.state == UNTESTABLE else f"left out: {told}")
    return Verdict(
        id=claim.id,
        says=claim.file.says,
        where=claim.file.where,
        over=over_in_words(plan, claim),
        rule=rule_in_words(plan, claim),
        difference=claim.file.minus is not None,
        why=claim.file.why,
        ours=ours,
        published=_published(plan, claim),
        seeds=tuple(complete),
        cells=len({cell.name for place in places for cell in place.cells}),
        models=models,
        untaken=len(untaken),
        missing=tuple(missing),
        commands=tuple(_commands(plan, claims, [*claim.over, *claim.minus], missing)),
        left_out=tuple(dict.fromkeys(reasons)),
    )


def _where_it_took(
    plan: Plan,
    claim: Claim,
    ours: Outcome,
    seeds: Sequence[int],
    untaken: set[tuple[str, ...]],
    read: _Courses,
) -> Outcome:
    """The outcome over the models in which the attack took; UNTESTABLE where it is the others that decide the verdict."""
    taken = [[chosen for chosen in part if _model(chosen.place) not in untaken] for part in (claim.over, claim.minus)]
    try:
        numbers = [[_ours(part, claim.metric, seed, read)[0] for part in taken] for seed in seeds]
        found = _outcome(plan, claim, [_left(claim, *both, partial=True) for both in numbers])
    except _TooFewError:
        return Outcome(UNTESTABLE)
    return found if found.state == ours.state else Outcome(UNTESTABLE)


def _published(plan: Plan, claim: Claim) -> Outcome:
    over, minus = (_printed(chosen, claim.metric) for chosen in (claim.over, claim.minus))
    if not over or minus is None:
        return Outcome(UNPRINTED)
    try:
        return _outcome(plan, claim, [_left(claim, over, minus)])
    except _TooFewError:
        return Outcome(UNPRINTED)


def _commands(plan: Plan, claims: Claims, places: Iterable[Chosen], missing: Sequence[str]) -> list[str]:
    """What makes missing cells: they themselves where they are few, else their tables and figures."""
    if not missing:
        return []
    more = any(one.source in ("epochs", "tsne") for one in places)
    if len(missing) <= FEW and not more:  # a cell alone makes no embedding, and no history that was removed
        return [command(plan, *missing)]
    where = folder_of(plan, claims.track, claims.paper)
    wanted, found = set(missing), {}
    for one in places:
        if any(cell.name.path in wanted for cell in one.place.cells):
            name = one.keys.get("table") or one.keys["figure"]
            found[name] = f"reports/{where}{name}.{'md' if 'table' in one.keys else 'png'}"
    return [command(plan, target) for target in found.values()]


# --- words -------------------------------------------------------------------------------------------------------


def source_name(name: str) -> str:
    """table2 → Table 2."""
    kind = next((kind for kind in ("table", "figure") if name.removeprefix(kind).isdigit()), "")
    return f"{kind.title()} {name.removeprefix(kind)}" if kind else name


def _listed(words: Iterable[str]) -> str:
    """Names with commas between them, in quotes where they have commas themselves."""
    return ", ".join(f"“{word}”" if "," in word else word for word in words)


def _selected(plan: Plan, selection: Any) -> tuple[list[str], str]:
    """What a selection names, in words, and what it says of the x axis."""
    named = []
    for key in ("attacks", "rates", "datasets", "models", "rows", "columns", "lines"):
        if not (found := getattr(selection, key, None)):
            continue
        kind = {"columns": "defense", "attacks": "attack", "datasets": "dataset", "models": "model"}.get(key)
        named.append(_listed(percent(v) if key == "rates" else plan.label(kind, v) if kind else v for v in found))
    low, high = selection.x_from, selection.x_to
    if selection.x is not None:
        return named, f"at {_listed(x if isinstance(x, str) else f'{x:g}' for x in selection.x)}"
    if low is not None and high is not None:
        return named, f"from {low:g} to {high:g}"
    return named, f"from {low:g} on" if low is not None else f"up to {high:g}" if high is not None else ""


def over_in_words(plan: Plan, claim: Claim) -> str:
    """Which places a claim is over."""
    told = []
    for selection in claim.file.over:
        named, axis = _selected(plan, selection)
        names = ", ".join(map(source_name, selection.table or selection.figure or ()))
        words = "; ".join([*named, axis] if axis else named)
        told.append(f"{names}: {words}" if words else names)
    return " and ".join(told)


def rule_in_words(plan: Plan, claim: Claim) -> str:
    """What decides a claim, such as max of (mean of … per table) < 1."""
    inner = claim.metric.label
    for step in claim.file.each:
        inner = f"({_of(Statistic.parse(step.statistic), inner)} per {listed(step.per)})"
    if claim.file.other:
        key, of = claim.file.other
        named, axis = _selected(plan, of)
        other = " ".join([f"of {'; '.join(named)}"] * bool(named) + [axis] * bool(axis))
        inner = f"({inner} {MINUS if key == 'minus' else '/'} that {other})"
    return f"{_of(claim.statistic, inner)} {_symbols(claim.condition)}"


def _of(statistic: Statistic, what: str) -> str:
    if statistic.condition is not None:
        return f"percent of {what} that are {_symbols(statistic.condition)}:"
    return f"{statistic.name.replace('-', ' ')} of {what}"


def _symbols(condition: Condition) -> str:
    return str(condition).replace("<=", "≤").replace(">=", "≥").replace("-", MINUS)


# --- files -------------------------------------------------------------------------------------------------------


def made_from(claims: Claims) -> str:
    """A hash of the claims, of the tables and figures that they are over, and of what is there of their cells."""
    contents = {file: sha256_of(Path(file)) for file in claims.products() if Path(file).exists()}
    return fingerprint([claims.definition, claims.target, contents])


def render(plan: Plan, claims: Claims) -> dict[str, str]:
    """The text of each of the two files, by suffix."""
    found, origin = verdicts(plan, claims), made_from(claims)
    content = {
        "made_from": origin,
        "paper": claims.paper,
        "track": claims.track,
        "papers_setting": plan.configuration.track(claims.track).content.is_papers,
        "claims": [asdict(verdict) for verdict in found],
    }
    return {".md": f"<!-- made from {origin} -->\n{_page(plan, claims, found)}", ".json": json_text(content)}


def _page(plan: Plan, claims: Claims, found: list[Verdict]) -> str:
    track = plan.configuration.track(claims.track).content
    several = any(verdict.ours.interval is not None for verdict in found)
    interval = " (mean over seeds ± half its 95% confidence interval)" if several else ""
    lines = [f"# {escape_markdown(plan.paper_label(claims.paper))}: claims", ""]
    lines += [f"Track {escape_markdown(claims.track)}: {escape_markdown(track.summary)}.", ""]
    if not track.is_papers:
        instead = _replaced(plan, claims.track)
        lines += [
            f"**The setting is not the paper's{instead and f' ({escape_markdown(instead)})'}**: no verdict in the column "
            "*ours* is one on the paper, it says whether a pattern shows here, too.",
            "",
        ]
    lines += [
        f"Ours: {counts_of(found, lambda v: v.ours.state)}. The paper's printed numbers: "
        f"{counts_of(found, lambda v: v.published.state)}. A claim over figures is not printed in numbers.",
        "",
        f"Percent, and percentage points for differences. Each verdict is followed by the rule's value{interval} and the "
        "place that gives a minimum or maximum. *Uncertain*: the limit lies within the interval; with one seed there is no "
        f"interval, and the value alone decides. {untestable_in_words(plan, '*Not testable here*')}",
        "",
        "| Claim | Rule | Ours | The paper's numbers |",
        "|:--|:--|:--|:--|",
    ]
    lines += [f"| {_said(v)} | {_ruled(v)} | {_told(v, v.ours)} | {_told(v, v.published)} |" for v in found]
    lines += _notes(found)
    return "\n".join(lines) + "\n"


def _replaced(plan: Plan, track: str) -> str:
    """What a track puts in place of the paper's datasets and models."""
    replace, told = plan.configuration.track(track).content.replace, []
    for kind, names in (("dataset", replace.datasets), ("model", replace.models)):
        for paper, ours in names.items():
            what = f"every {'other ' if len(names) > 1 else ''}{kind}" if paper == "*" else plan.label(kind, paper)
            told.append(f"{plan.label(kind, ours)} stands for {what}")
    return "; ".join(told)


def counts_of(found: Iterable[Verdict], state: Callable[[Verdict], str]) -> str:
    """How many claims there are of each state, in words."""
    counts = Counter(map(state, found))
    words = {HOLDS: "{} hold", FAILS: "{} do not hold", UNCERTAIN: "{} uncertain", UNTESTABLE: "{} not testable here"}
    words |= {LACKING: "{} without enough cells", UNPRINTED: "{} not printed"}
    return ", ".join(text.format(counts[name]) for name, text in words.items() if counts[name])


def _said(verdict: Verdict) -> str:
    return f"{escape_markdown(verdict.says)}.{_small([verdict.where, verdict.id])}"


def _ruled(verdict: Verdict) -> str:
    return escape_markdown(verdict.rule) + _small([verdict.over, verdict.why] if verdict.why else [verdict.over])


def told(verdict: Verdict, outcome: Outcome) -> tuple[str, list[str]]:
    """The rule's value, "" where there is none, and what else is to say of it, as plain text."""
    if outcome.state in (UNPRINTED, UNTESTABLE):
        return "", []
    if outcome.state == LACKING:
        there = verdict.cells - len(verdict.missing)
        return "", [f"{there} of {verdict.cells}"] if verdict.missing else []
    number = signed(outcome.value).replace("±", "") if verdict.difference else decimal(outcome.value, 2)
    details = [outcome.at] if outcome.at else []
    if outcome is verdict.ours:
        number += f" ± {outcome.interval:.2f}" if outcome.interval is not None else ""
        details.append("one seed" if len(outcome.values) == 1 else f"{len(outcome.values)} seeds")
    return number, details


def _told(verdict: Verdict, outcome: Outcome) -> str:
    if outcome.state == UNPRINTED:
        return "–"
    number, details = told(verdict, outcome)
    below, left_out = _small(details), _small(verdict.left_out)
    if outcome.state in LAST:
        return f"*{outcome.state}*{below}{left_out}"
    state = f"**{outcome.state}**" if outcome.state == FAILS else outcome.state
    return f"{state}, {number}{below}{left_out if outcome is verdict.ours else ''}"


def _small(words: Sequence[str]) -> str:
    """A line below in small type; nothing of no words."""
    return f"<br><sub>{'; '.join(map(escape_markdown, words))}</sub>" if words else ""


def _notes(found: Iterable[Verdict]) -> list[str]:
    """The commands that make what is missing."""
    wanted: dict[str, list[str]] = defaultdict(list)
    for verdict in found:
        for made_by in verdict.commands:
            wanted[made_by].append(verdict.id)
    if not wanted:
        return []
    lines = ["", "What is missing is made by the following; this page only shows what is there.", "", "```"]
    for made_by, ids in wanted.items():
        count = f"{len(ids)} claims" if len(ids) > 1 else "1 claim"
        lines.append(f"{' '.join(made_by.split()).replace('```', '')}  # {count}: {', '.join(ids)}")
    return [*lines, "```"]
