// A table of runs: heads sort, a box filters, check boxes say which runs the figures show.
// Whatever comes from a run folder is set as textContent: it is never HTML.

function element(kind, name, parent, text) {
  const made = document.createElement(kind);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

function said(value) {
  if (value === null || value === undefined) return "-";
  return typeof value === "number" ? value.toLocaleString("en", { maximumFractionDigits: 7 }) : value;
}

// numbers by size, words as people sort them, what is missing last either way
function compare(a, b, way) {
  if (a === null || b === null) return (a === null) - (b === null);
  if (typeof a === "number" && typeof b === "number") return (a - b) * way;
  return String(a).localeCompare(String(b), "en", { numeric: true }) * way;
}

// words that a row must hold, and conditions such as `lr<0.01` or `testbits<=2.5`
function condition(word, columns) {
  const found = /^([^<>=]+)(<=|>=|<|>|=)(.+)$/.exec(word);
  const plain = (name) => name.toLowerCase().replace(/\s+/g, "");
  const at = found ? columns.findIndex((name) => plain(name) === found[1]) : -1;
  if (at < 0) return (row) => row.some((value) => said(value).toLowerCase().includes(word));
  const [, , sign, text] = found;
  const bound = Number(text.replace(/,/g, ""));
  return (row) => {
    const value = row[at];
    if (sign === "=") return said(value).toLowerCase() === text || value === bound;
    if (typeof value !== "number" || Number.isNaN(bound)) return false;
    return { "<": value < bound, "<=": value <= bound, ">": value > bound, ">=": value >= bound }[sign];
  };
}

function render({ model, el }) {
  const root = element("div", "wb-runs", el);
  const bar = element("div", "wb-runs-bar", root);
  const label = element("label", "", bar, "Filter ");
  const filter = element("input", "", label);
  filter.type = "search";
  filter.placeholder = "words, or lr<0.01";
  const all = element("button", "wb-runs-all", bar, "Check all shown");
  const none = element("button", "wb-runs-none", bar, "Check none");
  const files = element("span", "wb-runs-files", bar);
  const status = element("span", "wb-runs-status", bar);
  status.setAttribute("role", "status");
  const scroll = element("div", "wb-runs-scroll", root);
  const table = element("table", "", scroll);
  const head = element("tr", "", element("thead", "", table));
  const body = element("tbody", "", table);
  let sorted = -1;
  let way = 1;
  let shown = [];
  let boxes = [];

  // JupyterLab would take some keys for its commands
  root.addEventListener("keydown", (event) => event.stopPropagation());
  for (const button of [all, none]) button.type = "button";

  function choose(chosen) {
    model.set("chosen", [...chosen].sort((a, b) => a - b));
    model.save_changes();
  }

  function drawHead() {
    const columns = model.get("columns"), rows = model.get("rows");
    head.replaceChildren();
    element("th", "", head).setAttribute("aria-label", "shown in the figures");
    columns.forEach((name, i) => {
      const cell = element("th", numeric(rows, i) ? "wb-number" : "", head);
      cell.scope = "col";
      const button = element("button", "", cell, name);
      button.type = "button";
      button.addEventListener("click", () => {
        way = sorted === i ? -way : 1;
        sorted = i;
        drawRows();
      });
    });
  }

  const numeric = (rows, i) => rows.some((row) => typeof row[i] === "number");

  function drawRows() {
    const columns = model.get("columns"), rows = model.get("rows"), styles = model.get("styles");
    [...head.children].slice(1).forEach((cell, i) => {
      const order = i === sorted ? (way > 0 ? "ascending" : "descending") : "none";
      cell.setAttribute("aria-sort", order);
      cell.firstChild.textContent = columns[i] + (i === sorted ? (way > 0 ? " ▲" : " ▼") : "");
    });
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = words.map((word) => condition(word, columns));
    shown = rows.map((_, i) => i).filter((i) => wanted.every((fits) => fits(rows[i])));
    if (sorted >= 0) shown.sort((a, b) => compare(rows[a][sorted], rows[b][sorted], way) || a - b);
    const chosen = new Set(model.get("chosen"));
    body.replaceChildren();
    boxes = [];
    for (const i of shown) {
      const line = element("tr", "", body);
      const first = element("td", "", line);
      const box = element("input", "", first);
      box.type = "checkbox";
      box.checked = chosen.has(i);
      box.setAttribute("aria-label", `show ${said(rows[i][0])}`);
      box.addEventListener("change", () => {
        const now = new Set(model.get("chosen"));
        if (box.checked) now.add(i); else now.delete(i);
        choose(now);
      });
      boxes.push([box, i]);
      const key = element("span", "wb-runs-key", first);
      key.setAttribute("aria-hidden", "true");
      key.style.borderTopColor = styles[i][0];
      key.style.borderTopStyle = styles[i][1] === "solid" ? "solid" : styles[i][1] === "dot" ? "dotted" : "dashed";
      rows[i].forEach((value, c) => {
        const cell = element(c ? "td" : "th", typeof value === "number" ? "wb-number" : "", line);
        if (!c) cell.scope = "row";
        cell.textContent = said(value);
      });
    }
    drawChosen();
  }

  function drawChosen() {
    const chosen = new Set(model.get("chosen"));
    for (const [box, i] of boxes) box.checked = chosen.has(i);
    const count = model.get("rows").length;
    status.textContent = `${shown.length} of ${count} runs, ${chosen.size} in the figures`;
  }

  function drawFiles() {
    files.replaceChildren();
    for (const name of Object.keys(model.get("files"))) {
      const button = element("button", "", files, `Save ${name.split(".").pop().toUpperCase()}`);
      button.type = "button";
      button.addEventListener("click", () => save(name, model.get("files")[name]));
    }
  }

  function save(name, text) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/plain" }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  filter.addEventListener("input", drawRows);
  all.addEventListener("click", () => choose(new Set([...model.get("chosen"), ...shown])));
  none.addEventListener("click", () => choose([]));
  model.on("change:rows", () => { drawHead(); drawRows(); });
  model.on("change:chosen", drawChosen);
  model.on("change:files", drawFiles);
  drawHead();
  drawRows();
  drawFiles();
}

export default { render };
