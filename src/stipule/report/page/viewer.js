// A response as it appears, model call by model call: a group side by side, one slider for all.

const view = { group: 0, member: 0, call: 0, width: null, timer: null };

// A group whose rewards are all alike has nothing to compare, so the first of the others is opened.
function openFirst(groups) {
  const telling = groups.findIndex((group) => new Set(group.responses.map((r) => r.r)).size > 1);
  const place = Math.max(0, telling);
  Object.assign(view, { group: place, member: 0, call: groups.length ? lastCall(groups[place]) : 0 });
}

const lastCall = (group) => Math.max(0, ...group.responses.flatMap((r) => r.v));
const visible = (piece) => piece.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/^ +$/, (s) => "␣".repeat(s.length)) || "∅";

function textOf(response, pieces) {
  if (response.x !== undefined) return response.x;
  const shown = response.n < response.t.length ? response.t.slice(0, response.n - 1) : response.t;
  return shown.map((index) => pieces[index]).join("");
}

// Orange is unsure, blue is sure: a pair that colour-blind readers tell apart; the number is in the tooltip.
function shade(permille) {
  const level = Math.max(0, Math.min(9, Math.floor(permille / 100)));
  return `sure-${permille >= 990 ? 10 : level}`;
}

function tokenCell(response, index, pieces, say) {
  const when = response.v[index];
  const piece = visible(pieces[response.t[index]] ?? "?");
  const isEnd = response.n < response.t.length && index === response.n - 1;
  const filler = response.n < response.t.length && index >= response.n;
  const cut = (response.cut || []).includes(when);
  if (when > view.call) return html("span", { class: "token hidden-token" }, "·");
  const kinds = ["token"];
  let words = `token ${index + 1}: "${piece}", `;
  if (when < 0) {
    kinds.push("anchor");
    words += "anchor, there from the start";
  } else {
    kinds.push(shade(response.q[index]));
    if (when === view.call) kinds.push("fresh");
    words += `call ${when + 1}, probability ${(response.q[index] / 1000).toFixed(3)}`;
  }
  if (cut) { kinds.push("cut"); words += ", one-step cut"; }
  if (isEnd) { kinds.push("end"); words += ", end of text"; }
  if (filler) { kinds.push("filler"); words += ", after the end of text"; }
  return html("span", { class: kinds.join(" "), title: words, onpointerdown: () => say(words) }, isEnd ? "end" : filler ? "·" : piece);
}

function memberCard(data, group, index, say) {
  const response = group.responses[index];
  const columns = view.width ?? data.runs[group.run].columns;
  const chosen = index === view.member;
  const grid = html("div", { class: "tokens", role: "img", "aria-label": `Response ${index + 1} after call ${view.call + 1}: ${response.t.map((t, i) => (response.v[i] > view.call ? "·" : data.samples.pieces[t])).join("")}` },
    response.t.map((_, i) => tokenCell(response, i, data.samples.pieces, say)));
  if (columns) {
    grid.classList.add("fixed");
    grid.style.gridTemplateColumns = `repeat(${columns}, minmax(1.9em, max-content))`;
  }
  const parts = Object.entries(response.p).map(([name, value]) => `${name} ${short(value)}`).join(" · ");
  return html("div", { class: `member${chosen ? " chosen" : ""}`, "aria-current": chosen ? "true" : null, onclick: () => { if (view.member !== index) { view.member = index; showCall(data); } } },
    html("p", { class: "rewards" }, html("strong", {}, `${response.c ? "✓ right" : "✗ wrong"} · reward ${short(response.r)}`), html("br"),
      html("span", { class: "small" }, `advantage ${short(response.a)} · ${parts ? `${parts} · ` : ""}${short(response.f)} calls`)),
    grid);
}

// What changes with the call or the chosen response; the slider itself stays, so that it can be dragged.
function showCall(data) {
  const group = data.samples.groups[view.group];
  const most = lastCall(group);
  view.call = Math.max(0, Math.min(view.call, most));
  view.member = Math.min(view.member, group.responses.length - 1);
  const words = `call ${view.call + 1} of ${most + 1}`;
  const say = (said) => { byId("token-readout").textContent = said; };
  const slider = byId("call");
  slider.max = String(most);
  slider.value = String(view.call);
  slider.setAttribute("aria-valuetext", words);
  byId("call-words").textContent = words;
  byId("play").textContent = view.timer ? "❚❚ pause" : "▶ play";
  replaceChildren(byId("members"), group.responses.map((_, i) => memberCard(data, group, i, say)));
}

function legendOf() {
  const key = (kind, sign, words) => html("li", {}, html("span", { class: `token ${kind}` }, sign), ` ${words}`);
  return html("ul", { class: "keys" }, key("hidden-token", "·", "hidden"), key("sure-1", "a", "unsure"), key("sure-5", "a", ""), key("sure-8", "a", ""), key("sure-10", "a", "sure when committed"),
    key("sure-10 fresh", "a", "committed in this call"), key("anchor", "a", "anchor"), key("sure-10 cut", "a", "one-step cut"), key("sure-10 end", "end", "end of text"), key("filler", "·", "after it"));
}

function drawStage(data) {
  const groups = data.samples.groups;
  const stage = byId("stage");
  if (!groups.length) {
    replaceChildren(stage, html("p", { class: "note" }, "No responses were saved with this run; set training.rollouts_every."));
    return;
  }
  view.group = Math.min(view.group, groups.length - 1);
  const group = groups[view.group];
  const inside = stage.contains(document.activeElement) ? document.activeElement.id : null;
  const readout = html("p", { class: "readout", id: "token-readout" }, "Point at a token to read its call and probability.");
  const names = groups.map((g, i) => html("option", { value: i }, `${data.runs.length > 1 ? `${data.runs[g.run].name} · ` : ""}step ${g.step} · ${g.responses.filter((r) => r.c).length} of ${g.responses.length} right · ${g.key.slice(0, 40)}`));
  const pick = html("select", { id: "group", onchange: () => { view.group = Number(pick.value); view.member = 0; view.call = lastCall(groups[view.group]); drawStage(data); } }, names);
  pick.value = String(view.group);
  const slider = html("input", { type: "range", id: "call", min: 0, max: lastCall(group), step: 1, oninput: () => { view.call = Number(slider.value); showCall(data); } });
  const widths = html("select", { id: "width", onchange: () => { view.width = widths.value === "" ? null : Number(widths.value); showCall(data); } },
    [["", "by task"], ["0", "as text"], ["4", "4"], ["8", "8"], ["16", "16"], ["32", "32"]].map(([value, words]) => html("option", { value }, words)));
  widths.value = view.width === null ? "" : String(view.width);
  const button = (id, words, label, act) => html("button", { type: "button", id, title: label, "aria-label": label, onclick: act }, words);
  replaceChildren(stage,
    html("p", { class: "small" }, "Keys, once the viewer has the focus: ← → one model call back or on, ↑ ↓ the response before or after, Home and End the first and last call, space plays."),
    html("div", { class: "controls" }, html("label", {}, "Group ", pick), html("label", {}, "Tokens a row ", widths)),
    html("div", { class: "controls" },
      button("before", "◀", "One call back", () => move(data, -1)), button("play", "", "Play or pause", () => play(data)), button("after", "▶", "One call on", () => move(data, 1)),
      html("label", { class: "wide" }, html("output", { id: "call-words", "aria-live": "polite" }), slider)),
    html("pre", { class: "prompt" }, group.prompt),
    html("div", { class: "members", id: "members" }), readout, legendOf());
  showCall(data);
  if (inside && byId(inside)) byId(inside).focus({ preventScroll: true });
}

function move(data, calls) {
  view.call += calls;
  showCall(data);
}

function otherResponse(data, step) {
  const groups = data.samples.groups;
  const next = view.member + step;
  if (next >= 0 && next < groups[view.group].responses.length) {
    view.member = next;
    showCall(data);
  } else if (view.group + step >= 0 && view.group + step < groups.length) {
    view.group += step;
    view.member = step > 0 ? 0 : groups[view.group].responses.length - 1;
    drawStage(data);
  }
}

function play(data) {
  if (view.timer) {
    clearInterval(view.timer);
    view.timer = null;
  } else {
    if (view.call >= lastCall(data.samples.groups[view.group])) view.call = -1;
    view.timer = setInterval(() => {
      move(data, 1);
      if (view.call >= lastCall(data.samples.groups[view.group])) play(data);
    }, 350);
  }
  showCall(data);
}

function stageKeys(data) {
  const stage = byId("stage");
  stage.tabIndex = 0;
  stage.setAttribute("role", "group");
  stage.setAttribute("aria-label", "Denoising viewer");
  stage.onkeydown = (event) => {
    if (!data().samples.groups.length || event.target.tagName === "SELECT" || event.ctrlKey || event.metaKey || event.altKey) return;
    const acts = {
      ArrowRight: () => move(data(), 1), ArrowLeft: () => move(data(), -1),
      ArrowDown: () => otherResponse(data(), 1), ArrowUp: () => otherResponse(data(), -1),
      Home: () => move(data(), -1e9), End: () => move(data(), 1e9),
      " ": event.target.tagName === "BUTTON" ? null : () => play(data()),
    };
    if (!acts[event.key]) return;
    event.preventDefault();
    acts[event.key]();
  };
}
