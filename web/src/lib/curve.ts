/** Curves from the wire as lines of a chart; non-finite points become marks, never numbers. */
import type { Curve, CurveLine, Num } from "./schema";

export interface Line {
  label: string;
  at: number[];
  value: Array<number | null>;
  /** Extremes around the value; absent where each point stands for itself. */
  low?: Array<number | null>;
  high?: Array<number | null>;
  /** Where a value was not finite. */
  odd?: number[];
  tone: string;
  dash?: number[];
  /** Drawn thinner: a control, what was trained on. */
  second?: boolean;
  /** On an axis of its own, to the right. */
  right?: boolean;
}

/** A stretch of the positions behind the lines. */
export interface Band {
  from: number;
  until: number;
  colour: string;
}

export type Range = readonly [number, number] | null;

export const TONES = ["accent", "stage-blending", "stage-holding", "stage-pruned", "stage-training", "stage-germinated", "stage-fossilized", "soft"] as const;

/** One colour for everything of one hue: those of the page, then around the circle. Dashes would take long to draw. */
export function toneOf(hue: number): string {
  return TONES[hue] ?? `hue-${Math.round((hue * 137.508) % 360)}`;
}

/** A tone in a style sheet. */
export function inCss(tone: string): string {
  return tone.startsWith("hue-") ? `oklch(var(--hue-lightness) 0.12 ${tone.slice(4)})` : `var(--${tone})`;
}

const finite = (value: Num | undefined): number | null => (typeof value === "number" ? value : null);
/** The values themselves where all are finite, as nearly always: copying many curves takes long. */
const numbers = (values: Num[]): Array<number | null> => (values.every((value) => typeof value === "number") ? (values as number[]) : values.map(finite));

export function lineOf(label: string, curve: Curve, tone: string, extra: Partial<Line> = {}): Line {
  const value = numbers(curve.last);
  const sound = value === (curve.last as unknown) && !curve.nans.some((count) => count > 0);
  return {
    label,
    tone,
    at: curve.at,
    value,
    ...(curve.low.length ? { low: numbers(curve.low), high: numbers(curve.high) } : {}),
    odd: sound ? [] : curve.at.filter((_, index) => (curve.nans[index] ?? 0) > 0 || typeof curve.last[index] === "string"),
    ...extra,
  };
}

export function hued(line: CurveLine): Line {
  return lineOf(line.label, line.curve, toneOf(line.hue), { second: line.dashed });
}

/** How many points stand behind what is drawn. */
export function drawn(curve: Curve): string {
  return curve.at.length < curve.seen ? `${curve.at.length} buckets of ${curve.seen} points, least to most shaded` : `${curve.seen} points`;
}

/** Every line over the union of all positions; what a line did not measure is a gap (`undefined` where it says nothing). */
export function aligned(at: number[], lines: Line[], change: (line: Line) => Array<Array<number | null>>): Array<Array<number | null | undefined>> {
  let place: Map<number, number> | undefined;
  return lines.flatMap((line) => {
    const columns = change(line);
    if (line.at.length === at.length) return columns;
    const known = (place ??= new Map(at.map((where, index) => [where, index])));
    const places = line.at.map((where) => known.get(where) ?? 0);
    return columns.map((values) => {
      const spread: Array<number | null | undefined> = Array.from({ length: at.length });
      for (const [index, where] of places.entries()) spread[where] = values[index] ?? null;
      return spread;
    });
  });
}

/** Positions of all lines, in order, each once. */
export function positions(lines: Line[]): number[] {
  const [first] = lines;
  if (first && lines.every((line) => same(line.at, first.at))) return first.at;
  return [...new Set(lines.flatMap((line) => line.at))].sort((a, b) => a - b);
}

function same(one: number[], other: number[]): boolean {
  if (one.length !== other.length) return false;
  for (let index = 0; index < one.length; index += 1) if (one[index] !== other[index]) return false;
  return true;
}

/** A running mean in which each value weighs `1 - by`, freed of its start (Adam's correction). */
export function softened(values: Array<number | null>, by: number): Array<number | null> {
  if (by <= 0) return values;
  let [mean, weight] = [0, 0];
  return values.map((value) => {
    if (value === null) return null;
    mean = by * mean + (1 - by) * value;
    weight = by * weight + (1 - by);
    return mean / weight;
  });
}

/** What is shown of all positions; a single one stands in the middle. */
export function roomFor([first, last]: readonly [number, number]): readonly [number, number] {
  return first < last ? [first, last] : [first - 0.5, last + 0.5];
}

/** A range as wide as asked for, within the extent; `null` for all of it. */
export function within(from: number, to: number, [first, last]: readonly [number, number]): Range {
  const width = Math.min(to - from, last - first);
  if (width <= 0 || width >= last - first) return null;
  const low = Math.min(Math.max(from, first), last - width);
  return [low, low + width];
}
