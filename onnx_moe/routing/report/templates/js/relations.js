// How choices hang together: from layer to layer, within a token, and what predictors make of it.

// Uses below which the followers of an expert say little.
const ENOUGH_USES = 10;

const PREDICTOR_LOOKS = ["a", "b", "c", "d", "e", "f"];

/** The chosen layer, or, for all layers, the one that depends most on the layer before. */
function linkedLayer(links, state) {
  if (state.layer != null && links[state.layer]) return state.layer;
  const bits = links.map((link) => link?.mutual_information_bits ?? -1);
  return bits.indexOf(Math.max(...bits));
}

function drawTransitions(profile, state) {
  const layer = linkedLayer(profile.transitions.per_layer, state);
  drawInformation(profile, layer);
  byId("transition-name").textContent =
    `From layer ${layer - 1} to layer ${layer}${state.layer == null ? ", the strongest link" : ""}`;
  const links = linksInto(profile, layer);
  drawLinkMap(profile, layer, links);
  drawLinkTables(profile, layer, links);
}

function drawInformation(profile, layer) {
  const links = profile.transitions.per_layer;
  show(
    "information",
    chart({
      label: "Information from the layer before",
      height: 240,
      series: [
        {
          name: "mutual information",
          look: "a",
          bars: true,
          values: links.map((link) => link?.mutual_information_bits ?? null),
        },
      ],
      marks: [{ x: layer, label: `layer ${layer}` }],
      x: { values: range(links.length), label: "layer", format: String, read: (at) => `Layer ${at}` },
      y: { label: "bits that the layer before tells", format: significant },
    }),
    tableOf("Table: information from the layer before", ["layer", "bits", "recall of the table at k"], () =>
      links.map((link, at) => [
        at,
        link ? fixed(link.mutual_information_bits, 3) : "–",
        percent(profile.predictability.per_layer_from_previous[at]),
      ]),
    ),
  );
}

/** For each expert of the layer before, its likeliest followers: the probability, and how many times the usual that is. */
function linksInto(profile, layer) {
  const { top, tokens } = profile.transitions.per_layer[layer];
  const k = profile.model.top_k;
  const { share } = profile.maps.all;
  return top.flatMap((row, source) =>
    row.map(([target, probability]) => ({
      source,
      target,
      probability,
      lift: probability / (share[layer][target] * k),
      uses: share[layer - 1][source] * k * tokens,
    })),
  );
}

function drawLinkMap(profile, layer, links) {
  const experts = profile.model.num_experts;
  const cells = new Map(links.map((link) => [link.source * experts + link.target, link]));
  const highest = Math.max(2, ...links.filter(({ uses }) => uses >= ENOUGH_USES).map(({ lift }) => lift));
  const shade = (lift) => Math.log2(Math.max(1, lift)) / Math.log2(highest);
  heatMap({
    id: "transition-map",
    rows: experts,
    columns: experts,
    rowTitle: `expert of layer ${layer - 1}`,
    columnTitle: `expert of layer ${layer}`,
    label: `Transitions from layer ${layer - 1} to layer ${layer}`,
    none: "not among the four likeliest",
    blank: "--surface",
    scaleTitle: "times as likely as usual",
    cellHeight: Math.max(1, Math.min(18, 384 / experts)),
    width: 520,
    scale: range(Math.floor(Math.log2(highest)) + 1).map((step) => ({
      share: shade(2 ** step),
      label: String(2 ** step),
    })),
    shade: (row, column) => {
      const link = cells.get(row * experts + column);
      return link ? shade(link.lift) : null;
    },
    read: (row, column) => {
      const link = cells.get(row * experts + column);
      const text = link
        ? `${percent(link.probability)}, ${significant(link.lift)} times as likely as usual`
        : "not among the four likeliest";
      return `Expert ${row} of layer ${layer - 1}, then expert ${column} of layer ${layer}: ${text}.`;
    },
  });
}

function drawLinkTables(profile, layer, links) {
  const headings = [`expert of layer ${layer - 1}`, `expert of layer ${layer}`, "follows in", "times the usual"];
  const strongest = links
    .filter(({ uses }) => uses >= ENOUGH_USES)
    .sort((a, b) => b.lift - a.lift)
    .slice(0, 12);
  const highest = Math.max(1, ...strongest.map(({ lift }) => lift));
  show(
    "transition-top",
    table(
      headings,
      strongest.map(({ source, target, probability, lift }) => [
        source,
        target,
        percent(probability),
        bar(lift / highest, `${significant(lift)}×`),
      ]),
    ),
  );
  show(
    "transition-table",
    tableOf(`Table: layer ${layer - 1} to layer ${layer}`, headings, () =>
      links.map(({ source, target, probability, lift }) => [source, target, percent(probability), significant(lift)]),
    ),
  );
}

function drawCooccurrence(profile, state) {
  const one = state.layer;
  const pairs =
    one == null
      ? profile.cooccurrence.strongest_pairs
      : profile.cooccurrence.per_layer[one].top.map((pair) => ({ ...pair, layer: one }));
  const shown = pairs.slice(0, 8);
  const highest = Math.max(...shown.map((pair) => pair.lift), 1);
  byId("cooccurrence-name").textContent =
    one == null ? "Strongest pairs of all layers" : `Strongest pairs of layer ${one}`;
  const headings = ["layer", "experts", "together", "lift"];
  const row = ({ experts, count: times, lift, layer }, last) => [
    layer,
    `${experts[0]} and ${experts[1]}`,
    count(times),
    last,
  ];
  show(
    "cooccurrence",
    table(
      headings,
      shown.map((pair) => row(pair, bar(pair.lift / highest, `${significant(pair.lift)}×`))),
    ),
    tableOf(`Table: ${pairs.length} pairs`, headings, () => pairs.map((pair) => row(pair, significant(pair.lift)))),
  );
}

function drawPredictors(profile, state) {
  const { scores, budgets } = profile.predictors;
  const names = [...new Set(scores.map((score) => score.predictor))];
  const at = (name, budget) => scores.find((score) => score.predictor === name && score.budget === budget);
  const recall = (score) => (state.layer == null ? score?.recall : score?.per_layer_recall[state.layer]);
  names.sort((a, b) => (recall(at(b, budgets[0])) ?? 0) - (recall(at(a, budgets[0])) ?? 0));
  const [k, twice] = budgets;
  show(
    "predictor-table",
    table(
      [
        "predictor",
        `recall, ${k} guesses`,
        `recall, ${twice} guesses`,
        "precision",
        "gate mass found",
        "whole set found",
      ],
      names.map((name) => {
        const score = at(name, k);
        const shares = [recall(score), recall(at(name, twice)), score.precision, score.mass_recall, score.whole_set];
        return [name, ...shares.map((share) => (share == null ? "–" : bar(share, percent(share))))];
      }),
    ),
  );
  byId("predictors-name").textContent =
    state.layer == null ? "All layers" : `Recall of layer ${state.layer}; the other columns of all layers`;
  const shown = names.slice(0, PREDICTOR_LOOKS.length);
  show(
    "predictor-layers",
    chart({
      label: `Recall at ${k} guesses by layer`,
      width: 1120,
      height: 280,
      series: shown.map((name, index) => ({
        name,
        look: PREDICTOR_LOOKS[index],
        values: at(name, k).per_layer_recall,
      })),
      marks: state.layer == null ? [] : [{ x: state.layer, label: `layer ${state.layer}` }],
      x: { values: range(profile.model.num_layers), label: "layer", format: String, read: (layer) => `Layer ${layer}` },
      y: { label: `recall at ${k} guesses`, format: percentTick, read: percent },
    }),
    tableOf(`Table: recall at ${k} guesses`, ["layer", ...shown], () =>
      range(profile.model.num_layers).map((layer) => [
        layer,
        ...shown.map((name) => percent(at(name, k).per_layer_recall[layer])),
      ]),
    ),
  );
}
