// Elements, numbers as people read them, and the few helpers that every view uses.

const byId = (id) => document.getElementById(id);

function creator(create) {
  return (tag, attributes = {}, ...children) => {
    const node = create(tag);
    for (const [name, value] of Object.entries(attributes)) if (value != null) node.setAttribute(name, value);
    node.append(...children.filter((child) => child != null));
    return node;
  };
}

const html = creator((tag) => document.createElement(tag));
const svg = creator((tag) => document.createElementNS("http://www.w3.org/2000/svg", tag));

const fixed = (value, digits) => (value == null ? "–" : value.toFixed(digits));
const count = (value) => value.toLocaleString("en-US");
const significant = (value) => (value == null ? "–" : String(Number(value.toPrecision(3))));

function percent(share) {
  if (share == null) return "–";
  const value = 100 * share;
  if (value > 0 && value < 0.001) return "< 0.001 %";
  if (value > 0 && value < 0.095) return `${Number(value.toPrecision(1))} %`;
  if (value >= 99.95 && value < 100) return "> 99.9 %";
  return `${value.toFixed((value > 0 && value < 9.95) || (value >= 99.5 && value < 100) ? 1 : 0)} %`;
}

const percentTick = (share) => `${Number((100 * share).toFixed(2))} %`;

function bytes(value) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (value >= 999.5 && unit < units.length - 1) [value, unit] = [value / 1000, unit + 1];
  return `${value.toFixed(value < 9.95 && unit ? 2 : value < 99.5 && unit ? 1 : 0)} ${units[unit]}`;
}

const mean = (values) => {
  const known = values.filter((value) => value != null);
  return known.length ? known.reduce((sum, value) => sum + value, 0) / known.length : null;
};

/** The mean of rows, column by column. */
const meanRow = (rows) => rows[0].map((_, column) => mean(rows.map((row) => row[column])));

const range = (length) => Array.from({ length }, (_, index) => index);

function show(id, ...nodes) {
  byId(id).replaceChildren(...nodes);
}

/** A closed table of a figure's numbers: its rows are made when it is opened. */
function tableOf(summary, headings, rows) {
  const details = html("details", { class: "numbers" }, html("summary", {}, summary));
  details.addEventListener("toggle", () => {
    if (details.open && !details.querySelector("table")) details.append(scrolling(summary, table(headings, rows())));
  });
  return details;
}

const scrolling = (label, content) =>
  html("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": label }, content);

function table(headings, rows) {
  const cell = (value, index) => (index ? html("td", {}, value) : html("th", { scope: "row" }, value));
  return html(
    "table",
    {},
    html("thead", {}, html("tr", {}, ...headings.map((heading) => html("th", { scope: "col" }, heading)))),
    html(
      "tbody",
      {},
      ...rows.map((row) =>
        html("tr", {}, ...row.map((value, index) => cell(value instanceof Node ? value : String(value), index))),
      ),
    ),
  );
}

/** A bar as long as a share, with its figure beside it. */
const bar = (share, text) =>
  html(
    "span",
    { class: "bar" },
    html("b", {}, text),
    html("span", {}, html("i", { style: `width:${(100 * Math.min(1, Math.max(0, share))).toFixed(1)}%` })),
  );
