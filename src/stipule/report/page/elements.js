"use strict";
// Builds elements from names and text only, so that text of a response is never parsed as HTML.

const SVG = "http://www.w3.org/2000/svg";

function setContent(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined) node.append(child);
  }
  return node;
}

const html = (tag, attributes, ...children) => setContent(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) => setContent(document.createElementNS(SVG, tag), attributes, children);
const byId = (id) => document.getElementById(id);

function replaceChildren(node, ...children) {
  node.replaceChildren(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
}

// A number with three significant digits.
function short(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0"; // never -0
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e6) return value.toLocaleString("en");
  if (size >= 1e6 || (size > 0 && size < 1e-3)) return value.toExponential(2);
  return String(Number(value.toPrecision(3)));
}

function percent(value) {
  if (value === null || value === undefined) return "–";
  const scaled = 100 * value;
  return `${Number(scaled.toFixed(scaled < 9.95 || (scaled > 99 && scaled < 100) ? 1 : 0))} %`;
}

// A button that explains keys: a tooltip for a mouse, a line of text for a touch screen.
function help(keys, glossary) {
  const known = keys.filter((key) => glossary[key]);
  if (!known.length) return null;
  const lines = known.map((key) => `${key}: ${glossary[key][0]}.${glossary[key][1] ? ` Warning sign: ${glossary[key][1]}.` : ""}`);
  const text = html("p", { class: "help", hidden: true }, lines.join(" "));
  const button = html("button", {
    type: "button", class: "help-button", title: lines.join("\n"), "aria-label": "What is this?", "aria-expanded": "false",
    onclick: () => {
      text.hidden = !text.hidden;
      button.setAttribute("aria-expanded", String(!text.hidden));
    },
  }, "?");
  return [button, text];
}

// A table whose rows are created when it is opened for the first time.
function tableOnDemand(title, heads, rows) {
  const body = html("tbody");
  const box = html("details", {
    class: "data", "data-key": `${title} ${heads.join()}`,
    ontoggle: () => {
      if (box.open && !body.children.length) {
        body.append(...rows().map((row) => html("tr", {}, row.map((cell) => html("td", {}, String(cell))))));
      }
    },
  }, html("summary", {}, title), html("div", { class: "scroll" },
    html("table", {}, html("thead", {}, html("tr", {}, heads.map((head) => html("th", { scope: "col" }, head)))), body)));
  return box;
}
