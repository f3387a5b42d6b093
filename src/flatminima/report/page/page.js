"use strict";
(() => {
  const specs = JSON.parse(document.getElementById("figures").textContent);
  const root = document.documentElement;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const button = document.getElementById("theme");
  const canvases = [...document.querySelectorAll("[data-figure]")];
  const config = { responsive: true, displaylogo: false, displayModeBar: false };
  const drawn = new Set();
  const PRINTED = 640; // of paper, in its pixels

  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();

  function themed(layout) {
    const axis = {
      gridcolor: colour("--line"),
      linecolor: colour("--soft"),
      zerolinecolor: colour("--line"),
      automargin: true,
      exponentformat: "power",
    };
    const whole = {
      margin: { l: 56, r: 16, t: 12, b: 48 },
      ...layout,
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("--ink") },
      hoverlabel: { bgcolor: colour("--raised"), font: { color: colour("--ink") } },
      legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
      xaxis: { ...axis, ...layout.xaxis },
      yaxis: { ...axis, ...layout.yaxis },
    };
    if (layout.scene) {
      whole.scene = { ...layout.scene };
      for (const name of ["xaxis", "yaxis", "zaxis"]) {
        whole.scene[name] = { gridcolor: colour("--line"), ...layout.scene[name] };
      }
    }
    return whole;
  }

  // Error bars of bars have the ink of the text, as they stand on the bars' own colours.
  function inked(data) {
    const ink = colour("--ink");
    return data.map((trace) =>
      trace.type === "bar" ? { ...trace, error_y: { color: ink, ...trace.error_y } } : trace);
  }

  // The arrow keys turn a 3-D figure as the mouse does.
  function turnable(canvas) {
    canvas.tabIndex = 0;
    canvas.addEventListener("keydown", (event) => {
      const [about, up] = {
        ArrowLeft: [-0.15, 0], ArrowRight: [0.15, 0], ArrowUp: [0, 0.15], ArrowDown: [0, -0.15],
      }[event.key] || [0, 0];
      if (!about && !up) return;
      event.preventDefault();
      const { x, y, z } = canvas._fullLayout.scene._scene.getCamera().eye;
      const [c, s] = [Math.cos(about), Math.sin(about)];
      const eye = { x: c * x - s * y, y: s * x + c * y, z: z + up };
      Plotly.relayout(canvas, { "scene.camera.eye": eye });
    });
  }

  async function draw(canvas) {
    if (drawn.has(canvas) || canvas.closest("[hidden]")) return;
    drawn.add(canvas);
    const spec = specs[Number(canvas.dataset.figure)];
    try {
      await Plotly.newPlot(canvas, inked(spec.data), themed(spec.layout), config);
      if (spec.layout.scene) turnable(canvas);
    } catch (error) {
      const words = document.createElement("p");
      words.className = "failed";
      words.textContent = `This browser could not draw the figure (${error.message}).`;
      canvas.replaceChildren(words);
    }
  }

  function show(theme) {
    root.dataset.theme = theme;
    button.setAttribute("aria-pressed", String(theme === "dark"));
    button.textContent = theme === "dark" ? "Light" : "Dark";
    for (const canvas of drawn) {
      const spec = specs[Number(canvas.dataset.figure)];
      if (!canvas.querySelector(".plotly")) continue;
      const layout = themed(spec.layout);
      // Turned as it is now.
      if (layout.scene) layout.scene.camera = canvas._fullLayout.scene._scene.getCamera();
      Plotly.react(canvas, inked(spec.data), layout, config);
    }
  }

  function remembered() {
    try { return localStorage.getItem("flatminima-theme"); } catch { return null; }
  }

  button.addEventListener("click", () => {
    const next = root.dataset.theme === "dark" ? "light" : "dark";
    try { localStorage.setItem("flatminima-theme", next); } catch { /* a page without storage */ }
    show(next);
  });
  dark.addEventListener("change", () => { if (!remembered()) show(dark.matches ? "dark" : "light"); });
  show(remembered() || (dark.matches ? "dark" : "light"));

  // Figures are drawn when they come near, so a long page opens at once.
  const near = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) draw(entry.target);
  }, { rootMargin: "400px" });
  canvases.forEach((canvas) => near.observe(canvas));

  let before = null;
  let opened = [];
  window.addEventListener("beforeprint", () => {
    before = root.dataset.theme;
    show("light");
    opened = [...document.querySelectorAll("[role=tabpanel][hidden]")];
    opened.forEach((panel) => { panel.hidden = false; });
    canvases.forEach((canvas) => {
      draw(canvas);
      if (canvas.querySelector(".plotly")) Plotly.relayout(canvas, { autosize: false, width: PRINTED });
    });
  });
  window.addEventListener("afterprint", () => {
    for (const canvas of drawn) {
      if (canvas.querySelector(".plotly")) Plotly.relayout(canvas, { autosize: true, width: null });
    }
    opened.forEach((panel) => { panel.hidden = true; });
    if (before) show(before);
  });

  for (const list of document.querySelectorAll("[role=tablist]")) {
    const tabs = [...list.children];
    const panels = [...list.parentElement.querySelectorAll(":scope > [role=tabpanel]")];
    const choose = (index, focus) => {
      tabs.forEach((tab, i) => {
        tab.setAttribute("aria-selected", String(i === index));
        tab.tabIndex = i === index ? 0 : -1;
        panels[i].hidden = i !== index;
      });
      if (focus) tabs[index].focus();
      panels[index].querySelectorAll("[data-figure]").forEach(draw);
      window.dispatchEvent(new Event("resize"));
    };
    tabs.forEach((tab, i) => {
      tab.addEventListener("click", () => choose(i, false));
      tab.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (step) choose((i + step + tabs.length) % tabs.length, true);
        else if (event.key === "Home") choose(0, true);
        else if (event.key === "End") choose(tabs.length - 1, true);
        else return;
        event.preventDefault();
      });
    });
  }

  for (const sort of document.querySelectorAll(".sort")) {
    sort.addEventListener("click", () => {
      const head = sort.closest("th");
      const column = [...head.parentElement.children].indexOf(head);
      const falling = head.getAttribute("aria-sort") === "descending";
      const direction = falling ? 1 : -1;
      for (const other of head.parentElement.children) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", falling ? "ascending" : "descending");
      const body = head.closest("table").tBodies[0];
      const key = (row) => row.children[column].dataset.value;
      const order = (a, b) => {
        const [x, y] = [key(a), key(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        const [m, n] = [Number(x), Number(y)];
        if (Number.isNaN(m) || Number.isNaN(n)) return direction * x.localeCompare(y);
        return direction * (m - n);
      };
      body.append(...[...body.rows].sort(order));
    });
  }

  for (const copy of document.querySelectorAll(".copy")) {
    copy.addEventListener("click", async () => {
      const code = copy.closest(".code").querySelector("code");
      try {
        await navigator.clipboard.writeText(code.textContent);
        copy.textContent = "Copied";
      } catch {
        // Files opened from a disk may not write to the clipboard: select it for the user's own copy.
        getSelection().selectAllChildren(code);
        copy.textContent = "Selected";
      }
    });
  }

  for (const save of document.querySelectorAll(".save")) {
    save.addEventListener("click", () => {
      const text = save.closest(".code").querySelector("code").textContent;
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([text], { type: "text/plain" }));
      link.download = save.dataset.file;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    });
  }
})();
