// The table of saved responses: sorted by any column, filtered by reward, correctness and text.

const table = { sort: "step", descending: false, max: "", min: "", correct: "", text: "", limit: 100 };

function tableRows(data) {
  const rows = [];
  data.rollouts.groups.forEach((group, g) => group.responses.forEach((response, m) => rows.push({
    group: g, member: m, run: data.runs[group.run].name, step: group.step, key: group.key, reward: response.r, correct: response.c ? 1 : 0,
    advantage: response.a ?? 0, length: response.n, nfe: response.f ?? 0, text: responseText(response, data.rollouts.token_texts),
  })));
  return rows;
}

function filterRows(rows) {
  const bound = (text, none) => (text.trim() === "" || Number.isNaN(Number(text)) ? none : Number(text));
  const min = bound(table.min, -Infinity), max = bound(table.max, Infinity);
  const text = table.text.toLowerCase();
  const matching = rows.filter((row) => row.reward >= min && row.reward <= max && (table.correct === "" || row.correct === Number(table.correct)) &&
    (!text || row.text.toLowerCase().includes(text) || row.key.toLowerCase().includes(text)));
  const sign = table.descending ? -1 : 1;
  return matching.sort((a, b) => sign * (typeof a[table.sort] === "string" ? a[table.sort].localeCompare(b[table.sort]) : a[table.sort] - b[table.sort]) || a.group - b.group || a.member - b.member);
}

function drawTable(data) {
  const rows = tableRows(data);
  const container = byId("table");
  if (!rows.length) {
    replaceChildren(container, html("p", { class: "note" }, "No responses were saved with this run."));
    return;
  }
  const columns = [...(data.runs.length > 1 ? [["run", "run"]] : []), ["step", "step"], ["key", "problem"], ["reward", "reward"], ["correct", "correct"], ["advantage", "advantage"], ["length", "tokens"], ["nfe", "nfe"], ["text", "response"]];
  const number = (id, label) => html("label", {}, `${label} `, html("input", { type: "text", inputmode: "decimal", class: "number", id, value: table[id], oninput: (event) => change({ [id]: event.target.value }) }));
  const correct = html("select", { id: "correct", onchange: (event) => change({ correct: event.target.value }) }, [["", "all"], ["1", "correct"], ["0", "wrong"]].map(([value, label]) => html("option", { value }, label)));
  correct.value = table.correct;
  const head = html("tr"), body = html("tbody"), count = html("p", { class: "small", role: "status", id: "count" }), more = html("button", { type: "button", id: "more", onclick: () => change({ limit: table.limit + 400 }) }, "Show more");

  function change(settings) {
    Object.assign(table, settings);
    const matching = filterRows(rows);
    replaceChildren(head, columns.map(([key, label]) => html("th", { scope: "col", "aria-sort": table.sort === key ? (table.descending ? "descending" : "ascending") : null },
      html("button", { type: "button", "data-sort": key, onclick: () => { change({ sort: key, descending: table.sort === key ? !table.descending : typeof rows[0][key] === "number" && key !== "step" }); head.querySelector(`[data-sort=${key}]`).focus(); } },
        `${label}${table.sort === key ? (table.descending ? " ▼" : " ▲") : ""}`))));
    replaceChildren(body, matching.slice(0, table.limit).map((row) => html("tr", {}, columns.map(([key]) => html("td", { class: typeof row[key] === "number" && key !== "correct" ? "number" : key === "text" ? "text" : key === "key" ? "problem" : null },
      key === "text" ? html("button", { type: "button", class: "open", title: "Show its denoising", onclick: () => openResponse(data, row) }, row.text || "(empty)") : key === "correct" ? (row.correct ? "✓" : "✗") : key === "key" ? row.key.slice(0, 24) : typeof row[key] === "number" ? short(row[key]) : row[key])))));
    count.textContent = `${matching.length} of ${rows.length} responses, ${Math.min(matching.length, table.limit)} shown`;
    more.hidden = matching.length <= table.limit;
  }

  replaceChildren(container, data.rollouts.notes.map((text) => html("p", { class: "note" }, text)),
    html("div", { class: "controls" }, number("min", "Reward from"), number("max", "to"), html("label", {}, "Correct or wrong ", correct),
      html("label", {}, "Text ", html("input", { type: "search", id: "text", value: table.text, oninput: (event) => change({ text: event.target.value }) }))),
    count, html("div", { class: "scroll tall" }, html("table", { class: "responses" }, html("thead", {}, head), body)), more);
  change({});
}

function openResponse(data, row) {
  Object.assign(view, { group: row.group, member: row.member, pass: lastPass(data.rollouts.groups[row.group]) });
  drawViewer(data);
  byId("viewer").scrollIntoView();
  byId("denoising").focus({ preventScroll: true });
}
