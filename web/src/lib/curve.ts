/** Curves from the wire as lines of a chart; non-finite points become marks, never numbers. */
import type { Curve, Num } from "./schema";
import type { Line } from "../parts/Chart.svelte";

const finite = (value: Num | undefined): number | null => (typeof value === "number" ? value : null);

export function lineOf(label: string, curve: Curve, tone: string, extra: Partial<Line> = {}): Line {
  return {
    label,
    tone,
    at: curve.at,
    value: curve.last.map(finite),
    low: curve.low.map(finite),
    high: curve.high.map(finite),
    odd: curve.at.filter((_, index) => (curve.nans[index] ?? 0) > 0 || typeof curve.last[index] === "string"),
    ...extra,
  };
}

/** How many points stand behind what is drawn. */
export function drawn(curve: Curve): string {
  return curve.at.length < curve.seen ? `${curve.at.length} buckets of ${curve.seen} points, least to most shaded` : `${curve.seen} points`;
}
