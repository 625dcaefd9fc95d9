// How routing changes from token to token, between the halves of the run, and from window to window.

function drawOverlap(profile, state) {
  const phase = state.phaseOf(profile.time);
  const time = profile.time[phase];
  const one = state.layer;
  const whose = one == null ? "mean of layers" : `layer ${one}`;
  const chance = one == null ? mean(time.chance) : time.chance[one];
  const overlap = one == null ? meanRow(time.overlap) : time.overlap[one];
  show(
    "overlap",
    chart({
      label: `Overlap by lag, ${whose}, ${phase} tokens`,
      quiet: time.overlap,
      quietName: "each layer",
      series: [
        { name: `overlap, ${whose}`, look: "a", values: overlap },
        { name: "by popularity alone", look: "even", values: time.lags.map(() => chance) },
      ],
      x: {
        values: time.lags,
        label: "tokens apart",
        format: String,
        ticks: time.lags,
        read: (lag) => `${lag} ${lag === 1 ? "token" : "tokens"} apart`,
      },
      y: { label: "share of experts chosen again", format: percentTick, read: percent },
    }),
    tableOf(
      `Table: overlap by lag (${phase} tokens)`,
      ["layer", ...time.lags.map((lag) => `lag ${lag}`), "by popularity"],
      () => time.overlap.map((row, layer) => [layer, ...row.map(percent), percent(time.chance[layer])]),
    ),
  );
  drawReuse(time, phase, one, whose);
}

function drawReuse(time, phase, one, whose) {
  const edges = time.reuse_edges;
  const name = (index) =>
    index + 1 === edges.length
      ? `${edges[index]}+`
      : edges[index + 1] - edges[index] === 1
        ? String(edges[index])
        : `${edges[index]}–${edges[index + 1] - 1}`;
  const counts =
    one == null
      ? edges.map((_, index) => time.reuse_counts.reduce((sum, row) => sum + row[index], 0))
      : time.reuse_counts[one];
  const total = counts.reduce((sum, value) => sum + value, 0) || 1;
  const positions = range(edges.length);
  show(
    "reuse",
    chart({
      label: `Reuse distance, ${whose}, ${phase} tokens`,
      series: [{ name: "share of reuses", look: "a", bars: true, values: counts.map((value) => value / total) }],
      x: {
        values: positions,
        label: "tokens until an expert is chosen again (from)",
        format: (index) => String(edges[index] ?? ""),
        ticks: positions,
        read: (index) => `After ${name(index)} tokens`,
      },
      y: { label: `share of reuses, ${one == null ? "all layers" : whose}`, format: percentTick, read: percent },
    }),
    tableOf(`Table: reuse distance (${phase} tokens)`, ["tokens until reuse", "reuses", "share"], () =>
      counts.map((value, index) => [name(index), count(value), percent(value / total)]),
    ),
  );
}

function drawDrift(profile, state) {
  const phase = state.phaseOf(profile.drift);
  const { per_layer: drift, noise } = profile.drift[phase];
  show(
    "drift",
    chart({
      label: `Drift by layer, ${phase} tokens`,
      height: 240,
      series: [
        { name: "first half against second", look: "a", bars: true, values: drift },
        { name: "what sampling alone gives", look: "b", values: noise },
      ],
      marks: state.layer == null ? [] : [{ x: state.layer, label: `layer ${state.layer}` }],
      x: { values: range(drift.length), label: "layer", format: String, read: (layer) => `Layer ${layer}` },
      y: { label: "Jensen–Shannon divergence (bits)", format: significant },
    }),
    tableOf(`Table: drift (${phase} tokens)`, ["layer", "drift (bits)", "sampling alone"], () =>
      drift.map((value, layer) => [layer, significant(value), significant(noise[layer])]),
    ),
  );
}

function drawBalance(profile, state) {
  const phase = state.phaseOf(profile.balance);
  const { windows, window_tokens: tokens, per_layer: layers } = profile.balance[phase];
  const highest = Math.max(2, ...windows.map((row) => Math.max(...row.filter((value) => value != null))));
  const shade = (value) => Math.log2(Math.max(1, value)) / Math.log2(highest);
  heatMap({
    id: "balance-map",
    rows: layers.length,
    columns: windows.length,
    rowTitle: "layer",
    columnTitle: `windows of ${count(tokens)} tokens`,
    label: "Load-balancing value of each layer in each window",
    colours: "--balance",
    scaleTitle: "load-balancing value",
    none: windows.some((row) => row.includes(null)) ? "no tokens" : null,
    cellHeight: Math.max(4, Math.min(18, Math.round(360 / layers.length))),
    scale: range(Math.floor(Math.log2(highest)) + 1).map((step) => ({
      share: shade(2 ** step),
      label: String(2 ** step),
    })),
    shade: (row, column) => (windows[column][row] == null ? null : shade(windows[column][row])),
    read: (row, column) =>
      `Layer ${row}, tokens ${count(column * tokens)} to ${count((column + 1) * tokens - 1)}: ${fixed(windows[column][row], 2)} (whole run: ${fixed(layers[row], 2)}).`,
  });
  show(
    "balance-table",
    tableOf(
      `Table: load-balancing value by layer (${phase} tokens)`,
      ["layer", "whole run", "lowest window", "highest window"],
      () =>
        layers.map((value, layer) => {
          const column = windows.map((row) => row[layer]).filter((entry) => entry != null);
          return [
            layer,
            fixed(value, 2),
            fixed(column.length ? Math.min(...column) : null, 2),
            fixed(column.length ? Math.max(...column) : null, 2),
          ];
        }),
    ),
  );
}
