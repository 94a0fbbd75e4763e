"use strict";
// Enlarges a part of a frame: with the wheel, the keys + - 0, buttons, and by dragging.

const MOST_ZOOM = 40;

// Make a frame zoomable. Return its buttons; `frame.zoom(factor)` and `frame.pan(x, y)` are for keys. The other frames,
// of the same image in another run, follow it.
function zoomable(frame, ...others) {
  const { box } = frame;
  const level = element("output", { class: "level" });
  const show = () => {
    const factor = box[2] / frame.view[2];
    level.textContent = `${Math.round(100 * factor)}%`;
    for (const one of [frame, ...others]) {
      one.view = frame.view;
      one.svg.setAttribute("viewBox", frame.view.join(" "));
      one.classList.toggle("zoomed", factor > 1.001);
      one.fit();
    }
  };
  // Units of the image in one pixel of the screen.
  const unit = (svg) => {
    const shown = svg.getBoundingClientRect();
    return Math.max(frame.view[2] / (shown.width || 1), frame.view[3] / (shown.height || 1));
  };
  const moved = (x, y, width, height) => {
    const inside = (value, least, most) => Math.max(least, Math.min(value, most));
    frame.view = [inside(x, box[0], box[0] + box[2] - width), inside(y, box[1], box[1] + box[3] - height), width, height];
    show();
  };
  // Zoom by a factor, so that the point stays where it is: in units of the image, by default `target` or the middle.
  frame.zoom = (factor, point) => {
    const [x, y, width, height] = frame.view;
    const [pointX, pointY] = point || frame.target || [x + width / 2, y + height / 2];
    const wide = factor ? Math.max(box[2] / MOST_ZOOM, Math.min(box[2], width / factor)) : box[2];
    const ratio = wide / width;
    moved(pointX - (pointX - x) * ratio, pointY - (pointY - y) * ratio, wide, height * ratio);
  };
  // Move by parts of what is seen.
  frame.pan = (right, down) => {
    const [x, y, width, height] = frame.view;
    moved(x + right * width, y + down * height, width, height);
  };
  for (const { svg } of [frame, ...others]) {
    svg.addEventListener("wheel", (event) => {
      event.preventDefault();
      const shown = svg.getBoundingClientRect(), [x, y, width, height] = frame.view, size = unit(svg);
      const point = [
        x + width / 2 + (event.clientX - shown.left - shown.width / 2) * size,
        y + height / 2 + (event.clientY - shown.top - shown.height / 2) * size,
      ];
      frame.zoom(Math.exp(-Math.sign(event.deltaY) * Math.min(Math.abs(event.deltaY), 120) / 400), point);
    }, { passive: false });
    svg.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || !frame.classList.contains("zoomed")) return;
      svg.setPointerCapture(event.pointerId);
      let [lastX, lastY] = [event.clientX, event.clientY];
      const drag = (moving) => {
        const size = unit(svg), [x, y, width, height] = frame.view;
        moved(x - (moving.clientX - lastX) * size, y - (moving.clientY - lastY) * size, width, height);
        [lastX, lastY] = [moving.clientX, moving.clientY];
      };
      const end = () => {
        svg.removeEventListener("pointermove", drag);
        for (const name of ["pointerup", "pointercancel"]) svg.removeEventListener(name, end);
      };
      svg.addEventListener("pointermove", drag);
      for (const name of ["pointerup", "pointercancel"]) svg.addEventListener(name, end);
    });
  }
  level.textContent = "100%";
  return element("div", { class: "zoom", role: "group", "aria-label": "Zoom" },
    button("−", "Zoom out", () => frame.zoom(1 / 1.5)), level, button("+", "Zoom in", () => frame.zoom(1.5)),
    button("Fit", "Show the whole image", () => frame.zoom(0)));
}

// Zoom or pan by a key. Return whether the key is one of these.
function zoomKey(frame, event) {
  if (!frame?.zoom) return false;
  const factor = { "+": 1.5, "=": 1.5, "-": 1 / 1.5, 0: 0 }[event.key];
  const step = event.shiftKey && { ArrowLeft: [-0.2, 0], ArrowRight: [0.2, 0], ArrowUp: [0, -0.2], ArrowDown: [0, 0.2] }[event.key];
  if (factor !== undefined) frame.zoom(factor);
  else if (step) frame.pan(...step);
  else return false;
  return true;
}
