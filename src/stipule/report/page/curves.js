// The curves of the page.

const CURVES = [
  { title: "Reward", keys: ["reward/mean"], band: "reward/mean", from: 0, note: "Line: moving average. Band: 95 % interval of the mean over the window's steps. Thin line: single steps." },
  { title: "Accuracy", keys: ["reward/accuracy", "eval/solved"], band: "reward/accuracy", eval: true, from: 0, to: 1, percent: true, note: "Band: Wilson's 95 % interval over all rollouts in the window. Circles: greedy, on eval problems." },
  { title: "Variance of the log-probability estimate", variance: true, log: true },
  { title: "Largest probability ratio", keys: ["policy/ratio_max"], log: true },
  { title: "Clip ratio", keys: ["policy/clip_ratio"], from: 0, percent: true },
  { title: "KL to the reference policy", keys: ["policy/kl"], from: 0 },
  { title: "Confidence of unmasked tokens", keys: ["response/confidence"], percent: true },
  { title: "Groups whose rewards differ", keys: ["reward/frac_nonzero_std"], from: 0, to: 1, percent: true },
  { title: "Distinct responses", keys: ["response/distinct"], from: 0, to: 1, percent: true },
  { title: "Groups of equal responses", keys: ["response/copies"], from: 0, percent: true },
  { title: "Empty responses", keys: ["response/empty"], from: 0, to: 1, percent: true },
  { title: "Responses that are the step's most frequent text", keys: ["response/same_text"], from: 0, to: 1, percent: true },
  { title: "Tokens that are one of the step's two most frequent", keys: ["response/few_tokens"], from: 0, to: 1, percent: true },
  { title: "Repeated sequences of four tokens", keys: ["response/repetition"], from: 0, percent: true },
  { title: "Response length (tokens)", keys: ["response/length"], from: 0 },
  { title: "Gradient norm", keys: ["policy/grad_norm"], log: true },
  { title: "Reward without pruning", keys: ["unpruned/reward"], from: 0 },
  { title: "Peak memory (GiB)", keys: ["memory/peak"], from: 0 },
];

function curveSeries(spec, runs) {
  const series = [];
  runs.forEach((run, index) => {
    const curve = (key) => (run.curves.y[key] ? { name: run.name, run: index, x: run.curves.x, y: run.curves.y[key] } : null);
    const key = spec.variance ? run.variance_key : spec.keys[0];
    const band = spec.band && run.bands[spec.band];
    if (band) {
      const steps = curve(key);
      if (steps) series.push({ ...steps, faint: true });
      series.push({ name: run.name, run: index, x: band.x, y: band.mean, low: band.low, high: band.high });
    } else if (curve(key)) {
      series.push(curve(key));
    }
    if (spec.eval && run.curves.y["eval/solved"]) {
      const solved = run.curves.y["eval/solved"], total = run.curves.y["eval/total"] || [];
      const y = solved.map((v, i) => (v === null || !total[i] ? null : v / total[i]));
      series.push({ name: `${run.name}, eval`, run: index, x: run.curves.x, y, dots: true });
    }
  });
  return series;
}

// The lowest limit of the runs, so that no run's alarm is hidden.
function limitOf(keys, runs) {
  const values = runs.flatMap((run) => keys.map((key) => run.limits[key])).filter((v) => v !== undefined);
  return values.length ? { value: Math.min(...values) } : null;
}

function drawCurves(data) {
  const runs = data.runs;
  replaceChildren(byId("legend"), runs.length > 1 ? html("ul", { class: "legend-list" }, runs.map((run, i) =>
    html("li", {}, svg("svg", { viewBox: "0 0 34 8", class: "line-sample", "aria-hidden": "true" }, svg("line", { x1: 1, x2: 33, y1: 4, y2: 4, stroke: runColour(i), "stroke-width": 3, "stroke-dasharray": runDash(i) })), run.name))) : null);
  const cards = CURVES.map((spec) => {
    const series = curveSeries(spec, runs);
    if (!series.some((s) => s.y.some((v) => v !== null))) return null;
    const keys = spec.variance ? [...new Set(runs.map((run) => run.variance_key))] : spec.keys;
    return lineChart({ ...spec, keys, limit: limitOf(keys, runs) }, series, data.glossary);
  });
  const boxes = runs.map((run, index) => (run.variance_box ? { ...run.variance_box, name: run.name, run: index } : null)).filter(Boolean);
  const box = boxes.length ? boxChart("Variance of the estimate over all steps", boxes, [runs[boxes[0].run].variance_key], data.glossary) : null;
  cards.splice(3, 0, box);
  replaceChildren(byId("charts"), cards, cards.some(Boolean) ? null : html("p", { class: "note" }, "There are no curves yet: no step has been recorded."));
}

function drawCosts(data) {
  const cards = [];
  data.runs.slice(0, 4).forEach((run) => {
    const phases = ["rollout", "logps", "update", "reward"].filter((name) => run.curves.y[`time/${name}`]).map((name) => ({ name, y: run.curves.y[`time/${name}`] }));
    if (phases.length) cards.push(areaChart(`Seconds of a step: ${run.name}`, run.curves.x, phases, ["time/rollout"], data.glossary));
  });
  const bars = data.runs.filter((run) => run.savings).map((run) => ({ ...run.savings, name: run.name }));
  if (bars.length) cards.push(savingsChart("Forward passes of the rollouts", bars, data.glossary));
  replaceChildren(byId("cost-charts"), cards, data.runs.length > 4 ? html("p", { class: "small" }, "Seconds are drawn for the first four runs.") : null);
}
