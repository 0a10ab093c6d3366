// Plotly's program, run once on a page; figures wait for it.

function waiting() {
  if (!globalThis.__workbench_plotly) {
    const made = {};
    made.program = new Promise((found, failed) => Object.assign(made, { found, failed }));
    globalThis.__workbench_plotly = made;
  }
  return globalThis.__workbench_plotly;
}

async function run(source) {
  const url = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
  try { await import(/* webpackIgnore: true */ url); } finally { URL.revokeObjectURL(url); }
  return globalThis.Plotly;
}

// A page that is busy for the first two seconds of a widget of anywidget's hears of no change to it
// any more. Those of this project that come after this one take changes as all other widgets do.
async function listen(model) {
  const raw = await model.widget_manager.get_model(model.get("key"));
  const kind = Object.getPrototypeOf(raw);
  const late = kind._handle_comm_msg, always = Object.getPrototypeOf(kind)._handle_comm_msg;
  if (kind.__workbench || !Object.hasOwn(kind, "_handle_comm_msg") || !always) return;
  kind.__workbench = true;
  kind._handle_comm_msg = function (...message) {
    const ours = String(this.get("_anywidget_id")).startsWith("workbench.");
    return (ours ? always : late).apply(this, message);
  };
}

function initialize({ model }) {
  listen(model).catch((error) => console.warn("workbench:", error));
  const wait = waiting();
  if (wait.begun) return;
  wait.begun = true;
  // not awaited: whoever waits for this function gives up after two seconds
  run(model.get("source")).then(wait.found, (error) => {
    globalThis.__workbench_plotly = undefined; // for another widget to try again
    wait.failed(error);
  });
}

export default { initialize };
