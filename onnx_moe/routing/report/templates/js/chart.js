// Line and bar charts: SVG that takes its colours from the style sheet.

const MARGIN = { left: 56, right: 18, top: 14, bottom: 46 };

/** @param spec label; x: {values, label, format, low, high}; y: {label, format, low, high};
 *  series: [{name, values, look, bars}], look being a class of the style sheet; marks: [{x, label}] vertical lines;
 *  quiet: rows drawn thinly behind; zone: x up to which the plot is shaded; width, height. */
function chart(spec) {
  const { x, y, series, marks = [], quiet = [] } = spec;
  const plane = planeOf(spec);
  const cursor = svg("g", { class: "cursor", visibility: "hidden" });
  const canvas = svg(
    "svg",
    { viewBox: `0 0 ${plane.width} ${plane.height}`, "aria-hidden": "true" },
    ...zone(plane, spec.zone),
    ...axes(plane, x, y),
    ...quiet.map((values) => svg("path", { class: "quiet", d: path(plane, x.values, values) })),
    ...series.flatMap((one) => (one.bars ? bars(plane, x.values, one) : line(plane, x.values, one))),
    ...marks.flatMap((mark, index) => markAt(plane, mark, index)),
    cursor,
  );
  const readAt = (index) => {
    const at = x.values[index];
    const known = series.filter((one) => one.values[index] != null);
    cursor.replaceChildren(...cursorAt(plane, at, known, index));
    const values = known.map((one) => `${one.name} ${(y.read ?? y.format)(one.values[index])}`);
    return `${x.read ? x.read(at) : `${x.label} ${x.format(at)}`}: ${values.join(", ")}`;
  };
  const above = legend(series, y.label, quiet.length, spec.quietName);
  return readable(spec.label, { canvas, cursor, above }, x.values.length, readAt, (share) =>
    nearest(plane, x.values, share),
  );
}

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

/** Where values lie on the canvas. */
function planeOf({ x, y, series, quiet = [], width = 560, height = 290 }) {
  const [left, right, top, bottom] = [MARGIN.left, width - MARGIN.right, MARGIN.top, height - MARGIN.bottom];
  const half = series.some((one) => one.bars) ? 0.5 : 0;
  const [xLow, xHigh] = [x.low ?? Math.min(...x.values) - half, x.high ?? Math.max(...x.values) + half];
  const known = [...series.map((one) => one.values), ...quiet].flat().filter((value) => value != null);
  const yLow = y.low ?? 0;
  const most = Math.max(...known, yLow + 1e-9);
  const step = roundStep(yLow, most, 5);
  const yHigh = y.high ?? Math.ceil(most / step - 1e-9) * step;
  const px = (value) => left + ((value - xLow) / (xHigh - xLow || 1)) * (right - left);
  const py = (value) => bottom - ((Math.min(value, yHigh) - yLow) / (yHigh - yLow || 1)) * (bottom - top);
  return { width, height, left, right, top, bottom, xLow, xHigh, yLow, yHigh, px, py };
}

function zone({ left, top, bottom, px }, end) {
  return end ? [svg("rect", { class: "zone", x: left, y: top, width: px(end) - left, height: bottom - top })] : [];
}

function axes({ width, height, left, right, bottom, xLow, xHigh, yLow, yHigh, px, py }, x, y) {
  const middle = { "text-anchor": "middle" };
  return [
    ...ticks(yLow, yHigh, 5).flatMap((value) => [
      svg("line", { class: "grid", x1: left, x2: right, y1: py(value), y2: py(value) }),
      svg("text", { x: left - 8, y: py(value) + 4, "text-anchor": "end" }, y.format(value)),
    ]),
    ...(x.ticks ?? ticks(xLow, xHigh, width / 80)).flatMap((value) => [
      svg("line", { class: "tick", x1: px(value), x2: px(value), y1: bottom, y2: bottom + 5 }),
      svg("text", { x: px(value), y: bottom + 19, ...middle }, x.format(value)),
    ]),
    svg("line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom }),
    svg("text", { class: "title", x: (left + right) / 2, y: height - 8, ...middle }, x.label),
  ];
}

/** The path through known values; unknown ones leave gaps. */
function path({ px, py }, xs, values) {
  const point = (value, index) => {
    const pen = index && values[index - 1] != null ? "L" : "M";
    return value == null ? "" : `${pen}${px(xs[index]).toFixed(1)} ${py(value).toFixed(1)}`;
  };
  return values.map(point).join("");
}

const line = (plane, xs, { look, values }) => [svg("path", { class: `series ${look}`, d: path(plane, xs, values) })];

function bars({ px, py, bottom }, xs, { look, values }) {
  const width = Math.max(1, Math.min(26, px(xs[0] + 0.76) - px(xs[0])));
  return values.map((value, index) =>
    svg("rect", {
      class: `bars ${look}`,
      x: px(xs[index]) - width / 2,
      y: py(value ?? 0),
      width,
      height: Math.max(0, bottom - py(value ?? 0)),
    }),
  );
}

/** A vertical line with a label; labels stand at heights of their own. */
function markAt({ right, top, bottom, px }, { x, look = "", label, low }, index) {
  const at = px(x);
  const side = at > right - 110 ? { x: at - 6, "text-anchor": "end" } : { x: at + 6, "text-anchor": "start" };
  const y = low ? bottom - 10 - 15 * index : top + 12 + 15 * index;
  return [
    svg("line", { class: `mark ${look}`, x1: at, x2: at, y1: top, y2: bottom }),
    svg("text", { class: "mark", y, ...side }, label),
  ];
}

function cursorAt({ top, bottom, px, py }, at, series, index) {
  return [
    svg("line", { x1: px(at), x2: px(at), y1: top, y2: bottom }),
    ...series.map(({ values, look }) => svg("circle", { cx: px(at), cy: py(values[index]), r: 4, class: look })),
  ];
}

/** The index of the value of x that is nearest to a share of the canvas' width. */
function nearest({ width, left, right, xLow, xHigh }, xs, share) {
  const value = xLow + ((share * width - left) / (right - left)) * (xHigh - xLow);
  const distances = xs.map((candidate) => Math.abs(candidate - value));
  return distances.indexOf(Math.min(...distances));
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
