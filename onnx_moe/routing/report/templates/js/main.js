// Ties the controls to the views.

const profile = JSON.parse(byId("profile").textContent);

const state = {
  get layer() {
    const value = byId("layer").value;
    return value === "all" ? null : Number(value);
  },
  /** The chosen phase where `section` has it, else the one that it has. */
  phaseOf: (section) =>
    section[byId("phase").value] ? byId("phase").value : Object.keys(section).find((phase) => section[phase]),
};

// A view is drawn where the template has a place for it: it leaves out what the profile does not know.
const VIEWS = [
  ["cache-chart", drawCache, ["budget"]],
  ["cache-table", drawCacheTable, []],
  ["operating-point", drawOperatingPoint, ["budget", "bandwidth", "computing"]],
  ["expert-map", drawExperts, ["phase", "measure", "order", "scale"]],
  ["concentration-chart", drawConcentration, ["phase", "layer"]],
  ["layer-figures", drawLayers, ["layer"]],
  ["overlap", drawOverlap, ["phase", "layer"]],
  ["drift", drawDrift, ["phase", "layer"]],
  ["transition-map", drawTransitions, ["layer"]],
  ["cooccurrence", drawCooccurrence, ["layer"]],
  ["predictor-table", drawPredictors, ["layer"]],
  ["balance-map", drawBalance, ["phase"]],
].filter(([place]) => byId(place));

for (const [, draw, controls] of VIEWS) {
  draw(profile, state);
  for (const id of controls) byId(id)?.addEventListener("input", () => draw(profile, state));
}
redrawOnSchemeChange();

byId("save").addEventListener("click", () => {
  const link = html("a", {
    download: "routing-profile.json",
    href: URL.createObjectURL(new Blob([byId("profile").textContent], { type: "application/json" })),
  });
  link.click();
  URL.revokeObjectURL(link.href);
});
