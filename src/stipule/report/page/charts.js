// Charts as inline SVG, each with a title, a description in words and its numbers as a table.

const WIDE = 380, HIGH = 210, LEFT = 46, RIGHT = 10, TOP = 10, BOTTOM = 26;
const DASHES = ["", "6 3", "2 2", "8 3 2 3", "1 3", "10 4"];

const runColour = (index) => `var(--run-${index % 6})`;
const runDash = (index) => DASHES[index % 6];

function scale(low, high, from, to, log) {
  const f = log ? Math.log10 : (v) => v;
  const span = f(high) - f(low) || 1;
  const place = (v) => from + ((f(v) - f(low)) / span) * (to - from);
  place.inverse = (p) => low + ((p - from) / (to - from)) * (high - low);
  return place;
}

function ticks(low, high, log) {
  if (log) {
    const found = [];
    const marks = high / low < 300 ? [1, 2, 5] : [1];
    for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++) found.push(...marks.map((m) => Number(`${m}e${e}`)));
    const inside = found.filter((v) => v >= low * 0.999 && v <= high * 1.001);
    return inside.length > 7 ? inside.filter((_, i) => i % Math.ceil(inside.length / 7) === 0) : inside;
  }
  const rough = (high - low) / 4 || 1;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * unit).find((s) => s >= rough) || unit;
  const found = [];
  for (let v = Math.ceil(low / step - 1e-9) * step; v <= high + step * 1e-6; v += step) found.push(Number(v.toPrecision(12)));
  return found;
}

function axes(x, y, xTicks, yTicks, format) {
  const lines = yTicks.map((v) => svg("line", { x1: LEFT, x2: WIDE - RIGHT, y1: y(v), y2: y(v), class: "grid" }));
  const left = yTicks.map((v) => svg("text", { x: LEFT - 5, y: y(v) + 3.5, "text-anchor": "end" }, format(v)));
  const below = xTicks.map((v) => svg("text", { x: x(v), y: HIGH - 10, "text-anchor": "middle" }, short(v)));
  return svg("g", { class: "axes", "aria-hidden": "true" }, lines, left, below);
}

function frame(title, description, ...children) {
  return svg("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", "aria-label": `${title}. ${description}` },
    svg("title", {}, title), svg("desc", {}, description), children);
}

function card(title, keys, glossary, ...children) {
  const explained = help(keys, glossary);
  return html("figure", { class: "card" }, html("figcaption", {}, title, explained && explained[0]), explained && explained[1], children);
}

function path(points, x, y) {
  let line = "", pen = "M";
  for (const [a, b] of points) {
    if (b === null || b === undefined) { pen = "M"; continue; }
    line += `${pen}${x(a).toFixed(1)} ${y(b).toFixed(1)}`;
    pen = "L";
  }
  return line;
}

// Lines over steps. series: {name, run, x, y, low?, high?, faint?, dots?}; limit: {value, words} shades what is beyond.
function lineChart(spec, series, glossary) {
  const drawn = series.filter((s) => s.y.some((v) => v !== null));
  const all = drawn.flatMap((s) => [...s.y, ...(s.low || []), ...(s.high || [])]).filter((v) => v !== null);
  const positive = all.filter((v) => v > 0);
  const limit = spec.limit;
  const reach = limit && spec.log ? limit.value : 0; // a limit far above is kept in the picture by a logarithmic scale
  const log = spec.log && positive.length > 0 && Math.max(reach, ...positive) / Math.min(...positive) > 8;
  let low = log ? Math.min(...positive) : Math.min(spec.from ?? Infinity, ...all);
  let high = Math.max(spec.to ?? -Infinity, ...all);
  if (limit && (log || limit.value <= high * 2)) high = Math.max(high, limit.value * (log ? 1.6 : 1.08));
  if (spec.percent) high = Math.min(high, 1);
  if (high === low) { high = low + (Math.abs(low) || 1) * 0.5; low -= log ? 0 : (Math.abs(low) || 1) * 0.5 * (spec.from === undefined); }
  const first = Math.min(...drawn.flatMap((s) => s.x)), last = Math.max(...drawn.flatMap((s) => s.x));
  const x = scale(first, last === first ? first + 1 : last, LEFT, WIDE - RIGHT, false);
  const y = scale(low, high, HIGH - BOTTOM, TOP, log);
  const clamp = (v) => (v === null || v === undefined ? null : log ? Math.max(v, low) : v);
  const format = spec.percent ? percent : short;

  const shapes = [];
  if (limit && limit.value < high && limit.value >= low) {
    shapes.push(svg("rect", { x: LEFT, y: TOP, width: WIDE - LEFT - RIGHT, height: Math.max(0, y(limit.value) - TOP), class: "alarm-band" }));
    shapes.push(svg("line", { x1: LEFT, x2: WIDE - RIGHT, y1: y(limit.value), y2: y(limit.value), class: "alarm-line" }));
    shapes.push(svg("text", { x: WIDE - RIGHT - 3, y: y(limit.value) + 11, "text-anchor": "end", class: "alarm-words" }, `alarm above ${format(limit.value)}`));
  }
  shapes.push(axes(x, y, ticks(first, last, false).filter(Number.isInteger), ticks(low, high, log), format));
  for (const s of drawn) {
    if (!s.low) continue;
    const there = s.x.map((v, i) => [v, clamp(s.low[i]), clamp(s.high[i])]).filter((p) => p[1] !== null && p[2] !== null);
    const ring = [...there.map((p) => [p[0], p[2]]), ...there.reverse().map((p) => [p[0], p[1]])];
    shapes.push(svg("path", { d: `${path(ring, x, y)}Z`, class: "band", fill: runColour(s.run) }));
  }
  for (const s of drawn) {
    const points = s.x.map((v, i) => [v, clamp(s.y[i])]);
    if (s.dots) {
      shapes.push(...points.filter((p) => p[1] !== null).map((p) => svg("circle", { cx: x(p[0]), cy: y(p[1]), r: 3, fill: "var(--card)", stroke: runColour(s.run), "stroke-width": 1.8 })));
    } else {
      shapes.push(svg("path", { d: path(points, x, y), class: s.faint ? "faint" : "line", stroke: runColour(s.run), "stroke-dasharray": s.faint ? "" : runDash(s.run) }));
      const there = (p) => p !== undefined && p[1] !== null; // a point between gaps makes no line
      const alone = points.filter((p, i) => there(p) && !there(points[i - 1]) && !there(points[i + 1]));
      if (!s.faint) shapes.push(alone.map((p) => svg("circle", { cx: x(p[0]), cy: y(p[1]), r: 2.5, fill: runColour(s.run) })));
    }
  }
  const told = drawn.filter((s) => !s.faint);
  const words = told.map((s) => {
    const there = s.x.map((v, i) => [v, s.y[i]]).filter((p) => p[1] !== null);
    const values = there.map((p) => p[1]);
    return `${s.name}: ${format(values[0])} at step ${there[0][0]}, ${format(values[values.length - 1])} at step ${there[there.length - 1][0]}, ` +
      `lowest ${format(Math.min(...values))}, highest ${format(Math.max(...values))}`;
  });
  const cursor = svg("line", { y1: TOP, y2: HIGH - BOTTOM, class: "cursor", visibility: "hidden" });
  const picture = frame(spec.title, `${words.join("; ")}.`, shapes, cursor);
  const readout = html("p", { class: "readout", "aria-hidden": "true" }, "\u00a0");
  picture.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect();
    const step = x.inverse(((event.clientX - box.left) / box.width) * WIDE);
    const found = told.map((s) => {
      let best = -1;
      s.x.forEach((v, i) => { if (s.y[i] !== null && (best < 0 || Math.abs(v - step) < Math.abs(s.x[best] - step))) best = i; });
      return [s, best];
    }).filter((pair) => pair[1] >= 0);
    if (!found.length) return;
    const at = x(found[0][0].x[found[0][1]]);
    cursor.setAttribute("x1", at);
    cursor.setAttribute("x2", at);
    cursor.setAttribute("visibility", "visible");
    readout.textContent = `step ${found[0][0].x[found[0][1]]} · ` + found.map(([s, i]) => `${s.name} ${format(s.y[i])}` +
      (s.low ? ` (${format(s.low[i])} to ${format(s.high[i])})` : "")).join(" · ");
  });
  picture.addEventListener("pointerleave", () => { cursor.setAttribute("visibility", "hidden"); readout.textContent = "\u00a0"; });
  const rows = () => told.flatMap((s) => s.x.map((v, i) => [s.name, v, format(s.y[i]), ...(s.low ? [`${format(s.low[i])} to ${format(s.high[i])}`] : [])]).filter((row) => row[2] !== "–"));
  const heads = ["", "step", spec.title, ...(told.some((s) => s.low) ? ["95 % interval"] : [])];
  return card(spec.title, spec.keys, glossary, picture, readout, spec.note ? html("p", { class: "small" }, spec.note) : null, tableOnDemand("Data table", heads, rows));
}

// One box for each run.
function boxChart(title, boxes, keys, glossary) {
  const positive = boxes.flatMap((b) => [b.least, b.low, b.middle, b.high, b.most]).filter((v) => v > 0);
  if (!positive.length) return null;
  const least = Math.min(...positive), most = Math.max(...positive);
  const log = most / least > 20;
  const y = scale(log ? least : 0, most === least ? least * 2 : most, HIGH - BOTTOM, TOP, log);
  const wide = Math.min(60, (WIDE - LEFT - RIGHT) / boxes.length / 2);
  const clamp = (v) => (log ? Math.max(v, least) : v);
  const shapes = boxes.map((b, i) => {
    const middle = LEFT + ((WIDE - LEFT - RIGHT) * (i + 0.5)) / boxes.length;
    const colour = runColour(b.run), at = (v) => y(clamp(v));
    return svg("g", { stroke: colour, "stroke-width": 1.6, fill: "none" },
      svg("line", { x1: middle, x2: middle, y1: at(b.most), y2: at(b.high) }), svg("line", { x1: middle, x2: middle, y1: at(b.low), y2: at(b.least) }),
      svg("rect", { x: middle - wide / 2, width: wide, y: at(b.high), height: Math.max(1, at(b.low) - at(b.high)), fill: colour, "fill-opacity": 0.18 }),
      svg("line", { x1: middle - wide / 2, x2: middle + wide / 2, y1: at(b.middle), y2: at(b.middle), "stroke-width": 3 }),
      svg("path", { d: `M${middle} ${at(b.mean) - 4}l4 7h-8Z`, fill: colour, stroke: "none" }),
      svg("text", { x: middle, y: HIGH - 10, "text-anchor": "middle", stroke: "none" }, b.name.slice(0, 60 / boxes.length)));
  });
  const grid = axes((v) => v, y, [], ticks(log ? least : 0, most, log), short);
  const words = boxes.map((b) => `${b.name}: median ${short(b.middle)}, quartiles ${short(b.low)} and ${short(b.high)}, mean ${short(b.mean)} over ${b.steps} steps`).join("; ");
  const heads = ["run", "least", "lower quartile", "median", "upper quartile", "most", "mean"];
  return card(title, keys, glossary, frame(title, `${words}.`, grid, shapes), html("p", { class: "small" }, "Box: quartiles and median over the steps; triangle: mean; whiskers: least and most."),
    tableOnDemand("Data table", heads, () => boxes.map((b) => [b.name, ...[b.least, b.low, b.middle, b.high, b.most, b.mean].map(short)])));
}

// Shares of a step stacked over the steps.
function areaChart(title, x0, parts, keys, glossary) {
  const totals = x0.map((_, i) => parts.reduce((sum, part) => sum + (part.y[i] || 0), 0));
  const high = Math.max(...totals) || 1;
  const x = scale(x0[0], x0.length > 1 ? x0[x0.length - 1] : x0[0] + 1, LEFT, WIDE - RIGHT, false), y = scale(0, high, HIGH - BOTTOM, TOP, false);
  let base = x0.map(() => 0);
  const shapes = parts.map((part, index) => {
    const top = base.map((v, i) => v + (part.y[i] || 0));
    const ring = [...x0.map((v, i) => [v, top[i]]), ...x0.map((v, i) => [v, base[i]]).reverse()];
    base = top;
    return svg("path", { d: `${path(ring, x, y)}Z`, fill: `var(--part-${index})`, class: "area" });
  });
  const sum = totals.reduce((a, b) => a + b, 0) || 1;
  const share = (part) => part.y.reduce((a, b) => a + (b || 0), 0) / sum;
  const legend = html("ul", { class: "keys" }, parts.map((part, i) => html("li", {}, html("span", { class: `swatch part-${i}` }), `${part.name} ${percent(share(part))}`)));
  const words = `${parts.map((part) => `${part.name} ${percent(share(part))}`).join(", ")}; ${short(sum / totals.length)} seconds a step on average`;
  return card(title, keys, glossary, frame(title, `${words}.`, shapes, axes(x, y, ticks(x0[0], x0[x0.length - 1], false).filter(Number.isInteger), ticks(0, high, false), short)), legend,
    tableOnDemand("Data table", ["step", ...parts.map((part) => part.name)], () => x0.map((v, i) => [v, ...parts.map((part) => short(part.y[i]))])));
}

// What pruning saved: one bar for each run.
function savingsChart(title, bars, glossary) {
  const pieces = [["spent", "spent"], ["temporal", "saved by temporal pruning"], ["spatial", "saved by spatial pruning"], ["beyond", "saved by rows that ended early"]];
  const tall = 26, room = HIGH - TOP - BOTTOM, gap = Math.min(46, room / bars.length);
  const high = Math.max(...bars.map((b) => Math.max(b.unpruned, b.spent + b.pregeneration)));
  const x = scale(0, high, LEFT, WIDE - RIGHT, false);
  const shapes = bars.flatMap((b, i) => {
    let from = 0;
    const top = TOP + i * gap;
    const drawn = pieces.map(([key], index) => {
      const width = Math.max(0, b[key]);
      const bar = svg("rect", { x: x(from), y: top + 12, width: x(width) - x(0), height: Math.min(tall, gap - 16), fill: `var(--part-${index})`, class: "area" });
      from += width;
      return bar;
    });
    return [svg("text", { x: LEFT, y: top + 8, stroke: "none" }, b.name), ...drawn];
  });
  const grid = svg("g", { class: "axes" }, ticks(0, high, false).map((v) => svg("text", { x: x(v), y: HIGH - 10, "text-anchor": "middle" }, short(v))));
  const sentence = (b) => `${b.name}: ${short(b.spent)} of ${short(b.unpruned)} model calls spent (${percent(b.spent / b.unpruned)}); spatial pruning saved ${short(b.spatial)}, ` +
    `temporal pruning ${short(b.temporal)}` + (b.beyond > 0 ? `, rows that ended early ${short(b.beyond)}` : b.beyond < 0 ? `; second attempts with hints took ${short(-b.beyond)} more` : "") +
    (b.pregeneration ? `; making the anchors took ${short(b.pregeneration)}, not in the bar` : "");
  const legend = html("ul", { class: "keys" }, pieces.map(([key, words], i) => bars.some((b) => b[key] > 0) ? html("li", {}, html("span", { class: `swatch part-${i}` }), words) : null));
  return card(title, ["nfe/rollout"], glossary, frame(title, `${bars.map(sentence).join(". ")}.`, shapes, grid), legend, html("ul", { class: "small" }, bars.map((b) => html("li", {}, `${sentence(b)}.`))),
    tableOnDemand("Data table", ["run", "unpruned", ...pieces.map((p) => p[1]), "making anchors"], () => bars.map((b) => [b.name, b.unpruned, ...pieces.map((p) => b[p[0]]), b.pregeneration])));
}
