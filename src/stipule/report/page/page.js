// Draws the page, and redraws it when the server has new data.

let data = JSON.parse(byId("data").textContent);

const SIGNS = { good: "▲", bad: "▼", flat: "●", early: "…" };

function runCard(run, index, several) {
  const checks = run.verdict.checks.length ? [html("h4", {}, "What to check"), html("ul", {}, run.verdict.checks.map((text) => html("li", { class: text.startsWith("Alarm") ? "alarm" : null }, text)))] : null;
  return html("article", { class: `run ${run.verdict.tone}` },
    several ? html("h3", {}, svg("svg", { viewBox: "0 0 34 8", class: "line-sample", "aria-hidden": "true" }, svg("line", { x1: 1, x2: 33, y1: 4, y2: 4, stroke: runColour(index), "stroke-width": 3, "stroke-dasharray": runDash(index) })), run.name) : null,
    html("p", { class: "verdict" }, html("span", { class: "sign", "aria-hidden": "true" }, SIGNS[run.verdict.tone]), ` ${run.verdict.message}`), checks,
    html("p", { class: "small" }, `${run.steps}${run.planned_steps ? ` of ${run.planned_steps}` : ""} steps · ${run.facts.map((pair) => pair.join(" ")).join(" · ")} · stipule ${run.version} · ${run.path}`),
    run.version !== data.version ? html("p", { class: "note" }, `The run was made by stipule ${run.version}, this page by ${data.version}; what the run did not record is missing here.`) : null,
    run.notes.map((text) => html("p", { class: "note" }, text)),
    run.recipe ? html("details", { "data-key": `recipe of ${run.name}` }, html("summary", {}, "Recipe"), html("pre", {}, run.recipe)) : null);
}

function draw() {
  replaceChildren(byId("runs"), data.runs.map((run, index) => runCard(run, index, data.runs.length > 1)));
  drawCurves(data);
  drawCosts(data);
  drawTable(data);
  drawViewer(data);
}

function addThemeButton() {
  const themes = ["system", "light", "dark"], button = byId("theme");
  button.onclick = () => {
    const current = document.documentElement.dataset.theme || "system";
    const next = themes[(themes.indexOf(current) + 1) % themes.length];
    if (next === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = next;
    button.textContent = `Theme: ${next}`;
  };
}

// Draws new data. The selected group, opened details, sorting and typed text are kept.
function update(newData) {
  const groupName = (all, group) => group && `${all.runs[group.run].name} ${group.step} ${group.key}`;
  const selected = groupName(data, data.rollouts.groups[view.group]);
  const index = newData.rollouts.groups.findIndex((group) => groupName(newData, group) === selected);
  if (index < 0) openFirst(newData.rollouts.groups);
  else view.group = index;
  const open = [...document.querySelectorAll("details[open]")].map((box) => box.dataset.key);
  const input = byId("table").contains(document.activeElement) ? document.activeElement : null;
  const caret = input && input.tagName === "INPUT" ? [input.id, input.selectionStart, input.selectionEnd] : null;
  data = newData;
  draw();
  document.querySelectorAll("details").forEach((box) => { if (open.includes(box.dataset.key)) box.open = true; });
  if (caret && byId(caret[0])) {
    byId(caret[0]).focus({ preventScroll: true });
    byId(caret[0]).setSelectionRange(caret[1], caret[2]);
  }
}

// Requests new data every few seconds.
function poll() {
  let revision = "";
  const status = byId("live");
  const request = async () => {
    try {
      const answer = await fetch(`data.json?seen=${encodeURIComponent(revision)}`, { cache: "no-store" });
      if (answer.status === 200) {
        const newData = await answer.json();
        revision = answer.headers.get("X-Revision") || "";
        update(newData);
      }
      status.textContent = `Live: step ${data.runs.map((run) => `${run.steps}${run.planned_steps ? `/${run.planned_steps}` : ""}`).join(", ")}`;
    } catch (error) {
      status.textContent = "The server does not answer; this is the last data it sent.";
    }
    setTimeout(request, 3000);
  };
  request();
}

addThemeButton();
addViewerKeys(() => data);
openFirst(data.rollouts.groups);
draw();
if (data.live && location.protocol.startsWith("http")) poll();
document.documentElement.dataset.ready = "true";
