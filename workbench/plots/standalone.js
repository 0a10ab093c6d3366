// Draws the figures of a page from their JSON, and puts all of them into the theme of the reader's
// system, or that of the button; print is light.
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const shared = read("wb-shared");
  const root = document.documentElement;
  const button = document.getElementById("wb-theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const drawn = [];
  let chosen = null;
  let printing = false;
  const theme = () => (printing ? "light" : chosen || (system.matches ? "dark" : "light"));

  const dress = () => {
    const name = theme();
    if (chosen) root.dataset.theme = chosen;
    button.textContent = name === "dark" ? "Light theme" : "Dark theme";
    return Promise.all(
      drawn
        .filter((place) => place.dataset.theme !== name)
        .map((place) => {
          place.dataset.theme = name;
          return Plotly.relayout(place, { template: shared.templates[name] });
        }),
    );
  };
  button.addEventListener("click", () => {
    chosen = theme() === "dark" ? "light" : "dark";
    dress();
  });
  system.addEventListener("change", dress);
  addEventListener("beforeprint", () => {
    printing = true;
    dress();
  });
  addEventListener("afterprint", () => {
    printing = false;
    dress();
  });

  const draw = async (place) => {
    try {
      const figure = read(place.dataset.figure);
      place.dataset.theme = theme();
      figure.layout.template = shared.templates[place.dataset.theme];
      await Plotly.newPlot(place, { ...figure, config: shared.config });
      drawn.push(place);
    } catch (error) {
      place.textContent = `This figure could not be drawn: ${error.message}`;
    }
  };
  // one after the other: the page answers in between
  const all = async () => {
    await dress();
    for (const place of document.querySelectorAll("[data-figure]")) await draw(place);
    await dress();
    root.dataset.drawn = drawn.length;
  };
  all();
})();
