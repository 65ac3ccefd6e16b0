// The table of saved responses: sorts by any column, filters by reward, rightness, step and text.

const list = { sort: "step", down: false, most: "", least: "", right: "", text: "", shown: 100 };

function rowsOf(data) {
  const rows = [];
  data.samples.groups.forEach((group, g) => group.responses.forEach((response, m) => rows.push({
    g, m, run: data.runs[group.run].name, step: group.step, key: group.key, reward: response.r, right: response.c ? 1 : 0,
    advantage: response.a ?? 0, length: response.n, calls: response.f ?? 0, text: textOf(response, data.samples.pieces),
  })));
  return rows;
}

function wanted(rows) {
  const limit = (text, none) => (text.trim() === "" || Number.isNaN(Number(text)) ? none : Number(text));
  const least = limit(list.least, -Infinity), most = limit(list.most, Infinity);
  const text = list.text.toLowerCase();
  const found = rows.filter((row) => row.reward >= least && row.reward <= most && (list.right === "" || row.right === Number(list.right)) &&
    (!text || row.text.toLowerCase().includes(text) || row.key.toLowerCase().includes(text)));
  const sign = list.down ? -1 : 1;
  return found.sort((a, b) => sign * (typeof a[list.sort] === "string" ? a[list.sort].localeCompare(b[list.sort]) : a[list.sort] - b[list.sort]) || a.g - b.g || a.m - b.m);
}

function drawTable(data) {
  const rows = rowsOf(data);
  const place = byId("table");
  if (!rows.length) {
    replaceChildren(place, html("p", { class: "note" }, "No responses were saved with this run."));
    return;
  }
  const columns = [...(data.runs.length > 1 ? [["run", "run"]] : []), ["step", "step"], ["key", "problem"], ["reward", "reward"], ["right", "right"], ["advantage", "advantage"], ["length", "tokens"], ["calls", "calls"], ["text", "response"]];
  const number = (id, words) => html("label", {}, `${words} `, html("input", { type: "text", inputmode: "decimal", class: "number", id, value: list[id], oninput: (event) => change({ [id]: event.target.value }) }));
  const right = html("select", { id: "right", onchange: (event) => change({ right: event.target.value }) }, [["", "all"], ["1", "right"], ["0", "wrong"]].map(([value, words]) => html("option", { value }, words)));
  right.value = list.right;
  const head = html("tr"), body = html("tbody"), count = html("p", { class: "small", role: "status", id: "count" }), more = html("button", { type: "button", id: "more", onclick: () => change({ shown: list.shown + 400 }) }, "Show more");

  function change(settings) {
    Object.assign(list, settings);
    const found = wanted(rows);
    replaceChildren(head, columns.map(([key, words]) => html("th", { scope: "col", "aria-sort": list.sort === key ? (list.down ? "descending" : "ascending") : null },
      html("button", { type: "button", "data-sort": key, onclick: () => { change({ sort: key, down: list.sort === key ? !list.down : typeof rows[0][key] === "number" && key !== "step" }); head.querySelector(`[data-sort=${key}]`).focus(); } },
        `${words}${list.sort === key ? (list.down ? " ▼" : " ▲") : ""}`))));
    replaceChildren(body, found.slice(0, list.shown).map((row) => html("tr", {}, columns.map(([key]) => html("td", { class: typeof row[key] === "number" && key !== "right" ? "number" : key === "text" ? "text" : key === "key" ? "problem" : null },
      key === "text" ? html("button", { type: "button", class: "open", title: "Watch it being denoised", onclick: () => openResponse(data, row) }, row.text || "(empty)") : key === "right" ? (row.right ? "✓" : "✗") : key === "key" ? row.key.slice(0, 24) : typeof row[key] === "number" ? short(row[key]) : row[key])))));
    count.textContent = `${found.length} of ${rows.length} responses, ${Math.min(found.length, list.shown)} shown`;
    more.hidden = found.length <= list.shown;
  }

  replaceChildren(place, data.samples.notes.map((words) => html("p", { class: "note" }, words)),
    html("div", { class: "controls" }, number("least", "Reward from"), number("most", "to"), html("label", {}, "Right or wrong ", right),
      html("label", {}, "Text ", html("input", { type: "search", id: "text", value: list.text, oninput: (event) => change({ text: event.target.value }) }))),
    count, html("div", { class: "scroll tall" }, html("table", { class: "responses" }, html("thead", {}, head), body)), more);
  change({});
}

function openResponse(data, row) {
  Object.assign(view, { group: row.g, member: row.m, call: lastCall(data.samples.groups[row.g]) });
  drawStage(data);
  byId("viewer").scrollIntoView();
  byId("stage").focus({ preventScroll: true });
}
