// Values of a chart, read one by one with arrow keys or the pointer.

/** A plot whose `length` positions are read one by one: a slider for keyboards and screen readers. */
function readable(label, { canvas, cursor, above }, length, readAt, indexAt) {
  const reading = html("p", { class: "reading" });
  const plot = html(
    "div",
    {
      class: "plot",
      tabindex: 0,
      role: "slider",
      "aria-label": `${label}; arrow keys read values`,
      "aria-valuemin": 0,
      "aria-valuemax": length - 1,
      "aria-valuenow": 0,
      "aria-valuetext": label,
    },
    canvas,
  );
  let position = -1;
  const moveTo = (index) => {
    position = Math.max(0, Math.min(length - 1, index));
    const text = readAt(position);
    cursor.setAttribute("visibility", "visible");
    reading.textContent = text;
    plot.setAttribute("aria-valuenow", position);
    plot.setAttribute("aria-valuetext", text);
  };
  const steps = {
    ArrowRight: 1,
    ArrowUp: 1,
    ArrowLeft: -1,
    ArrowDown: -1,
    PageUp: 8,
    PageDown: -8,
    Home: -Infinity,
    End: Infinity,
  };
  plot.addEventListener("keydown", (event) => {
    if (!(event.key in steps)) return;
    event.preventDefault();
    moveTo(position + steps[event.key]);
  });
  plot.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    moveTo(indexAt((event.clientX - box.left) / box.width));
  });
  plot.addEventListener("pointerleave", () => {
    if (document.activeElement === plot) return;
    cursor.setAttribute("visibility", "hidden");
    reading.textContent = "";
  });
  return html("div", { class: "chart" }, above, plot, reading);
}
