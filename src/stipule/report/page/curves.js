// Which curves the page draws.

const CURVES = [
  { title: "Reward", keys: ["reward/mean"], band: "reward/mean", from: 0, note: "Line: moving mean; band: 95 % interval of the mean over the window's steps; thin: single steps." },
  { title: "Right responses", keys: ["reward/accuracy", "eval/solved"], band: "reward/accuracy", held: true, from: 0, to: 1, percent: true, note: "Band: Wilson's 95 % interval over all responses in the window. Circles: greedy, on held-out problems." },
  { title: "Variance of the likelihood estimate", variance: true, log: true },
  { title: "Largest ratio of a step", keys: ["policy/ratio_max"], log: true },
  { title: "Tokens stopped by the clip", keys: ["policy/clip_ratio"], from: 0, percent: true },
  { title: "Distance to the reference (KL)", keys: ["policy/kl"], from: 0 },
  { title: "Confidence (the reverse of entropy)", keys: ["response/confidence"], percent: true },
  { title: "Groups that teach", keys: ["reward/frac_nonzero_std"], from: 0, to: 1, percent: true },
  { title: "Different responses", keys: ["response/distinct"], from: 0, to: 1, percent: true },
  { title: "Groups of copies", keys: ["response/copies"], from: 0, percent: true },
  { title: "Repetition", keys: ["response/repetition"], from: 0, percent: true },
  { title: "Length of a response", keys: ["response/length"], from: 0 },
  { title: "Gradient norm", keys: ["policy/grad_norm"], log: true },
  { title: "Reward without pruning (audit)", keys: ["unpruned/reward"], from: 0 },
  { title: "Memory, GiB", keys: ["memory/peak"], from: 0 },
];

function curveSeries(spec, runs) {
  const series = [];
  runs.forEach((run, index) => {
    const curve = (key) => (run.curves.y[key] ? { name: run.name, run: index, x: run.curves.x, y: run.curves.y[key] } : null);
    const key = spec.variance ? run.box_key : spec.keys[0];
    const band = spec.band && run.bands[spec.band];
    if (band) {
      const raw = curve(key);
      if (raw) series.push({ ...raw, faint: true });
      series.push({ name: run.name, run: index, x: band.x, y: band.mean, low: band.low, high: band.high });
    } else if (curve(key)) {
      series.push(curve(key));
    }
    if (spec.held && run.curves.y["eval/solved"]) {
      const solved = run.curves.y["eval/solved"], total = run.curves.y["eval/total"] || [];
      const y = solved.map((v, i) => (v === null || !total[i] ? null : v / total[i]));
      series.push({ name: `${run.name}, held out`, run: index, x: run.curves.x, y, dots: true });
    }
  });
  return series;
}

// The lowest limit of the runs, so that the band is never drawn too high.
function limitOf(keys, runs) {
  const values = runs.flatMap((run) => keys.map((key) => run.limits[key])).filter((v) => v !== undefined);
  return values.length ? { value: Math.min(...values) } : null;
}

function drawCurves(data) {
  const shown = data.runs;
  replaceChildren(byId("legend"), shown.length > 1 ? html("ul", { class: "keys" }, shown.map((run, i) =>
    html("li", {}, svg("svg", { viewBox: "0 0 34 8", class: "key", "aria-hidden": "true" }, svg("line", { x1: 1, x2: 33, y1: 4, y2: 4, stroke: runColour(i), "stroke-width": 3, "stroke-dasharray": runDash(i) })), run.name))) : null);
  const cards = CURVES.map((spec) => {
    const series = curveSeries(spec, shown);
    if (!series.some((s) => s.y.some((v) => v !== null))) return null;
    const keys = spec.variance ? [...new Set(shown.map((run) => run.box_key))] : spec.keys;
    return lineChart({ ...spec, keys, limit: limitOf(keys, shown) }, series, data.glossary);
  });
  const boxes = shown.map((run, index) => (run.box ? { ...run.box, name: run.name, run: index } : null)).filter(Boolean);
  const box = boxes.length ? boxChart("Variance of the estimate, all steps", boxes, [boxes.length ? shown[boxes[0].run].box_key : ""], data.glossary) : null;
  cards.splice(3, 0, box);
  replaceChildren(byId("charts"), cards, cards.some(Boolean) ? null : html("p", { class: "note" }, "There are no curves yet: no step has been written down."));
}

function drawCosts(data) {
  const cards = [];
  data.runs.slice(0, 4).forEach((run) => {
    const parts = ["rollout", "logps", "update", "reward"].filter((part) => run.curves.y[`time/${part}`]).map((part) => ({ name: part, y: run.curves.y[`time/${part}`] }));
    if (parts.length) cards.push(areaChart(`Seconds of a step: ${run.name}`, run.curves.x, parts, ["time/rollout"], data.glossary));
  });
  const bars = data.runs.filter((run) => run.savings).map((run) => ({ ...run.savings, name: run.name }));
  if (bars.length) cards.push(savingsChart("Model calls of the rollouts", bars, data.glossary));
  replaceChildren(byId("cost-charts"), cards, data.runs.length > 4 ? html("p", { class: "small" }, "Seconds are drawn for the first four runs.") : null);
}
