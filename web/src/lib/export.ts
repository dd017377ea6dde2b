/** A view as a file: PNG as seen, CSV and JSON as the raw rows behind it. */

export function save(name: string, content: Blob): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

export function json(rows: unknown): Blob {
  return new Blob([JSON.stringify(rows, null, 2)], { type: "application/json" });
}

/** Raw rows; nested values as JSON, absent ones as empty cells. Text that a spreadsheet would run is quoted. */
export function csv(rows: Array<Record<string, unknown>>): Blob {
  const names = [...new Set(rows.flatMap((row) => Object.keys(row)))];
  const cell = (value: unknown): string => {
    if (value === undefined || value === null) return "";
    let text = typeof value === "object" ? JSON.stringify(value) : String(value);
    if (typeof value === "string" && /^[=+@\t]|^-(?!Infinity$)/.test(text)) text = `'${text}`;
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const lines = [names.map(cell).join(","), ...rows.map((row) => names.map((name) => cell(row[name])).join(","))];
  return new Blob([`${lines.join("\r\n")}\r\n`], { type: "text/csv" });
}

/** The element as it looks, by way of an SVG that holds a copy of it with the page's own style sheets. */
export async function png(element: HTMLElement): Promise<Blob> {
  const { width, height } = element.getBoundingClientRect();
  const copy = element.cloneNode(true) as HTMLElement;
  const originals = element.querySelectorAll("canvas");
  copy.querySelectorAll("canvas").forEach((canvas, index) => {
    const original = originals[index];
    if (!original) return;
    const image = document.createElement("img");
    image.src = original.toDataURL();
    image.className = canvas.className;
    image.width = original.clientWidth;
    image.height = original.clientHeight;
    canvas.replaceWith(image);
  });
  copy.setAttribute("xmlns", "http://www.w3.org/1999/xhtml");
  const rules = [...document.styleSheets].flatMap((sheet) => [...sheet.cssRules].map((rule) => rule.cssText)).join("\n");
  const root = document.documentElement;
  const colours = [...new Set(rules.match(/--[a-z-]+(?=\s*:)/g))].map((name) => `${name}:${getComputedStyle(root).getPropertyValue(name)}`).join(";");
  const sheet = `${rules}\n.export-root{${colours};font:13px/1.45 var(--sans);font-variant-numeric:tabular-nums;background:var(--ground);color:var(--ink);width:${width}px;height:${height}px}.export-root>*{height:100%}`;
  const markup = new XMLSerializer().serializeToString(copy);
  const svg =
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}"><foreignObject width="100%" height="100%">` +
    `<div xmlns="http://www.w3.org/1999/xhtml" class="export-root"><style>${sheet.replaceAll("&", "&amp;").replaceAll("<", "&lt;")}</style>${markup}</div></foreignObject></svg>`;
  const picture = new Image();
  picture.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(svg)}`;
  await picture.decode();
  const canvas = document.createElement("canvas");
  const ratio = Math.max(1, devicePixelRatio);
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  canvas.getContext("2d")?.drawImage(picture, 0, 0, canvas.width, canvas.height);
  return new Promise((done, failed) => canvas.toBlob((blob) => (blob ? done(blob) : failed(new Error("the browser made no picture"))), "image/png"));
}
