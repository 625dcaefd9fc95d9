// Line and bar charts: SVG that takes its colours from the style sheet. Arrow keys or the pointer read values along x.

const MARGIN = { left: 56, right: 18, top: 14, bottom: 46 };

/** A round step, at most `most` of which lie between two values. */
function roundStep(low, high, most) {
  const rough = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough * 0.999);
}

function ticks(low, high, most) {
  const step = roundStep(low, high, most);
  const first = Math.ceil(low / step - 1e-9);
  return range(Math.floor(high / step + 1e-9) - first + 1).map((index) => (first + index) * step);
}

/** @param spec label; x: {values, label, format, low, high}; y: {label, format, low, high};
 *  series: [{name, values, look, bars}], look being a class of the style sheet; marks: [{x, label}] vertical lines;
 *  quiet: rows drawn thinly behind; zone: x up to which the plot is shaded; width, height. */
function chart(spec) {
  const { x, y, series, marks = [], quiet = [], width = 560, height = 290 } = spec;
  const xs = x.values;
  const [left, right, top, bottom] = [MARGIN.left, width - MARGIN.right, MARGIN.top, height - MARGIN.bottom];
  const bars = series.some((one) => one.bars);
  const half = bars ? 0.5 : 0;
  const [xLow, xHigh] = [x.low ?? Math.min(...xs) - half, x.high ?? Math.max(...xs) + half];
  const all = [...series.map((one) => one.values), ...quiet].flat().filter((value) => value != null);
  const yLow = y.low ?? 0;
  const most = Math.max(...all, yLow + 1e-9);
  const step = roundStep(yLow, most, 5);
  const yHigh = y.high ?? Math.ceil(most / step - 1e-9) * step;
  const px = (value) => left + ((value - xLow) / (xHigh - xLow || 1)) * (right - left);
  const py = (value) => bottom - ((Math.min(value, yHigh) - yLow) / (yHigh - yLow || 1)) * (bottom - top);

  const canvas = svg("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
  if (spec.zone)
    canvas.append(svg("rect", { class: "zone", x: left, y: top, width: px(spec.zone) - left, height: bottom - top }));
  for (const value of ticks(yLow, yHigh, 5)) {
    canvas.append(svg("line", { class: "grid", x1: left, x2: right, y1: py(value), y2: py(value) }));
    canvas.append(svg("text", { x: left - 8, y: py(value) + 4, "text-anchor": "end" }, y.format(value)));
  }
  for (const value of x.ticks ?? ticks(xLow, xHigh, width / 80)) {
    canvas.append(svg("line", { class: "tick", x1: px(value), x2: px(value), y1: bottom, y2: bottom + 5 }));
    canvas.append(svg("text", { x: px(value), y: bottom + 19, "text-anchor": "middle" }, x.format(value)));
  }
  canvas.append(svg("line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom }));
  canvas.append(
    svg("text", { class: "title", x: (left + right) / 2, y: height - 8, "text-anchor": "middle" }, x.label),
  );

  const path = (values) => {
    let pen = "M";
    return values
      .map((value, index) => {
        if (value == null) return ((pen = "M"), "");
        const piece = `${pen}${px(xs[index]).toFixed(1)} ${py(value).toFixed(1)}`;
        pen = "L";
        return piece;
      })
      .join("");
  };
  for (const values of quiet) canvas.append(svg("path", { class: "quiet", d: path(values) }));
  for (const one of series) {
    if (!one.bars) canvas.append(svg("path", { class: `series ${one.look}`, d: path(one.values) }));
    else {
      const wide = Math.max(1, Math.min(26, px(xs[0] + 0.76) - px(xs[0])));
      one.values.forEach(
        (value, index) =>
          value != null &&
          canvas.append(
            svg("rect", {
              class: `bars ${one.look}`,
              x: px(xs[index]) - wide / 2,
              y: py(value),
              width: wide,
              height: Math.max(0, bottom - py(value)),
            }),
          ),
      );
    }
  }
  marks.forEach((mark, index) => {
    const line = px(mark.x);
    const toLeft = line > right - 110;
    canvas.append(svg("line", { class: `mark ${mark.look ?? ""}`, x1: line, x2: line, y1: top, y2: bottom }));
    canvas.append(
      svg(
        "text",
        {
          class: "mark",
          x: line + (toLeft ? -6 : 6),
          y: (mark.low ? bottom - 10 : top + 12) - (mark.low ? 1 : -1) * 15 * index,
          "text-anchor": toLeft ? "end" : "start",
        },
        mark.label,
      ),
    );
  });

  const cursor = svg("g", { class: "cursor", visibility: "hidden" });
  canvas.append(cursor);
  const readAt = (index) => {
    const points = series.filter((one) => one.values[index] != null);
    cursor.replaceChildren(
      svg("line", { x1: px(xs[index]), x2: px(xs[index]), y1: top, y2: bottom }),
      ...points.map((one) => svg("circle", { cx: px(xs[index]), cy: py(one.values[index]), r: 4, class: one.look })),
    );
    return `${x.read ? x.read(xs[index]) : `${x.label} ${x.format(xs[index])}`}: ${points.map((one) => `${one.name} ${(y.read ?? y.format)(one.values[index])}`).join(", ")}`;
  };
  const nearest = (position) => {
    const value = xLow + ((position * width - left) / (right - left)) * (xHigh - xLow);
    return xs.reduce(
      (best, candidate, index) => (Math.abs(candidate - value) < Math.abs(xs[best] - value) ? index : best),
      0,
    );
  };
  return readable(
    spec.label,
    canvas,
    cursor,
    xs.length,
    readAt,
    nearest,
    legend(series, y.label, quiet.length, spec.quietName),
  );
}

function legend(series, label, quiet, quietName) {
  const sample = (look, bars) =>
    svg(
      "svg",
      { class: "sample", viewBox: "0 0 28 10", "aria-hidden": "true" },
      bars
        ? svg("rect", { class: `bars ${look}`, x: 6, y: 0, width: 14, height: 10 })
        : svg("path", { class: look, d: "M1 5L27 5" }),
    );
  const entries = series.map((one) =>
    html("li", {}, sample(one.bars ? one.look : `series ${one.look}`, one.bars), one.name),
  );
  if (quiet) entries.push(html("li", {}, sample("quiet"), quietName));
  return html(
    "div",
    { class: "legend" },
    html("span", { class: "y-label" }, label),
    entries.length > 1 ? html("ul", {}, ...entries) : null,
  );
}

/** A plot whose `length` positions are read one by one: a slider for keyboards and screen readers. */
function readable(label, canvas, cursor, length, readAt, nearest, above) {
  const reading = html("p", { class: "reading" });
  const plot = html(
    "div",
    {
      class: "plot",
      tabindex: 0,
      role: "slider",
      "aria-label": `${label}; arrow keys read values`,
      "aria-valuemin": 0,
      "aria-valuemax": length - 1,
      "aria-valuenow": 0,
      "aria-valuetext": label,
    },
    canvas,
  );
  let position = -1;
  const moveTo = (index) => {
    position = Math.max(0, Math.min(length - 1, index));
    const text = readAt(position);
    cursor.setAttribute("visibility", "visible");
    reading.textContent = text;
    plot.setAttribute("aria-valuenow", position);
    plot.setAttribute("aria-valuetext", text);
  };
  const steps = {
    ArrowRight: 1,
    ArrowUp: 1,
    ArrowLeft: -1,
    ArrowDown: -1,
    PageUp: 8,
    PageDown: -8,
    Home: -Infinity,
    End: Infinity,
  };
  plot.addEventListener("keydown", (event) => {
    if (!(event.key in steps)) return;
    event.preventDefault();
    moveTo(position + steps[event.key]);
  });
  plot.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    moveTo(nearest((event.clientX - box.left) / box.width));
  });
  plot.addEventListener("pointerleave", () => {
    if (document.activeElement === plot) return;
    cursor.setAttribute("visibility", "hidden");
    reading.textContent = "";
  });
  return html("div", { class: "chart" }, above, plot, reading);
}
