// Which experts are chosen: heat map, concentration, and the figures of each layer.

const MEASURES = {
  share: {
    name: () => "Selection share",
    none: "never chosen",
    values: (_, map) => map.share,
    phase: (_, phase) => phase,
    read: () => "",
  },
  mass: {
    name: () => "Gate mass",
    none: "no gate mass",
    values: (_, map) => map.mass,
    phase: (_, phase) => phase,
    read: () => "",
  },
  misses: {
    name: ({ cache }) => `Share of a layer’s misses, with ${count(cache.misses.capacity)} experts in memory,`,
    none: "never missing",
    values: ({ cache }) => cache.misses.share,
    phase: ({ cache }) => cache.phase,
    read: ({ cache: { misses } }, row, expert) =>
      `, ${percent(misses.share[row][expert])} of its ${significant(misses.per_token[row])} misses a token` +
      (misses.bytes_per_token ? ` (${bytes(misses.bytes_per_token[row])})` : ""),
  },
};

function drawExperts(profile, state) {
  const phase = state.phaseOf(profile.maps);
  const map = profile.maps[phase];
  const { num_experts: experts, num_layers: layers } = profile.model;
  const measure = MEASURES[byId("measure").value];
  const values = measure.values(profile, map);
  const sorted = byId("order").value === "share";
  const order = values.map((row) => {
    const ids = range(experts);
    return sorted ? ids.sort((a, b) => row[b] - row[a] || a - b) : ids;
  });
  const most = Math.max(...values.map((row) => Math.max(...row))) * experts;
  const logarithmic = byId("scale").value === "log";
  const shade = logarithmic ? (times) => (Math.log2(times) + 4) / (Math.log2(most) + 4) : (times) => times / most;
  const marks = logarithmic
    ? range(Math.floor(Math.log2(most)) + 5)
        .map((step) => 2 ** (step - 4))
        .filter((_, step) => step % 2 === 0)
    : ticks(0, most, 6);
  heatMap({
    id: "expert-map",
    rows: layers,
    columns: experts,
    rowTitle: "layer",
    columnTitle: sorted ? "experts, most chosen first" : "expert",
    label: `${measure.name(profile)} of each expert in each layer`,
    none: measure.none,
    scaleTitle: "times an even share",
    scale: marks.map((times) => ({
      share: shade(times),
      label: times < 1 ? `1/${Math.round(1 / times)}` : significant(times),
    })),
    shade: (row, column) => {
      const value = values[row][order[row][column]];
      return value > 0 ? shade(value * experts) : null;
    },
    read: (row, column) => {
      const expert = order[row][column];
      const mass = map.mass ? `, ${percent(map.mass[row][expert])} of its gate mass` : "";
      return `Layer ${row}, expert ${expert}: ${percent(map.share[row][expert])} of the layer’s selections${mass}${measure.read(profile, row, expert)}; ${significant(values[row][expert] * experts)} times an even share.`;
    },
  });
  show(
    "expert-table",
    tableOf(
      `Table: ${measure.name(profile)} by layer (${measure.phase(profile, phase)} tokens)`,
      ["layer", "foremost experts", "top 1", "top 8", measure.none],
      () =>
        values.map((row, layer) => {
          const ranked = range(experts).sort((a, b) => row[b] - row[a]);
          const top = ranked.slice(0, 8);
          return [
            layer,
            top.map((expert) => `${expert} (${percent(row[expert])})`).join(", "),
            percent(row[top[0]]),
            percent(top.reduce((sum, expert) => sum + row[expert], 0)),
            row.filter((value) => value === 0).length,
          ];
        }),
    ),
  );
}

function drawConcentration(profile, state) {
  const phase = state.phaseOf(profile.concentration);
  const { experts_percent: grid, per_layer: layers, all } = profile.concentration[phase];
  const chosen = state.layer == null ? all : layers[state.layer];
  const whose = state.layer == null ? "all layers together" : `layer ${state.layer}`;
  const share = (values) => values.map((value) => value / 100);
  const series = [{ name: "ranked on the same tokens", look: "a", values: share(chosen.in_sample) }];
  if (chosen.held_out)
    series.push({
      name: "ranked on the first half, measured on the second",
      look: "b",
      values: share(chosen.held_out),
    });
  series.push({ name: "all experts alike", look: "even", values: share(grid) });
  drawCover(profile, state);
  show(
    "concentration-chart",
    chart({
      label: `Concentration, ${whose}, ${phase} tokens`,
      series,
      quiet: layers.map((layer) => share(layer.in_sample)),
      quietName: "each layer",
      x: {
        values: share(grid),
        label: "most chosen experts",
        format: percentTick,
        low: 0,
        high: 1,
        read: (value) => `The top ${percent(value)} of the experts`,
      },
      y: { label: `share of selections, ${whose}`, format: percentTick, read: percent, high: 1 },
    }),
    tableOf(
      `Table: concentration (${phase} tokens)`,
      ["experts", ...["same tokens", "held out"].slice(0, chosen.held_out ? 2 : 1)],
      () =>
        grid.map((value, index) => [
          percent(value / 100),
          percent(chosen.in_sample[index] / 100),
          ...(chosen.held_out ? [percent(chosen.held_out[index] / 100)] : []),
        ]),
    ),
  );
}

function drawCover(profile, state) {
  const rows = profile.per_layer;
  show(
    "cover-chart",
    chart({
      label: "Experts that cover 80 % of the selections, by layer",
      series: [
        ["95", "c"],
        ["80", "a"],
        ["50", "b"],
      ].map(([share, look]) => ({ name: `for ${share} %`, look, values: rows.map((row) => row.experts_for[share]) })),
      marks: state.layer == null ? [] : [{ x: state.layer, label: `layer ${state.layer}` }],
      x: { values: rows.map((row) => row.layer), label: "layer", format: String, read: (layer) => `Layer ${layer}` },
      y: {
        label: "experts needed to cover a share of the selections",
        format: String,
        high: profile.model.num_experts,
      },
    }),
  );
}

const LAYER_FIGURES = [
  ["entropy", "Entropy (1 = even)", 2],
  ["gini", "Gini (0 = even)", 2],
  ["load_balance_cv_all", "CV of the load (0 = even)", 2],
  ["load_balancing", "Load-balancing value (1 = balanced)", 2],
  ["max_over_mean", "Busiest expert, times the mean", 1],
  ["active_experts", "Experts in use", 0],
];

function drawLayers(profile, state) {
  const rows = profile.per_layer;
  const layers = rows.map((row) => row.layer);
  show(
    "layer-figures",
    ...LAYER_FIGURES.map(([key, name, digits]) =>
      chart({
        label: `${name} by layer`,
        width: 372,
        height: 190,
        series: [{ name, look: "a", bars: true, values: rows.map((row) => row[key]) }],
        marks: state.layer == null ? [] : [{ x: state.layer, label: `layer ${state.layer}` }],
        x: { values: layers, label: "layer", format: String, read: (layer) => `Layer ${layer}` },
        y: {
          label: name,
          format: significant,
          read: (value) => fixed(value, digits),
          high: key === "entropy" || key === "gini" ? 1 : undefined,
        },
      }),
    ),
  );
  show(
    "layer-table",
    tableOf(
      "Table: every layer",
      [
        "layer",
        "tokens",
        "in use",
        "dead",
        "unseen",
        "entropy",
        "Gini",
        "CV",
        "balance",
        "max ÷ mean",
        "experts for 50 %",
        "80 %",
        "95 %",
        "node",
      ],
      () =>
        rows.map((row) => [
          row.layer,
          count(row.tokens),
          row.active_experts,
          row.dead_experts,
          row.unseen_experts,
          fixed(row.entropy, 3),
          fixed(row.gini, 3),
          fixed(row.load_balance_cv_all, 2),
          fixed(row.load_balancing, 2),
          fixed(row.max_over_mean, 1),
          row.experts_for["50"],
          row.experts_for["80"],
          row.experts_for["95"],
          row.name,
        ]),
    ),
  );
}
