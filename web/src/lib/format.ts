/** Figures as a person reads them. Absent, non-finite, zero and stale never look alike. */
import type { Figure, Num } from "./schema";

export const ABSENT = "–";

/** Kept, since making one takes longer than drawing a row. */
const WHOLE = new Intl.NumberFormat("en");

export type Known = Figure["value"] | undefined;

/** A value: numbers to four digits, non-finite ones by name, `–` when it was not measured. */
export function number(value: Known | string): string {
  if (value === undefined || value === null) return ABSENT;
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value === "string") return value === "Infinity" ? "∞" : value === "-Infinity" ? "−∞" : value;
  if (Number.isInteger(value) && Math.abs(value) < 1e7) return WHOLE.format(value).replace("-", "−");
  const size = Math.abs(value);
  if (size >= 1e5) return scaled(value);
  const digits = size >= 1000 ? 0 : size >= 100 ? 1 : size >= 1 ? 2 : size >= 0.01 ? 3 : 0;
  return (digits || size >= 1000 ? value.toFixed(digits) : value.toPrecision(2)).replace("-", "−");
}

/** A threshold as it was set, without digits that mean nothing. */
export function limit(value: Known | string): string {
  return typeof value === "number" && Math.abs(value) < 1e5 ? String(Number(value.toPrecision(4))).replace("-", "−") : number(value);
}

/** A figure to a few digits, without zeros behind them. */
export function brief(value: Known | string, digits: number): string {
  return typeof value === "number" ? limit(Number(value.toPrecision(digits))) : number(value);
}

/** Large counts: 12.3 M; what no letter stands for, by its power of ten. */
export function scaled(value: number): string {
  if (Math.abs(value) >= 1e18) return value.toExponential(2).replace(/^-/, "−");
  for (const [limit, letter] of [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]] as const)
    if (Math.abs(value) >= limit) return `${(value / limit).toPrecision(3)} ${letter}`.replace("-", "−");
  return number(value);
}

/** Round numbers around a stretch, at steps of which some five fit in it; nothing beyond what is possible. */
export function roundEnds(low: number, high: number, least = -Infinity, most = Infinity): { low: number; high: number } {
  const size = (high - low) / 5 || 1;
  const ten = 10 ** Math.floor(Math.log10(size));
  const step = ([1, 2, 5].find((one) => one * ten >= size * 0.8) ?? 10) * ten;
  const at = (count: number) => Number((count * step).toPrecision(12));
  return { low: Math.max(at(Math.floor(low / step + 1e-9)), least), high: Math.min(at(Math.ceil(high / step - 1e-9)), most) };
}

export function bytes(value: number | undefined): string {
  return value === undefined ? ABSENT : `${scaled(value)}B`.replace(/(\d)B$/, "$1 B");
}

export function percent(value: Num | undefined, digits = 0): string {
  return typeof value === "number" ? `${(value * 100).toFixed(digits)} %` : number(value);
}

/** `41 s`, `3 min 5 s`, `2 h 10 min`, `415 d 15 h`. */
export function duration(seconds: number): string {
  const whole = Math.max(0, Math.floor(seconds));
  if (whole < 100) return `${whole} s`;
  if (whole < 6000) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  if (whole < 2 * 86_400) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  return `${WHOLE.format(Math.floor(whole / 86_400))} d ${Math.floor((whole % 86_400) / 3600)} h`;
}

export function clock(time: number | undefined): string {
  return time === undefined ? ABSENT : new Date(time * 1000).toLocaleTimeString("en-GB");
}

export function stamp(time: number | undefined): string {
  if (time === undefined) return ABSENT;
  const date = new Date(time * 1000);
  return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())} ${date.toLocaleTimeString("en-GB")}`;
}

const two = (value: number) => String(value).padStart(2, "0");

/** What kind of value a figure is: decides how it is painted. */
export type Sort = "absent" | "non-finite" | "stale" | "unknown-age" | "value";

export function sortOf(figure: Figure | undefined): Sort {
  if (figure === undefined) return "absent";
  if (typeof figure.value === "string") return "non-finite";
  if (figure.stale) return "stale";
  return figure.epoch === undefined && figure.time === undefined ? "unknown-age" : "value";
}

const MARKS: Record<Sort, string> = { absent: "", "non-finite": "⚠ ", stale: "~ ", "unknown-age": "? ", value: "" };

/** A figure with the mark of its kind: `~` stale, `?` of unknown age, `⚠` not finite. A share is given in percent. */
export function marked(figure: Figure | undefined, unit = ""): string {
  const value = figure?.value;
  const text = unit === "share" && typeof value === "number" ? percent(value) : number(value);
  return `${MARKS[sortOf(figure)]}${text}${unit && unit !== "share" && typeof value === "number" ? ` ${unit}` : ""}`;
}

/** Where and when a figure was measured, in words. */
export function ageOf(figure: Figure | undefined, now: number | undefined): string {
  if (figure === undefined) return "not measured";
  const parts: string[] = [];
  if (figure.epoch !== undefined) parts.push(`epoch ${figure.epoch}`);
  if (figure.time !== undefined && now !== undefined) parts.push(`${duration(now - figure.time)} ago`);
  return parts.length ? `as of ${parts.join(", ")}` : "of unknown age";
}

export function words(name: string): string {
  return name.replaceAll("_", " ");
}

export const LEVEL_GLYPH = { ok: "·", watch: "△", bad: "▲", critical: "◆" } as const;
export const SEVERITY_GLYPH: Record<string, string> = { debug: "·", info: "·", warning: "△", error: "▲", critical: "◆" };
