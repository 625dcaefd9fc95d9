// What does not stand out: [contrast ratio, element], by WCAG 2.2.
(() => {
  const numbers = (colour) => colour.match(/[\d.]+/g).map(Number);
  const luminance = (colour) =>
    numbers(colour)
      .slice(0, 3)
      .map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
      .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const c = getComputedStyle(e).backgroundColor;
      if (numbers(c).length === 3) return c;
    }
    return "rgb(255, 255, 255)";
  };
  const ratio = (a, b) => {
    const [x, y] = [luminance(a), luminance(b)].sort((p, q) => q - p);
    return (x + 0.05) / (y + 0.05);
  };
  const low = [];
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || e.closest("script, style, noscript")) continue;
    const style = getComputedStyle(e);
    const r = ratio(e.closest("svg") ? style.fill : style.color, behind(e));
    if (r < 4.5) low.push([r.toFixed(2), e.outerHTML.slice(0, 100)]);
  }
  for (const e of document.querySelectorAll("path.series, rect.bars")) {
    const style = getComputedStyle(e),
      r = ratio(e.tagName === "rect" ? style.fill : style.stroke, behind(e));
    if (r < 3) low.push([r.toFixed(2), e.outerHTML.slice(0, 60)]);
  }
  return low;
})();
