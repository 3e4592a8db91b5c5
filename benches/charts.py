"""Pictures of figures, as SVG that needs nothing else: bars by system, and curves. Readable on light and on dark ground."""
import math
from xml.sax.saxutils import escape

# One ink for words, a weak one for lines, and colours that are told apart on both grounds.
STYLE = """
  .ground { fill: #ffffff; }
  text { font: 12px system-ui, sans-serif; fill: #1f2328; }
  .weak { fill: #59636e; } .end { text-anchor: end; } .middle { text-anchor: middle; } .title { font-weight: 600; }
  .line { stroke: #d1d9e0; fill: none; } .other { fill: #9aa4b0; } .goal { stroke: #cf222e; stroke-width: 2; }
  .c0 { --c: #0969da; } .c1 { --c: #bc4c00; } .c2 { --c: #1a7f37; } .c3 { --c: #8250df; }
  .fill { fill: var(--c); } .curve { stroke: var(--c); stroke-width: 2; fill: none; }
  @media (prefers-color-scheme: dark) {
    .ground { fill: #0d1117; }
    text { fill: #f0f6fc; } .weak { fill: #9198a1; } .line { stroke: #3d444d; } .other { fill: #656c76; } .goal { stroke: #ff7b72; }
    .c0 { --c: #4493f8; } .c1 { --c: #f0883e; } .c2 { --c: #3fb950; } .c3 { --c: #ab7df8; }
  }
"""
WIDTH, MARGIN = 960, 16


def svg(height, title, parts):
    box = f"{-MARGIN} {-MARGIN} {WIDTH + 2 * MARGIN} {height + 2 * MARGIN}"
    yield f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" role="img">'
    yield f"<title>{escape(title)}</title>"
    yield f"<style>{STYLE}</style>"
    # With a ground of its own it is readable wherever it is shown, whichever scheme the page around it has.
    yield f'<rect x="{-MARGIN}" y="{-MARGIN}" width="{WIDTH + 2 * MARGIN}" height="{height + 2 * MARGIN}" class="ground"/>'
    yield from parts
    yield "</svg>"


def text(x, y, words, kind=""):
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{escape(words)}</text>'


def line(x1, y1, x2, y2, kind="line"):
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


# --- bars -------------------------------------------------------------------------------------------------------------

BAR, GAP, LABEL = 14, 5, 150


def bars(title, rows):
    """A row for each shape of load: its name, and charts side by side, each with a caption and bars. A bar is a name, a
    figure, how it is written, whether it is ours, and what it is to reach, or None."""
    parts, y = [text(0, 16, title, "title")], 40
    for name, charts in rows:
        parts.append(text(0, y, name, "title"))
        columns = WIDTH / len(charts)
        for at, (caption, figures) in enumerate(charts):
            parts.append(text(at * columns + LABEL, y + 18, caption, "weak"))
            parts.extend(bar_chart(at * columns, y + 26, columns - 60 - LABEL, figures))
        y += 26 + max(len(figures) for _, figures in charts) * (BAR + GAP) + 28
    return "\n".join(svg(y, title, parts)) + "\n"


def bar_chart(x, y, width, figures):
    most = max(max(value, goal or 0) for _, value, _, _, goal in figures)
    for name, value, written, mine, goal in figures:
        long = width * value / most
        yield text(x + LABEL - 8, y + BAR - 3, name, "end title" if mine else "end weak")
        yield f'<rect x="{x + LABEL:.1f}" y="{y}" width="{long:.1f}" height="{BAR}" class="{"c0 fill" if mine else "other"}"/>'
        end = long
        if goal:
            mark = width * goal / most
            yield line(x + LABEL + mark, y - 2, x + LABEL + mark, y + BAR + 2, "goal")
            end = max(long, mark)
        yield text(x + LABEL + end + 6, y + BAR - 3, written)
        y += BAR + GAP


# --- curves -----------------------------------------------------------------------------------------------------------

PANEL, TALL, LEFT = 440, 200, 60


def curves(title, panels):
    """Two charts a row. A panel: caption, the axis below, and curves by name, each a list of points (x, y). x is drawn by its
    logarithm, y from nothing on."""
    parts = [text(0, 16, title, "title")]
    for at, (caption, axis, named) in enumerate(panels):
        x, y = at % 2 * (WIDTH / 2), 40 + at // 2 * (TALL + 110)
        parts.extend(panel(x, y, caption, axis, named))
    rows = (len(panels) + 1) // 2
    return "\n".join(svg(40 + rows * (TALL + 110), title, parts)) + "\n"


def panel(x, y, caption, axis, named):
    points = [point for curve in named.values() for point in curve]
    first, last = min(p[0] for p in points), max(p[0] for p in points)
    step = steps(max(p[1] for p in points))
    most = step * math.ceil(max(p[1] for p in points) / step)
    width = PANEL - LEFT

    def place(point):
        along = math.log(point[0] / first) / math.log(last / first) if last > first else 0
        return x + LEFT + along * width, y + 20 + TALL - point[1] / most * TALL

    yield text(x, y, caption, "title")
    for n in range(round(most / step) + 1):
        _, height = place((first, n * step))
        yield line(x + LEFT, height, x + PANEL, height)
        yield text(x + LEFT - 6, height + 4, f"{n * step:,g}", "end weak")
    for value in sorted({p[0] for p in points}):
        yield text(place((value, 0))[0], y + TALL + 38, f"{value:,}", "middle weak")
    yield text(x + LEFT + width / 2, y + TALL + 54, axis, "middle weak")
    for n, (name, curve) in enumerate(named.items()):
        path = " ".join("{:.1f},{:.1f}".format(*place(p)) for p in curve)
        yield f'<g class="c{n}"><polyline points="{path}" class="curve"/>'
        yield from ('<circle cx="{:.1f}" cy="{:.1f}" r="3" class="fill"/>'.format(*place(p)) for p in curve)
        if len(named) > 1:
            left, top = x + LEFT + n % 3 * 120, y + TALL + 66 + n // 3 * 18
            yield f'<rect x="{left:.1f}" y="{top:.1f}" width="10" height="10" class="fill"/>'
            yield text(left + 16, top + 9, name)
        yield "</g>"


def steps(most):
    """A round number that divides an axis of this length into two to five parts."""
    for factor in (1, 2, 5, 10):
        step = factor * 10 ** math.floor(math.log10(most / 2))
        if most / step <= 5:
            return step
    return step
