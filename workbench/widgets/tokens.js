// A text as tokens. Whatever comes from the model is set as textContent: it is never HTML.

function background(value, top) {
  if (value === null || value === undefined || !(top > 0)) return "";
  const share = Math.min(Math.abs(value) / top, 1);
  const colour = value < 0 ? "0,114,178" : "224,106,27";
  return share > 0.004 ? `rgba(${colour},${(0.8 * share).toFixed(3)})` : "";
}

function element(kind, name, parent) {
  const made = document.createElement(kind);
  made.className = name;
  parent.append(made);
  return made;
}

function render({ model, el }) {
  const root = element("div", "wb-tokens", el);
  const title = element("div", "wb-tokens-title", root);
  const text = element("div", "wb-tokens-text", root);
  const tip = element("div", "wb-tokens-tip", root);
  text.setAttribute("role", "listbox");
  text.setAttribute("aria-orientation", "horizontal");
  tip.setAttribute("aria-live", "polite");
  let spans = [];
  let shown = [];

  function drawText() {
    const symbols = model.get("symbols");
    const breaks = new Set(model.get("breaks"));
    const goesOn = shown.length <= symbols.length && shown.every((s, i) => s === symbols[i]);
    if (!goesOn) { text.replaceChildren(); spans = []; }
    for (let i = spans.length; i < symbols.length; i++) {
      const span = element("span", "wb-token", text);
      span.textContent = symbols[i];
      span.dataset.index = i;
      span.tabIndex = -1;
      span.setAttribute("role", "option");
      spans.push(span);
      if (breaks.has(i)) text.append("\n");
    }
    shown = symbols.slice();
    drawValues();
    drawSelected();
  }

  function drawValues() {
    const values = model.get("values"), tips = model.get("tips"), top = model.get("top");
    spans.forEach((span, i) => {
      span.style.background = background(values[i], top);
      span.setAttribute("aria-label", tips[i] || shown[i]);
    });
    drawTip(model.get("selected"));
  }

  function drawSelected() {
    const selected = model.get("selected");
    spans.forEach((span, i) => {
      const chosen = i === selected;
      if (span.getAttribute("aria-selected") !== String(chosen)) {
        span.setAttribute("aria-selected", String(chosen));
      }
      span.tabIndex = chosen || (selected < 0 && i === 0) ? 0 : -1;
    });
    drawTip(selected);
  }

  function drawTip(index) { tip.textContent = model.get("tips")[index] || ""; }
  function drawTitle() {
    title.textContent = model.get("title");
    text.setAttribute("aria-label", model.get("title") || "tokens");
  }

  function choose(index, focus) {
    if (index < 0 || index >= spans.length) return;
    model.set("selected", index);
    model.save_changes();
    if (focus) spans[index].focus();
  }

  const indexOf = (event) => {
    const span = event.target.closest(".wb-token");
    return span ? Number(span.dataset.index) : -1;
  };
  text.addEventListener("click", (event) => choose(indexOf(event), true));
  text.addEventListener("mouseover", (event) => {
    const index = indexOf(event);
    if (index >= 0) drawTip(index);
  });
  text.addEventListener("mouseleave", () => drawTip(model.get("selected")));
  text.addEventListener("keydown", (event) => {
    const at = indexOf(event);
    const to = {
      ArrowLeft: at - 1, ArrowUp: at - 1, ArrowRight: at + 1, ArrowDown: at + 1,
      Home: 0, End: spans.length - 1, Enter: at, " ": at,
    }[event.key];
    if (to === undefined || at < 0) return;
    // or JupyterLab would take the key as one of its commands
    event.preventDefault();
    event.stopPropagation();
    choose(to, true);
  });
  model.on("change:symbols", drawText);
  model.on("change:values change:tips change:top", drawValues);
  model.on("change:selected", drawSelected);
  model.on("change:title", drawTitle);
  drawTitle();
  drawText();
}

export default { render };
