// Heat maps on a canvas: one pixel block a cell, read cell by cell with arrow keys or the pointer.

const redraws = new Map();

/** Colours come from the style sheet, so a canvas is drawn anew when the scheme changes and for the printer. */
function redrawOnSchemeChange() {
  const redraw = () => redraws.forEach((draw) => draw());
  for (const query of ["(prefers-color-scheme: dark)", "print"]) matchMedia(query).addEventListener("change", redraw);
  addEventListener("beforeprint", redraw);
  addEventListener("afterprint", redraw);
}

const channels = (colour) => [1, 3, 5].map((start) => parseInt(colour.slice(start, start + 2), 16));

/** Steps of the ramp `name` of the style sheet, as a function of [0, 1] to [red, green, blue]. */
function ramp(name) {
  const stops = getComputedStyle(document.documentElement)
    .getPropertyValue(name)
    .trim()
    .split(/\s*,\s*/)
    .map(channels);
  return (share) => {
    const place = Math.max(0, Math.min(1, share)) * (stops.length - 1);
    const below = Math.min(stops.length - 2, Math.floor(place));
    return stops[below].map((value, index) => value + (place - below) * (stops[below + 1][index] - value));
  };
}

/** @param spec id (of the element that holds it), label, rows, columns; shade(row, column): [0, 1], or null for "none";
 *  read(row, column): text; rowLabel(row), columnLabel(column), columnTitle, rowTitle; colours: a ramp's name;
 *  scale: [{share, label}] for the legend; scaleTitle; none: what "none" means, blank: the style sheet's colour of it; cellHeight; width: about, for labels. */
function heatMap(spec) {
  const { rows, columns } = spec;
  const canvas = html("canvas", { "aria-hidden": "true" });
  const cellHeight = spec.cellHeight ?? Math.max(5, Math.min(18, Math.round(520 / rows)));
  const box = html(
    "div",
    {
      class: "cells",
      tabindex: 0,
      role: "application",
      "aria-roledescription": "heat map",
      "aria-label": `${spec.label}; arrow keys read cells`,
      style: `height:${rows * cellHeight}px`,
    },
    canvas,
    html("span", { class: "cell", hidden: "" }),
  );
  const reading = html("p", { class: "reading", "aria-live": "polite" });
  const draw = () => {
    const scale = Math.max(1, Math.round(1800 / columns));
    const tall = Math.max(1, Math.round((cellHeight * 1800) / 1080));
    [canvas.width, canvas.height] = [columns * scale, rows * tall];
    const context = canvas.getContext("2d");
    const colour = ramp(spec.colours ?? "--heat");
    const none = getComputedStyle(document.documentElement)
      .getPropertyValue(spec.blank ?? "--heat-none")
      .trim();
    for (let row = 0; row < rows; row++) {
      for (let column = 0; column < columns; column++) {
        const share = spec.shade(row, column);
        context.fillStyle = share == null ? none : `rgb(${colour(share).map(Math.round).join(" ")})`;
        context.fillRect(column * scale, row * tall, scale, tall);
      }
    }
  };
  redraws.set(spec.id, draw);
  draw();
  followCell(spec, box, reading);
  show(
    spec.id,
    heatLegend(spec),
    html("div", { class: "map" }, sideLabels(spec, cellHeight), html("div", {}, box, footLabels(spec))),
    reading,
  );
}

function followCell({ rows, columns, read }, box, reading) {
  const frame = box.querySelector(".cell");
  let [row, column] = [0, -1];
  const moveTo = (nextRow, nextColumn) => {
    [row, column] = [Math.max(0, Math.min(rows - 1, nextRow)), Math.max(0, Math.min(columns - 1, nextColumn))];
    Object.assign(frame.style, {
      left: `${(100 * column) / columns}%`,
      top: `${(100 * row) / rows}%`,
      width: `${100 / columns}%`,
      height: `${100 / rows}%`,
    });
    frame.hidden = false;
    reading.textContent = read(row, column);
  };
  const steps = {
    ArrowRight: [0, 1],
    ArrowLeft: [0, -1],
    ArrowDown: [1, 0],
    ArrowUp: [-1, 0],
    Home: [0, -columns],
    End: [0, columns],
    PageUp: [-rows, 0],
    PageDown: [rows, 0],
  };
  box.addEventListener("keydown", (event) => {
    if (!(event.key in steps)) return;
    event.preventDefault();
    moveTo(row + steps[event.key][0], column + steps[event.key][1]);
  });
  box.addEventListener("pointermove", (event) => {
    const area = box.getBoundingClientRect();
    moveTo(
      Math.floor(((event.clientY - area.top) / area.height) * rows),
      Math.floor(((event.clientX - area.left) / area.width) * columns),
    );
  });
  box.addEventListener("pointerleave", () => {
    if (document.activeElement !== box) [frame.hidden, reading.textContent] = [true, ""];
  });
}

/** Indices that leave `room` pixels between labels. */
const thinned = (length, pixels, room) => {
  const step = [1, 2, 4, 8, 16, 32, 64, 128].find((candidate) => (candidate * pixels) / length >= room) ?? length;
  return range(Math.ceil(length / step)).map((index) => index * step);
};

function sideLabels({ rows, rowTitle, rowLabel }, cellHeight) {
  const labels = thinned(rows, rows * cellHeight, 15).map((row) =>
    html("span", { style: `top:${((row + 0.5) * 100) / rows}%` }, rowLabel ? rowLabel(row) : String(row)),
  );
  return html(
    "div",
    { class: "side", "aria-hidden": "true", style: `height:${rows * cellHeight}px` },
    html("i", {}, rowTitle),
    ...labels,
  );
}

function footLabels({ columns, columnTitle, columnLabel, width = 1040 }) {
  const labels = thinned(columns, width, 44).map((column) =>
    html(
      "span",
      { style: `left:${((column + 0.5) * 100) / columns}%` },
      columnLabel ? columnLabel(column) : String(column),
    ),
  );
  return html("div", { class: "foot", "aria-hidden": "true" }, ...labels, html("i", {}, columnTitle));
}

function heatLegend({ scale, scaleTitle, none, blank = "--heat-none", colours = "--heat" }) {
  const strip = html(
    "div",
    { class: `strip ${colours.slice(2)}` },
    ...scale.map(({ share, label }) => html("span", { style: `left:${100 * share}%` }, label)),
  );
  return html(
    "div",
    { class: "heat-legend" },
    html("b", {}, scaleTitle),
    strip,
    none ? html("span", { class: "none" }, html("i", { style: `background:var(${blank})` }), none) : null,
  );
}
