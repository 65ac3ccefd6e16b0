// Charts as inline SVG. Each has a title, a text description and its numbers as a table.

const WIDTH = 380, HEIGHT = 210, LEFT = 46, RIGHT = 10, TOP = 10, BOTTOM = 26;
const DASHES = ["", "6 3", "2 2", "8 3 2 3", "1 3", "10 4"];

const runColour = (index) => `var(--run-${index % 6})`;
const runDash = (index) => DASHES[index % 6];

// Maps values in [low, high] to pixels in [from, to].
function scale(low, high, from, to, log) {
  const transform = log ? Math.log10 : (v) => v;
  const span = transform(high) - transform(low) || 1;
  const toPixel = (v) => from + ((transform(v) - transform(low)) / span) * (to - from);
  toPixel.inverse = (p) => low + ((p - from) / (to - from)) * (high - low);
  return toPixel;
}

function ticks(low, high, log) {
  const values = [];
  if (log) {
    const factors = high / low < 300 ? [1, 2, 5] : [1];
    for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++) values.push(...factors.map((m) => Number(`${m}e${e}`)));
    const inside = values.filter((v) => v >= low * 0.999 && v <= high * 1.001);
    return inside.length > 7 ? inside.filter((_, i) => i % Math.ceil(inside.length / 7) === 0) : inside;
  }
  const rough = (high - low) / 4 || 1;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * unit).find((s) => s >= rough) || unit;
  for (let v = Math.ceil(low / step - 1e-9) * step; v <= high + step * 1e-6; v += step) values.push(Number(v.toPrecision(12)));
  return values;
}

function axes(x, y, xTicks, yTicks, format) {
  const lines = yTicks.map((v) => svg("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(v), y2: y(v), class: "grid" }));
  const yLabels = yTicks.map((v) => svg("text", { x: LEFT - 5, y: y(v) + 3.5, "text-anchor": "end" }, format(v)));
  const xLabels = xTicks.map((v) => svg("text", { x: x(v), y: HEIGHT - 10, "text-anchor": "middle" }, short(v)));
  return svg("g", { class: "axes", "aria-hidden": "true" }, lines, yLabels, xLabels);
}

function frame(title, description, ...children) {
  return svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${title}. ${description}` },
    svg("title", {}, title), svg("desc", {}, description), children);
}

function card(title, keys, glossary, ...children) {
  const explanation = help(keys, glossary);
  return html("figure", { class: "card" }, html("figcaption", {}, title, explanation && explanation[0]), explanation && explanation[1], children);
}

function path(points, x, y) {
  let line = "", command = "M";
  for (const [a, b] of points) {
    if (b === null || b === undefined) { command = "M"; continue; }
    line += `${command}${x(a).toFixed(1)} ${y(b).toFixed(1)}`;
    command = "L";
  }
  return line;
}

// Lines over steps. series: {name, run, x, y, low?, high?, faint?, dots?}; limit: {value}, above which the chart is shaded.
function lineChart(spec, series, glossary) {
  const drawn = series.filter((s) => s.y.some((v) => v !== null));
  const values = drawn.flatMap((s) => [...s.y, ...(s.low || []), ...(s.high || [])]).filter((v) => v !== null);
  const positive = values.filter((v) => v > 0);
  const limit = spec.limit;
  const logLimit = limit && spec.log ? limit.value : 0; // a logarithmic scale also shows a limit far above the values
  const log = spec.log && positive.length > 0 && Math.max(logLimit, ...positive) / Math.min(...positive) > 8;
  let low = log ? Math.min(...positive) : Math.min(spec.from ?? Infinity, ...values);
  let high = Math.max(spec.to ?? -Infinity, ...values);
  if (limit && (log || limit.value <= high * 2)) high = Math.max(high, limit.value * (log ? 1.6 : 1.08));
  if (spec.percent) high = Math.min(high, 1);
  if (high === low) { high = low + (Math.abs(low) || 1) * 0.5; low -= log ? 0 : (Math.abs(low) || 1) * 0.5 * (spec.from === undefined); }
  const first = Math.min(...drawn.flatMap((s) => s.x)), last = Math.max(...drawn.flatMap((s) => s.x));
  const x = scale(first, last === first ? first + 1 : last, LEFT, WIDTH - RIGHT, false);
  const y = scale(low, high, HEIGHT - BOTTOM, TOP, log);
  const clamp = (v) => (v === null || v === undefined ? null : log ? Math.max(v, low) : v);
  const format = spec.percent ? percent : short;

  const shapes = [];
  if (limit && limit.value < high && limit.value >= low) {
    shapes.push(svg("rect", { x: LEFT, y: TOP, width: WIDTH - LEFT - RIGHT, height: Math.max(0, y(limit.value) - TOP), class: "alarm-band" }));
    shapes.push(svg("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(limit.value), y2: y(limit.value), class: "alarm-line" }));
    shapes.push(svg("text", { x: WIDTH - RIGHT - 3, y: y(limit.value) + 11, "text-anchor": "end", class: "alarm-label" }, `alarm above ${format(limit.value)}`));
  }
  shapes.push(axes(x, y, ticks(first, last, false).filter(Number.isInteger), ticks(low, high, log), format));
  for (const s of drawn) {
    if (!s.low) continue;
    const points = s.x.map((v, i) => [v, clamp(s.low[i]), clamp(s.high[i])]).filter((p) => p[1] !== null && p[2] !== null);
    const outline = [...points.map((p) => [p[0], p[2]]), ...points.reverse().map((p) => [p[0], p[1]])];
    shapes.push(svg("path", { d: `${path(outline, x, y)}Z`, class: "band", fill: runColour(s.run) }));
  }
  for (const s of drawn) {
    const points = s.x.map((v, i) => [v, clamp(s.y[i])]);
    if (s.dots) {
      shapes.push(...points.filter((p) => p[1] !== null).map((p) => svg("circle", { cx: x(p[0]), cy: y(p[1]), r: 3, fill: "var(--card)", stroke: runColour(s.run), "stroke-width": 1.8 })));
    } else {
      shapes.push(svg("path", { d: path(points, x, y), class: s.faint ? "faint" : "line", stroke: runColour(s.run), "stroke-dasharray": s.faint ? "" : runDash(s.run) }));
      const hasValue = (p) => p !== undefined && p[1] !== null; // a point between two gaps is drawn as a circle, not as a line
      const isolated = points.filter((p, i) => hasValue(p) && !hasValue(points[i - 1]) && !hasValue(points[i + 1]));
      if (!s.faint) shapes.push(isolated.map((p) => svg("circle", { cx: x(p[0]), cy: y(p[1]), r: 2.5, fill: runColour(s.run) })));
    }
  }
  const described = drawn.filter((s) => !s.faint);
  const descriptions = described.map((s) => {
    const points = s.x.map((v, i) => [v, s.y[i]]).filter((p) => p[1] !== null);
    const ys = points.map((p) => p[1]);
    return `${s.name}: ${format(ys[0])} at step ${points[0][0]}, ${format(ys[ys.length - 1])} at step ${points[points.length - 1][0]}, ` +
      `lowest ${format(Math.min(...ys))}, highest ${format(Math.max(...ys))}`;
  });
  const cursor = svg("line", { y1: TOP, y2: HEIGHT - BOTTOM, class: "cursor", visibility: "hidden" });
  const chart = frame(spec.title, `${descriptions.join("; ")}.`, shapes, cursor);
  const readout = html("p", { class: "readout", "aria-hidden": "true" }, "\u00a0");
  chart.addEventListener("pointermove", (event) => {
    const box = chart.getBoundingClientRect();
    const step = x.inverse(((event.clientX - box.left) / box.width) * WIDTH);
    const nearest = described.map((s) => {
      let best = -1;
      s.x.forEach((v, i) => { if (s.y[i] !== null && (best < 0 || Math.abs(v - step) < Math.abs(s.x[best] - step))) best = i; });
      return [s, best];
    }).filter((pair) => pair[1] >= 0);
    if (!nearest.length) return;
    const nearestStep = nearest[0][0].x[nearest[0][1]];
    cursor.setAttribute("x1", x(nearestStep));
    cursor.setAttribute("x2", x(nearestStep));
    cursor.setAttribute("visibility", "visible");
    readout.textContent = `step ${nearestStep} · ` + nearest.map(([s, i]) => `${s.name} ${format(s.y[i])}` +
      (s.low ? ` (${format(s.low[i])} to ${format(s.high[i])})` : "")).join(" · ");
  });
  chart.addEventListener("pointerleave", () => { cursor.setAttribute("visibility", "hidden"); readout.textContent = "\u00a0"; });
  const rows = () => described.flatMap((s) => s.x.map((v, i) => [s.name, v, format(s.y[i]), ...(s.low ? [`${format(s.low[i])} to ${format(s.high[i])}`] : [])]).filter((row) => row[2] !== "–"));
  const heads = ["run", "step", spec.title, ...(described.some((s) => s.low) ? ["95 % interval"] : [])];
  return card(spec.title, spec.keys, glossary, chart, readout, spec.note ? html("p", { class: "small" }, spec.note) : null, tableOnDemand("Data table", heads, rows));
}

// One box per run.
function boxChart(title, boxes, keys, glossary) {
  const positive = boxes.flatMap((b) => [b.min, b.q1, b.median, b.q3, b.max]).filter((v) => v > 0);
  if (!positive.length) return null;
  const low = Math.min(...positive), high = Math.max(...positive);
  const log = high / low > 20;
  const y = scale(log ? low : 0, high === low ? low * 2 : high, HEIGHT - BOTTOM, TOP, log);
  const boxWidth = Math.min(60, (WIDTH - LEFT - RIGHT) / boxes.length / 2);
  const clamp = (v) => (log ? Math.max(v, low) : v);
  const shapes = boxes.map((b, i) => {
    const center = LEFT + ((WIDTH - LEFT - RIGHT) * (i + 0.5)) / boxes.length;
    const colour = runColour(b.run), toPixel = (v) => y(clamp(v));
    return svg("g", { stroke: colour, "stroke-width": 1.6, fill: "none" },
      svg("line", { x1: center, x2: center, y1: toPixel(b.max), y2: toPixel(b.q3) }), svg("line", { x1: center, x2: center, y1: toPixel(b.q1), y2: toPixel(b.min) }),
      svg("rect", { x: center - boxWidth / 2, width: boxWidth, y: toPixel(b.q3), height: Math.max(1, toPixel(b.q1) - toPixel(b.q3)), fill: colour, "fill-opacity": 0.18 }),
      svg("line", { x1: center - boxWidth / 2, x2: center + boxWidth / 2, y1: toPixel(b.median), y2: toPixel(b.median), "stroke-width": 3 }),
      svg("path", { d: `M${center} ${toPixel(b.mean) - 4}l4 7h-8Z`, fill: colour, stroke: "none" }),
      svg("text", { x: center, y: HEIGHT - 10, "text-anchor": "middle", stroke: "none" }, b.name.slice(0, 60 / boxes.length)));
  });
  const grid = axes((v) => v, y, [], ticks(log ? low : 0, high, log), short);
  const description = boxes.map((b) => `${b.name}: median ${short(b.median)}, quartiles ${short(b.q1)} and ${short(b.q3)}, mean ${short(b.mean)} over ${b.steps} steps`).join("; ");
  const heads = ["run", "minimum", "lower quartile", "median", "upper quartile", "maximum", "mean"];
  return card(title, keys, glossary, frame(title, `${description}.`, grid, shapes), html("p", { class: "small" }, "Box: quartiles and median over the steps. Triangle: mean. Whiskers: minimum and maximum."),
    tableOnDemand("Data table", heads, () => boxes.map((b) => [b.name, ...[b.min, b.q1, b.median, b.q3, b.max, b.mean].map(short)])));
}

// Seconds of the phases of a step, stacked, over the steps.
function areaChart(title, steps, phases, keys, glossary) {
  const totals = steps.map((_, i) => phases.reduce((sum, phase) => sum + (phase.y[i] || 0), 0));
  const high = Math.max(...totals) || 1;
  const x = scale(steps[0], steps.length > 1 ? steps[steps.length - 1] : steps[0] + 1, LEFT, WIDTH - RIGHT, false), y = scale(0, high, HEIGHT - BOTTOM, TOP, false);
  let base = steps.map(() => 0);
  const shapes = phases.map((phase, index) => {
    const top = base.map((v, i) => v + (phase.y[i] || 0));
    const outline = [...steps.map((v, i) => [v, top[i]]), ...steps.map((v, i) => [v, base[i]]).reverse()];
    base = top;
    return svg("path", { d: `${path(outline, x, y)}Z`, fill: `var(--part-${index})`, class: "area" });
  });
  const sum = totals.reduce((a, b) => a + b, 0) || 1;
  const fraction = (phase) => phase.y.reduce((a, b) => a + (b || 0), 0) / sum;
  const legend = html("ul", { class: "legend-list" }, phases.map((phase, i) => html("li", {}, html("span", { class: `swatch part-${i}` }), `${phase.name} ${percent(fraction(phase))}`)));
  const description = `${phases.map((phase) => `${phase.name} ${percent(fraction(phase))}`).join(", ")}; ${short(sum / totals.length)} seconds a step on average`;
  return card(title, keys, glossary, frame(title, `${description}.`, shapes, axes(x, y, ticks(steps[0], steps[steps.length - 1], false).filter(Number.isInteger), ticks(0, high, false), short)), legend,
    tableOnDemand("Data table", ["step", ...phases.map((phase) => phase.name)], () => steps.map((v, i) => [v, ...phases.map((phase) => short(phase.y[i]))])));
}

// Forward passes that were spent and that pruning saved: one bar per run.
function savingsChart(title, bars, glossary) {
  const segments = [["spent", "spent"], ["temporal", "saved by temporal pruning"], ["spatial", "saved by spatial pruning"], ["eos", "saved by rows that ended early"], ["confidence", "saved by confidence"]];
  const barHeight = 26, gap = Math.min(46, (HEIGHT - TOP - BOTTOM) / bars.length);
  const high = Math.max(...bars.map((b) => Math.max(b.unpruned, b.spent + b.pregeneration)));
  const x = scale(0, high, LEFT, WIDTH - RIGHT, false);
  const shapes = bars.flatMap((b, i) => {
    let start = 0;
    const top = TOP + i * gap;
    const rects = segments.map(([key], index) => {
      const width = Math.max(0, b[key]);
      const rect = svg("rect", { x: x(start), y: top + 12, width: x(width) - x(0), height: Math.min(barHeight, gap - 16), fill: `var(--part-${index})`, class: "area" });
      start += width;
      return rect;
    });
    return [svg("text", { x: LEFT, y: top + 8, stroke: "none" }, b.name), ...rects];
  });
  const grid = svg("g", { class: "axes" }, ticks(0, high, false).map((v) => svg("text", { x: x(v), y: HEIGHT - 10, "text-anchor": "middle" }, short(v))));
  const sentence = (b) => `${b.name}: ${short(b.spent)} of ${short(b.unpruned)} forward passes spent (${percent(b.spent / b.unpruned)}); spatial pruning saved ${short(b.spatial)}, ` +
    `temporal pruning ${short(b.temporal)}` + (b.eos > 0 ? `, rows that ended early ${short(b.eos)}` : "") + (b.confidence > 0 ? `, confidence ${short(b.confidence)}` : "") + (b.hints > 0 ? `; second attempts with hints took ${short(b.hints)} more` : "") +
    (b.pregeneration ? `; making the anchors took ${short(b.pregeneration)}, not in the bar` : "");
  const legend = html("ul", { class: "legend-list" }, segments.map(([key, label], i) => bars.some((b) => b[key] > 0) ? html("li", {}, html("span", { class: `swatch part-${i}` }), label) : null));
  return card(title, ["nfe/rollout"], glossary, frame(title, `${bars.map(sentence).join(". ")}.`, shapes, grid), legend, html("ul", { class: "small" }, bars.map((b) => html("li", {}, `${sentence(b)}.`))),
    tableOnDemand("Data table", ["run", "unpruned", ...segments.map((s) => s[1]), "second attempts", "making anchors"], () => bars.map((b) => [b.name, b.unpruned, ...segments.map((s) => b[s[0]]), b.hints, b.pregeneration])));
}
