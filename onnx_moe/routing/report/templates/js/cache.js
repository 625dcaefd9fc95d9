// What a cache of experts would do: hit rate by budget, and what a chosen budget means for a token.

const POLICY_NAMES = {
  lru: "LRU",
  "decayed-lfu": "decayed LFU",
  belady: "Belady (knows the future)",
  static: "pinned by the warm-up",
};
const SHORT_NAMES = { lru: "LRU", "decayed-lfu": "decayed LFU", belady: "Belady" };
const POLICY_LOOKS = { lru: "a", "decayed-lfu": "b", belady: "c", static: "d" };

/** The value of a curve at a capacity: between two measured ones, on the line that joins them. */
function hitRate({ capacity, hit_rate: rates }, at) {
  const above = capacity.findIndex((value) => value >= at);
  if (above < 0) return rates.at(-1);
  if (above === 0) return capacity[0] === at ? rates[0] : null;
  const share = (at - capacity[above - 1]) / (capacity[above] - capacity[above - 1]);
  return rates[above - 1] + share * (rates[above] - rates[above - 1]);
}

const policyName = ({ policy }) => POLICY_NAMES[policy] ?? policy;

const chosenCapacity = ({ bank_experts: bank }) => Math.round((byId("budget").value / 100) * bank);

/** Every capacity that some curve has. */
const capacities = ({ curves }) => [...new Set(curves.flatMap((curve) => curve.capacity))].sort((a, b) => a - b);

function drawCache({ cache }) {
  const { curves, token_cycle_experts: cycle, least_experts: least, bank_experts: bank, expert_bytes: size } = cache;
  const grid = capacities(cache);
  const unit = size ? size / 1e9 : 1;
  const memory = (capacity) => (size ? bytes(capacity * size) : `${count(capacity)} experts`);
  const mark = (capacity, look, label, low) => ({
    x: capacity * unit,
    look,
    label: `${label}: ${memory(capacity)}`,
    low,
  });
  const targets = cache.targets.filter((target) => target.capacity);
  show(
    "cache-chart",
    chart({
      label: "Hit rate by budget",
      width: 760,
      height: 480,
      series: curves.map((curve) => ({
        name: policyName(curve),
        look: POLICY_LOOKS[curve.policy] ?? "e",
        values: grid.map((at) => hitRate(curve, at)),
      })),
      zone: least * unit,
      marks: [
        mark(cycle, "cliff", "token cycle"),
        ...targets.map((target) => mark(target.capacity, "target", percent(target.hit_rate), true)),
        mark(chosenCapacity(cache), "budget", "your budget", true),
      ],
      x: {
        values: grid.map((at) => at * unit),
        label: size ? "memory for experts (GB)" : "experts in memory",
        format: significant,
        low: 0,
        high: bank * unit,
        read: (at) => `With ${memory(Math.round(at / unit))} (${percent(at / unit / bank)} of the experts)`,
      },
      y: {
        label: `share of lookups that find their expert in memory (${cache.phase})`,
        format: percentTick,
        read: percent,
        high: 1,
      },
    }),
  );
}

function drawCacheTable({ cache }) {
  const { curves, bank_experts: bank, expert_bytes: size } = cache;
  const headings = ["experts", ...(size ? ["memory"] : []), "of all", ...curves.map(policyName)];
  const rates = (at) => curves.map((curve) => percent(hitRate(curve, at)));
  show(
    "cache-table",
    tableOf("Table: hit rate by budget", headings, () =>
      capacities(cache).map((at) => [count(at), ...(size ? [bytes(at * size)] : []), percent(at / bank), ...rates(at)]),
    ),
  );
}

/** The operating point: a budget and a disk, and what they mean for a token. */
function drawOperatingPoint({ cache }) {
  const { curves, least_experts: least, lookups_per_token: lookups, bank_experts: bank, expert_bytes: size } = cache;
  const capacity = chosenCapacity(cache);
  const budget = `${size ? `${bytes(capacity * size)}, ` : ""}${count(capacity)} of ${count(bank)} experts (${percent(capacity / bank)})`;
  byId("budget-reading").textContent = budget;
  byId("budget").setAttribute("aria-valuetext", budget);
  const rate = Number(byId("bandwidth")?.value) * 1e9;
  const shown = curves.filter((curve) => curve.policy !== "static");
  const misses = shown.map((curve) =>
    hitRate(curve, capacity) == null ? null : (1 - hitRate(curve, capacity)) * lookups,
  );
  const row = (name, of) => [name, ...misses.map((value) => (value == null ? "–" : of(value)))];
  const seconds = (value) => (value * size) / rate;
  const computing = Number(byId("computing")?.value) / 1e3;
  const whole = (value) => seconds(value) + computing;
  show(
    "operating-point",
    table(
      ["a token", ...shown.map(({ policy }) => SHORT_NAMES[policy] ?? policy)],
      [
        row("hits", (value) => percent(1 - value / lookups)),
        row("misses", significant),
        ...(size ? [row("read", (value) => bytes(value * size))] : []),
        ...(size && rate > 0
          ? [
              row("reading takes", (value) => `${significant(seconds(value) * 1e3)} ms`),
              row("tokens/s at most", (value) => (whole(value) > 0 ? significant(1 / whole(value)) : "no limit")),
            ]
          : []),
      ],
    ),
  );
  byId("below-cycle").hidden = capacity >= least;
}
