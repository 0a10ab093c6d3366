// A figure in its place, drawn by plotly's program, which comes once to a page (library.js).

async function program(model) {
  await model.widget_manager.get_model(model.get("library").replace("IPY_MODEL_", ""));
  // the widget is there; that its program runs may take longer
  while (!globalThis.__workbench_plotly) await new Promise((done) => setTimeout(done, 20));
  return globalThis.__workbench_plotly.program;
}

function render({ model, el }) {
  const place = document.createElement("div");
  place.className = "wb-plot";
  el.append(place);
  let Plotly = null, width = 0, drawing = false, again = false, gone = false;

  function fitted(layout) {
    const wanted = layout.width ?? layout.template?.layout?.width ?? 860;
    return el.clientWidth > 0 ? Math.min(wanted, el.clientWidth) : wanted;
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
        Object.assign(figure.layout, { width, autosize: false, uirevision: zoom });
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
