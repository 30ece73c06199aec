"use strict";
// Draws the figures, in the colours of the page; legends and the choice of the axis act on them.
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const plots = [...document.querySelectorAll(".plot")];
  const touch = matchMedia("(pointer: coarse)").matches; // there a finger scrolls the page

  const colours = () => {
    const style = getComputedStyle(document.documentElement);
    return (name) => style.getPropertyValue(`--${name}`).trim();
  };

  const axis = (own, colour) => ({
    ...own,
    title: { ...own?.title, standoff: 8 },
    automargin: true,
    gridcolor: colour("line"),
    linecolor: colour("line"),
    zerolinecolor: colour("line"),
    tickcolor: colour("line"),
    fixedrange: touch,
  });

  const layout = (figure) => {
    const colour = colours();
    return {
      ...figure.layout,
      xaxis: axis(figure.layout.xaxis, colour),
      yaxis: axis(figure.layout.yaxis, colour),
      font: { family: "system-ui, sans-serif", size: 12, color: colour("text") },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      hoverlabel: { bgcolor: colour("card"), bordercolor: colour("line"), font: { color: colour("text") } },
      margin: { l: 12, r: 10, t: 10, b: 12 },
      dragmode: touch ? false : "zoom",
      autosize: true,
    };
  };

  const draw = (plot) => {
    const figure = figures[plot.dataset.figure];
    return Plotly.react(plot, figure.data, layout(figure), { responsive: true, displayModeBar: false });
  };

  for (const plot of plots) {
    const off = new Set();
    for (const button of plot.parentElement.querySelectorAll("[data-key]")) {
      button.addEventListener("click", () => {
        const key = button.dataset.key;
        if (!off.delete(key)) off.add(key);
        button.setAttribute("aria-pressed", String(!off.has(key)));
        for (const trace of figures[plot.dataset.figure].data) {
          trace.visible = !trace.meta.keys.some((one) => off.has(one));
        }
        draw(plot);
      });
    }
  }

  for (const choice of document.querySelectorAll("input[name=axis]")) {
    choice.addEventListener("change", () => {
      for (const plot of plots) {
        const figure = figures[plot.dataset.figure];
        if (!figure.data[0].meta.x) continue;
        for (const trace of figure.data) trace.x = trace.meta.x[choice.value];
        figure.layout.xaxis.title.text = choice.value;
        draw(plot);
      }
    });
  }

  const redraw = () => plots.forEach(draw);
  for (const query of ["(prefers-color-scheme: dark)", "print"]) {
    matchMedia(query).addEventListener("change", redraw);
  }
  Promise.all(plots.map(draw)).then(() => { document.documentElement.dataset.drawn = plots.length; });
})();
