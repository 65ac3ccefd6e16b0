// The denoising of a group of responses, forward pass by forward pass, with one slider for all.

const view = { group: 0, member: 0, pass: 0, columns: null, timer: null };

// Opens the first group whose rewards differ: only such a group has advantages to compare.
function openFirst(groups) {
  const differing = groups.findIndex((group) => new Set(group.responses.map((r) => r.r)).size > 1);
  const index = Math.max(0, differing);
  Object.assign(view, { group: index, member: 0, pass: groups.length ? lastPass(groups[index]) : 0 });
}

const lastPass = (group) => Math.max(0, ...group.responses.flatMap((r) => r.v));
const visible = (text) => text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/^ +$/, (s) => "␣".repeat(s.length)) || "∅";

function responseText(response, tokenTexts) {
  if (response.x !== undefined) return response.x;
  const tokens = response.n < response.t.length ? response.t.slice(0, response.n - 1) : response.t;
  return tokens.map((index) => tokenTexts[index]).join("");
}

// Orange is low confidence, blue is high: colour-blind readers can tell them apart. The tooltip has the number.
function confidenceClass(permille) {
  const level = Math.max(0, Math.min(9, Math.floor(permille / 100)));
  return `confidence-${permille >= 990 ? 10 : level}`;
}

function tokenCell(response, index, tokenTexts, showReadout) {
  const unmaskStep = response.v[index];
  const text = visible(tokenTexts[response.t[index]] ?? "?");
  const isEnd = response.n < response.t.length && index === response.n - 1;
  const isAfterEnd = response.n < response.t.length && index >= response.n;
  const isCut = (response.cut || []).includes(unmaskStep);
  const beginsBlock = (response.b || []).includes(index);
  const classes = beginsBlock ? ["token", "block-start"] : ["token"];
  if (unmaskStep > view.pass) return html("span", { class: [...classes, "masked"].join(" ") }, "·");
  let description = `token ${index + 1}: "${text}", `;
  if (unmaskStep < 0) {
    classes.push("anchor");
    description += "anchor, set before the first forward pass";
  } else {
    classes.push(confidenceClass(response.q[index]));
    if (unmaskStep === view.pass) classes.push("just-unmasked");
    description += `unmasked in forward pass ${unmaskStep + 1}, probability ${(response.q[index] / 1000).toFixed(3)}`;
  }
  if (isCut) { classes.push("cut"); description += ", one-step cut"; }
  if (beginsBlock) description += ", first of its block";
  if (isEnd) { classes.push("end"); description += ", end of text"; }
  if (isAfterEnd) { classes.push("after-end"); description += ", after the end of text"; }
  return html("span", { class: classes.join(" "), title: description, onpointerdown: () => showReadout(description) }, isEnd ? "end" : isAfterEnd ? "·" : text);
}

function memberCard(data, group, index, showReadout) {
  const response = group.responses[index], tokenTexts = data.rollouts.token_texts;
  const columns = view.columns ?? data.runs[group.run].columns;
  const isSelected = index === view.member;
  const grid = html("div", { class: "tokens", role: "img", "aria-label": `Response ${index + 1} after forward pass ${view.pass + 1}: ${response.t.map((t, i) => (response.v[i] > view.pass ? "·" : tokenTexts[t])).join("")}` },
    response.t.map((_, i) => tokenCell(response, i, tokenTexts, showReadout)));
  if (columns) {
    grid.classList.add("fixed");
    grid.style.gridTemplateColumns = `repeat(${columns}, minmax(1.9em, max-content))`;
  }
  const parts = Object.entries(response.p).map(([name, value]) => `${name} ${short(value)}`).join(" · ");
  return html("div", { class: `member${isSelected ? " selected" : ""}`, "aria-current": isSelected ? "true" : null, onclick: () => { if (view.member !== index) { view.member = index; showPass(data); } } },
    html("p", { class: "rewards" }, html("strong", {}, `${response.c ? "✓ correct" : "✗ wrong"} · reward ${short(response.r)}`), html("br"),
      html("span", { class: "small" }, `advantage ${short(response.a)} · ${parts ? `${parts} · ` : ""}${short(response.f)} forward passes`)),
    grid);
}

// Redraws what depends on the forward pass or the selected response. The slider is kept, so that it can be dragged.
function showPass(data) {
  const group = data.rollouts.groups[view.group];
  const last = lastPass(group);
  view.pass = Math.max(0, Math.min(view.pass, last));
  view.member = Math.min(view.member, group.responses.length - 1);
  const label = `forward pass ${view.pass + 1} of ${last + 1}`;
  const showReadout = (text) => { byId("token-readout").textContent = text; };
  const slider = byId("pass");
  slider.max = String(last);
  slider.value = String(view.pass);
  slider.setAttribute("aria-valuetext", label);
  byId("pass-label").textContent = label;
  byId("play").textContent = view.timer ? "❚❚ pause" : "▶ play";
  replaceChildren(byId("members"), group.responses.map((_, i) => memberCard(data, group, i, showReadout)));
}

function viewerLegend(hasBlocks) {
  const item = (classes, text, label) => html("li", {}, html("span", { class: `token ${classes}` }, text), ` ${label}`);
  return html("ul", { class: "legend-list" }, item("masked", "·", "masked"), item("confidence-1", "a", "low confidence"), item("confidence-5", "a", ""), item("confidence-8", "a", ""), item("confidence-10", "a", "high confidence when unmasked"),
    item("confidence-10 just-unmasked", "a", "unmasked in this forward pass"), item("anchor", "a", "anchor"), item("confidence-10 cut", "a", "one-step cut"), item("confidence-10 end", "end", "end of text"), item("after-end", "·", "after the end of text"),
    hasBlocks ? item("block-start confidence-10", "a", "first token of a block") : null);
}

function drawViewer(data) {
  const groups = data.rollouts.groups;
  const container = byId("denoising");
  if (!groups.length) {
    replaceChildren(container, html("p", { class: "note" }, "No responses were saved with this run; set training.rollouts_every."));
    return;
  }
  view.group = Math.min(view.group, groups.length - 1);
  const group = groups[view.group];
  const focused = container.contains(document.activeElement) ? document.activeElement.id : null;
  const readout = html("p", { class: "readout", id: "token-readout" }, "Point at a token to read its forward pass and probability.");
  const names = groups.map((g, i) => html("option", { value: i }, `${data.runs.length > 1 ? `${data.runs[g.run].name} · ` : ""}step ${g.step} · ${g.responses.filter((r) => r.c).length} of ${g.responses.length} correct · ${g.key.slice(0, 40)}`));
  const groupSelect = html("select", { id: "group", onchange: () => { view.group = Number(groupSelect.value); view.member = 0; view.pass = lastPass(groups[view.group]); drawViewer(data); } }, names);
  groupSelect.value = String(view.group);
  const slider = html("input", { type: "range", id: "pass", min: 0, max: lastPass(group), step: 1, oninput: () => { view.pass = Number(slider.value); showPass(data); } });
  const columnSelect = html("select", { id: "columns", onchange: () => { view.columns = columnSelect.value === "" ? null : Number(columnSelect.value); showPass(data); } },
    [["", "by task"], ["0", "as text"], ["4", "4"], ["8", "8"], ["16", "16"], ["32", "32"]].map(([value, label]) => html("option", { value }, label)));
  columnSelect.value = view.columns === null ? "" : String(view.columns);
  const button = (id, text, label, onclick) => html("button", { type: "button", id, title: label, "aria-label": label, onclick }, text);
  replaceChildren(container,
    html("p", { class: "small" }, "Keys, when the viewer has the focus: ← → previous or next forward pass, ↑ ↓ previous or next response, Home and End first and last forward pass, space plays."),
    html("div", { class: "controls" }, html("label", {}, "Group ", groupSelect), html("label", {}, "Tokens per row ", columnSelect)),
    html("div", { class: "controls" },
      button("before", "◀", "Previous forward pass", () => move(data, -1)), button("play", "", "Play or pause", () => play(data)), button("after", "▶", "Next forward pass", () => move(data, 1)),
      html("label", { class: "wide" }, html("output", { id: "pass-label", "aria-live": "polite" }), slider)),
    html("pre", { class: "prompt" }, group.prompt),
    html("div", { class: "members", id: "members" }), readout, viewerLegend(group.responses.some((response) => response.b)));
  showPass(data);
  if (focused && byId(focused)) byId(focused).focus({ preventScroll: true });
}

function move(data, passes) {
  view.pass += passes;
  showPass(data);
}

function selectResponse(data, offset) {
  const groups = data.rollouts.groups;
  const next = view.member + offset;
  if (next >= 0 && next < groups[view.group].responses.length) {
    view.member = next;
    showPass(data);
  } else if (view.group + offset >= 0 && view.group + offset < groups.length) {
    view.group += offset;
    view.member = offset > 0 ? 0 : groups[view.group].responses.length - 1;
    drawViewer(data);
  }
}

function play(data) {
  if (view.timer) {
    clearInterval(view.timer);
    view.timer = null;
  } else {
    if (view.pass >= lastPass(data.rollouts.groups[view.group])) view.pass = -1;
    view.timer = setInterval(() => {
      move(data, 1);
      if (view.pass >= lastPass(data.rollouts.groups[view.group])) play(data);
    }, 350);
  }
  showPass(data);
}

function addViewerKeys(data) {
  const container = byId("denoising");
  container.tabIndex = 0;
  container.setAttribute("role", "group");
  container.setAttribute("aria-label", "Denoising viewer");
  container.onkeydown = (event) => {
    if (!data().rollouts.groups.length || event.target.tagName === "SELECT" || event.ctrlKey || event.metaKey || event.altKey) return;
    const actions = {
      ArrowRight: () => move(data(), 1), ArrowLeft: () => move(data(), -1),
      ArrowDown: () => selectResponse(data(), 1), ArrowUp: () => selectResponse(data(), -1),
      Home: () => move(data(), -1e9), End: () => move(data(), 1e9),
      " ": event.target.tagName === "BUTTON" ? null : () => play(data()),
    };
    if (!actions[event.key]) return;
    event.preventDefault();
    actions[event.key]();
  };
}
