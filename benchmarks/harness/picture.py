"""A picture of ratios with their intervals, as SVG whose bytes depend on the numbers alone."""

import math
from xml.sax.saxutils import escape

WIDTH, LEFT, RIGHT, TOP, LINE = 820, 310, 20, 54, 30
TICKS = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0, 4.0)
SOONER, LATER, LEVEL = "#1a7f37", "#b42318", "#667085"


def picture(rows):
    """Draw one or two ratios a row, as dots with their intervals, on a logarithmic axis around 1.

    Right of 1 lock-free workers are sooner; a color says on which side an interval lies.

    Args:
        rows: of each a text, the ratio beside plain synchronous steps, a filled dot, and that
            beside speed-weighted ones, a circle: each (value, low, high), or None.
    """
    bottom = TOP + LINE * len(rows)
    first, last = math.log(TICKS[0]), math.log(TICKS[-1])

    def x(value):
        inside = min(max(math.log(value), first), last)
        return round(LEFT + (inside - first) / (last - first) * (WIDTH - LEFT - RIGHT), 1)

    def label(at, y, text, how=""):
        lines.append(f'<text x="{at}" y="{y}"{how}>{escape(text)}</text>')

    def dot(at, y, color, *, filled):
        fill = color if filled else "#ffffff"
        lines.append(f'<circle cx="{at}" cy="{y}" r="4" fill="{fill}" stroke="{color}"/>')

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 34}" '
        'font-family="sans-serif" font-size="13" fill="#344054">',
        f'<rect width="{WIDTH}" height="{bottom + 34}" fill="#ffffff"/>',
    ]
    label(x(1) - 8, 20, "synchronous is sooner", f' text-anchor="end" fill="{LATER}"')
    label(x(1) + 8, 20, "lock-free is sooner", f' fill="{SOONER}"')
    for y, filled, text in ((14, True, "beside sync"), (32, False, "beside speed-weighted sync")):
        dot(16, y, LEVEL, filled=filled)
        label(26, y + 4, text)
    for tick in TICKS:
        wide = 1.5 if tick == 1 else 0.5
        lines.append(
            f'<path d="M{x(tick)} {TOP - 20}V{bottom}" stroke="#98a2b3" stroke-width="{wide}"/>'
        )
        label(x(tick), bottom + 20, f"{tick:g}", ' text-anchor="middle"')
    for k, (text, *ratios) in enumerate(rows):
        y = TOP + LINE * k
        label(LEFT - 12, y + 4, text, ' text-anchor="end"')
        for own, ratio in enumerate(ratios):
            if ratio is not None:
                value, low, high = ratio
                at = y + (10 * own - 5) * (None not in ratios)
                color = SOONER if low > 1 else LATER if high < 1 else LEVEL
                bar = f'd="M{x(low)} {at}H{x(high)}" stroke="{color}" stroke-width="2"'
                lines.append(f"<path {bar}/>")
                dot(x(value), at, color, filled=own == 0)
    return "\n".join([*lines, "</svg>", ""])
