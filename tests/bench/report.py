"""The measured rows as a Markdown table and as a plot (SVG), and the section of the README that shows them."""

import json
import os
from xml.sax.saxutils import escape

MARK = ("<!-- bench: written by make bench -->", "<!-- end of the bench -->")


def number(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def shown(stat):
    """Median, unit, and the range where more than one was measured."""
    text = f"{number(stat['median'])} {stat['unit']}"
    return text if stat["n"] < 2 else f"{text} ({number(stat['low'])}–{number(stat['high'])})"


def rival(found):
    """The best of the others."""
    pick = max if found["better"] == "higher" else min
    return pick(found["others"], key=lambda name: found["others"][name]["median"])


def ratio(found, name):
    """Above 1: we are better."""
    ours, theirs = found["ours"]["median"], found["others"][name]["median"]
    above, below = (ours, theirs) if found["better"] == "higher" else (theirs, ours)
    return above / below if below else float("inf")


def table(groups):
    lines = ["| what | where | ours | beside | ratio | reach |", "|---|---|---|---|---|---|"]
    for where, found in rows(groups):
        beside = "; ".join(f"{name} {shown(stat)}" for name, stat in found["others"].items())
        ratios = "; ".join(f"{ratio(found, name):.2f}".replace("inf", "∞") for name in found["others"])
        reach = "–"
        if found["reach"]:
            # what is measured in two ways is judged by the first named; a choice of rivals by the best of them
            judged = ratio(found, rival(found) if found["better"] == "higher" else next(iter(found["others"])))
            reach = f"{found['reach']:.2f} {'✓' if judged >= found['reach'] else '✗'}"
        note = f" ({found['note']})" if found.get("note") else ""
        lines.append(f"| {found['name']}{note} | {where} | {shown(found['ours'])} | {beside} | {ratios} | {reach} |")
    return "\n".join(lines)


def rows(groups):
    """Each with where it was measured; with the day, where that is an earlier one than the others'."""
    newest = max((group["date"] for group in groups), default="")
    day = {group["date"]: "" if group["date"] == newest else f", {group['date']}" for group in groups}
    return [(group["where"] + day[group["date"]], found) for group in groups for found in group["rows"]]


def plot(groups, title):
    """Ratios as bars on a logarithmic scale: to the right of the line we are better; the tick is the reach."""
    found = [(where, row) for where, row in rows(groups) if row["others"]]
    left, width, step, top = 390, 430, 22, 56
    height = top + step * len(found) + 34
    low, high = 0.1, 100.0

    def x(value):
        import math
        share = math.log10(min(max(value, low), high) / low) / math.log10(high / low)
        return left + share * width

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 900 {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="900" height="{height}" fill="#fff"/>',
        f'<text x="12" y="22" font-size="15" font-weight="bold">{escape(title[0])}</text>',
        f'<text x="12" y="40" fill="#555">{escape(title[1])}</text>',
    ]
    for mark in (0.1, 0.5, 1, 2, 5, 10, 20, 50, 100):
        colour = "#444" if mark == 1 else "#ddd"
        out.append(f'<line x1="{x(mark):.1f}" x2="{x(mark):.1f}" y1="{top - 6}" y2="{height - 26}" stroke="{colour}"/>')
        out.append(f'<text x="{x(mark):.1f}" y="{height - 10}" text-anchor="middle" fill="#555">{mark:g}×</text>')
    for index, (where, row) in enumerate(found):
        y = top + step * index
        name = rival(row) if row["better"] == "higher" else next(iter(row["others"]))
        value = ratio(row, name)
        met = row["reach"] is None or value >= row["reach"]
        start, end = sorted((x(1), x(value)))
        label = f"{row['name']} [{where}]"
        out.append(f'<text x="{left - 8}" y="{y + 13}" text-anchor="end" font-size="11">{escape(label)}</text>')
        out.append(f'<rect x="{start:.1f}" y="{y + 3}" width="{max(end - start, 1.5):.1f}" height="{step - 8}" '
                   f'fill="{"#2b7a4b" if met else "#b5482f"}"><title>{escape(label)}: {value:.2f}× {escape(name)}</title></rect>')
        out.append(f'<text x="{end + 5:.1f}" y="{y + 13}" font-size="11">{value:.2f}</text>')
        if row["reach"]:
            out.append(f'<line x1="{x(row["reach"]):.1f}" x2="{x(row["reach"]):.1f}" y1="{y + 1}" y2="{y + step - 3}" '
                       'stroke="#d08700" stroke-width="2"/>')
    return "\n".join(out + ["</svg>"]) + "\n"


def write(directory, readme, groups, machine):
    """`groups`: [{"where": name, "rows": […]}]; `machine`: one sentence with date, cores and kernels."""
    os.makedirs(directory, exist_ok=True)
    with open(os.path.join(directory, "results.json"), "w", encoding="utf-8") as file:
        json.dump({"machine": machine, "groups": groups}, file, indent=1)
        file.write("\n")
    text = table(groups)
    with open(os.path.join(directory, "plot.svg"), "w", encoding="utf-8") as file:
        file.write(plot(groups, ("PeerVPN beside others: ratios of medians (to the right: PeerVPN is better)", machine)))
    with open(os.path.join(directory, "table.md"), "w", encoding="utf-8") as file:
        file.write(f"{machine}\n\n{text}\n")
    with open(readme, encoding="utf-8") as file:
        before, rest = file.read().split(MARK[0], 1)
    after = rest.split(MARK[1], 1)[1]
    section = f"{MARK[0]}\n{machine}\n\n![ratios](tests/bench/results/plot.svg)\n\n{text}\n{MARK[1]}"
    with open(readme, "w", encoding="utf-8") as file:
        file.write(before + section + after)
    return text
