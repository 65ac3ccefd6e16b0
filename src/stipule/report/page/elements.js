"use strict";
// Elements are built by name and text only: nothing a response holds is ever parsed as HTML.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
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

const html = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
const byId = (id) => document.getElementById(id);

function replaceChildren(node, ...children) {
  node.replaceChildren(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
}

function short(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0"; // and no -0
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e6) return value.toLocaleString("en");
  if (size >= 1e6 || (size > 0 && size < 1e-3)) return value.toExponential(2);
  return String(Number(value.toPrecision(3)));
}

function percent(value) {
  if (value === null || value === undefined) return "–";
  const share = 100 * value;
  return `${Number(share.toFixed(share < 9.95 || (share > 99 && share < 100) ? 1 : 0))} %`;
}

// A button that shows what a number means: a tooltip for a mouse, a line of text for a finger.
function help(keys, glossary) {
  const known = keys.filter((key) => glossary[key]);
  if (!known.length) return null;
  const words = known.map((key) => `${key}: ${glossary[key][0]}.${glossary[key][1] ? ` Look closer when ${glossary[key][1]}.` : ""}`);
  const text = html("p", { class: "help", hidden: true }, words.join(" "));
  const button = html("button", {
    type: "button", class: "what", title: words.join("\n"), "aria-label": "What is this?", "aria-expanded": "false",
    onclick: () => {
      text.hidden = !text.hidden;
      button.setAttribute("aria-expanded", String(!text.hidden));
    },
  }, "?");
  return [button, text];
}

// A table whose rows are only made when somebody opens it.
function tableOnDemand(words, heads, rows) {
  const body = html("tbody");
  const box = html("details", {
    class: "data", "data-key": `${words} ${heads.join()}`,
    ontoggle: () => {
      if (box.open && !body.children.length) {
        body.append(...rows().map((row) => html("tr", {}, row.map((cell) => html("td", {}, String(cell))))));
      }
    },
  }, html("summary", {}, words), html("div", { class: "scroll" },
    html("table", {}, html("thead", {}, html("tr", {}, heads.map((head) => html("th", { scope: "col" }, head)))), body)));
  return box;
}
