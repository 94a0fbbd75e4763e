"use strict";
// Places the names of regions on an image, so that they do not lie on one another.

// Names have one size on the screen at any size of the image. Each takes the first free place at its box: at a corner,
// inside or outside, within the image. A name without a free place is hidden until the pointer is on the region; names of
// large regions are placed first.
function fitNames(svg, card, view) {
  const shown = svg.getBoundingClientRect();
  if (!shown.width) return;
  const unit = Math.max(view[2] / shown.width, view[3] / shown.height); // of the image's pixels in one of the screen's
  svg.style.setProperty("--unit", `${unit}px`);
  const texts = [...svg.querySelectorAll("text")];
  const sizes = texts.map((text) => [text.getComputedTextLength() + 6 * unit, 15 * unit]);
  const taken = [];
  texts.forEach((text, number) => {
    const [wide, high] = sizes[number];
    const spots = spotsFor(card.regions[text.dataset.region].box, wide, high, unit, view);
    const spot = spots.find(([x, y]) =>
      taken.every(([a, b, w]) => x >= a + w || a >= x + wide || Math.abs(y - b) >= high));
    const [x, y] = spot || spots[0] || [0, 0];
    text.setAttribute("x", x + 3 * unit);
    text.setAttribute("y", y + 12 * unit);
    if (spot) taken.push([...spot, wide]);
    text.classList.toggle("waits", !spot);
  });
}

// Places for a name at a box, the best first; none for a box outside the view.
function spotsFor([left, top, right, bottom], wide, high, unit, [viewLeft, viewTop, viewWidth, viewHeight]) {
  const viewRight = viewLeft + viewWidth, viewBottom = viewTop + viewHeight;
  if (right < viewLeft || left > viewRight || bottom < viewTop || top > viewBottom) return [];
  const within = (value, least, most) => Math.max(least, Math.min(value, most));
  return [left, right - wide].flatMap((x) => [top + unit, top - high, bottom - high - unit, bottom].map((y) =>
    [within(x, viewLeft, viewRight - wide), within(y, viewTop, viewBottom - high)]));
}
