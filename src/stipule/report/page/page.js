// Puts the page together, and keeps it fresh where a server is asked for news.

let data = JSON.parse(byId("data").textContent);

const SIGNS = { good: "▲", bad: "▼", flat: "●", early: "…" };

function runCard(run, index, many) {
  const look = run.verdict.look.length ? [html("h4", {}, "What to look at"), html("ul", {}, run.verdict.look.map((words) => html("li", { class: words.startsWith("Alarm") ? "alarm" : null }, words)))] : null;
  return html("article", { class: `run ${run.verdict.tone}` },
    many ? html("h3", {}, svg("svg", { viewBox: "0 0 34 8", class: "key", "aria-hidden": "true" }, svg("line", { x1: 1, x2: 33, y1: 4, y2: 4, stroke: runColour(index), "stroke-width": 3, "stroke-dasharray": runDash(index) })), run.name) : null,
    html("p", { class: "verdict" }, html("span", { class: "sign", "aria-hidden": "true" }, SIGNS[run.verdict.tone]), ` ${run.verdict.words}`), look,
    html("p", { class: "small" }, `${run.steps}${run.planned ? ` of ${run.planned}` : ""} steps · ${run.facts.map((pair) => pair.join(" ")).join(" · ")} · stipule ${run.made_by} · ${run.path}`),
    run.made_by !== data.version ? html("p", { class: "note" }, `This run was made by stipule ${run.made_by}, this page by ${data.version}; what the older one did not write down is missing here.`) : null,
    run.notes.map((words) => html("p", { class: "note" }, words)),
    run.recipe ? html("details", { "data-key": `recipe of ${run.name}` }, html("summary", {}, "Recipe"), html("pre", {}, run.recipe)) : null);
}

function draw() {
  replaceChildren(byId("runs"), data.runs.map((run, index) => runCard(run, index, data.runs.length > 1)));
  drawCurves(data);
  drawCosts(data);
  drawTable(data);
  drawStage(data);
}

function theme() {
  const order = ["system", "light", "dark"], button = byId("theme");
  button.onclick = () => {
    const now = document.documentElement.dataset.theme || "system";
    const next = order[(order.indexOf(now) + 1) % order.length];
    if (next === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = next;
    button.textContent = `Theme: ${next}`;
  };
}

// Draws news; what is selected, open, sorted and typed stays.
function renew(fresh) {
  const name = (all, group) => group && `${all.runs[group.run].name} ${group.step} ${group.key}`;
  const chosen = name(data, data.samples.groups[view.group]);
  const place = fresh.samples.groups.findIndex((group) => name(fresh, group) === chosen);
  if (place < 0) openFirst(fresh.samples.groups);
  else view.group = place;
  const open = [...document.querySelectorAll("details[open]")].map((box) => box.dataset.key);
  const input = byId("table").contains(document.activeElement) ? document.activeElement : null;
  const caret = input && input.tagName === "INPUT" ? [input.id, input.selectionStart, input.selectionEnd] : null;
  data = fresh;
  draw();
  document.querySelectorAll("details").forEach((box) => { if (open.includes(box.dataset.key)) box.open = true; });
  if (caret && byId(caret[0])) {
    byId(caret[0]).focus({ preventScroll: true });
    byId(caret[0]).setSelectionRange(caret[1], caret[2]);
  }
}

// Asks for news every few seconds.
function follow() {
  let seen = "";
  const words = byId("live");
  const ask = async () => {
    try {
      const answer = await fetch(`data.json?seen=${encodeURIComponent(seen)}`, { cache: "no-store" });
      if (answer.status === 200) {
        const fresh = await answer.json();
        seen = answer.headers.get("X-Revision") || "";
        renew(fresh);
      }
      words.textContent = `Live: step ${data.runs.map((run) => `${run.steps}${run.planned ? `/${run.planned}` : ""}`).join(", ")}`;
    } catch (error) {
      words.textContent = "The server has stopped; this is its last word.";
    }
    setTimeout(ask, 3000);
  };
  ask();
}

theme();
stageKeys(() => data);
openFirst(data.samples.groups);
draw();
if (data.live && location.protocol.startsWith("http")) follow();
document.documentElement.dataset.ready = "true";
