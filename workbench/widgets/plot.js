// A figure in its place, drawn by plotly's program, which comes once to a page (library.js).

async function program(model) {
  await model.widget_manager.get_model(model.get("library").replace("IPY_MODEL_", ""));
  // the widget is there; that its program runs may take longer
  while (!globalThis.__workbench_plotly) await new Promise((done) => setTimeout(done, 20));
  return globalThis.__workbench_plotly.program;
}

// Plotly lets long titles run out of a narrow figure: here they go on in another line.
function wrapped(text, letters) {
  const most = Math.max(20, Math.floor(letters)), lines = [];
  for (const part of text.split("<br>")) {
    let line = "";
    for (const word of part.split(" ")) {
      if (line && line.length + word.length >= most) { lines.push(line); line = word; }
      else line = line ? `${line} ${word}` : word;
    }
    lines.push(line);
  }
  return lines;
}

function fitTitles(layout) {
  const title = layout.title, margin = layout.margin ?? {};
  if (!title?.text) return;
  const place = layout.width - (margin.l ?? 70) - 8;
  // widths of a letter and heights of a line, of letters of 16 and of 12 pixels
  const parts = [[title, 7.6, 20], [title.subtitle ?? {}, 5.7, 15]];
  for (const [part, letter, line] of parts) {
    if (!part.text) continue;
    const lines = wrapped(part.text, place / letter);
    const more = line * (lines.length - part.text.split("<br>").length);
    part.text = lines.join("<br>");
    layout.margin = { ...layout.margin, t: (layout.margin?.t ?? 80) + more };
    if (layout.height) layout.height += more;
  }
}

function render({ model, el }) {
  const place = document.createElement("div");
  place.className = "wb-plot";
  el.append(place);
  let Plotly = null, width = 0, drawing = false, again = false, gone = false;

  const wanted = (layout) => layout.width ?? layout.template?.layout?.width ?? 860;

  function fitted(layout) {
    return el.clientWidth > 0 ? Math.min(wanted(layout), el.clientWidth) : wanted(layout);
  }

  function click(event) {
    const point = event.points[0];
    const count = (model.get("clicked").count || 0) + 1;
    model.set("clicked", { trace: point.curveNumber, x: point.x, y: point.y, count });
    model.save_changes();
  }

  async function draw() {
    if (Plotly === null || gone) return;
    if (drawing) { again = true; return; }
    drawing = true;
    try {
      do {
        again = false;
        const { figure, config, zoom } = JSON.parse(model.get("drawn"));
        width = fitted(figure.layout);
        const narrow = width < wanted(figure.layout);
        Object.assign(figure.layout, { width, autosize: false, uirevision: zoom });
        if (narrow) fitTitles(figure.layout);
        const first = !place.classList.contains("js-plotly-plot");
        await Plotly.react(place, figure.data, figure.layout, { ...config, responsive: false });
        if (first) place.on("plotly_click", click);
      } while (again && !gone);
    } finally {
      drawing = false;
    }
  }

  const observer = new ResizeObserver(() => {
    if (Plotly !== null && fitted(JSON.parse(model.get("drawn")).figure.layout) !== width) draw();
  });
  observer.observe(el);
  model.on("change:drawn", draw);
  // not awaited: whoever waits for this function gives up after two seconds
  program(model).then(
    (found) => { Plotly = found; return draw(); },
  ).catch((error) => { place.textContent = `The figure cannot be drawn: ${error}`; });
  return () => {
    gone = true;
    observer.disconnect();
    model.off("change:drawn", draw);
    if (Plotly !== null) Plotly.purge(place);
  };
}

export default { render };
