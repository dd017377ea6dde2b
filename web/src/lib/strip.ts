/** The lines of a chart as tiles side by side: while a range moves they are copied, and only what comes into sight is drawn.
 *
 * A thousand points of each of fifty lines take a processor longer to paint than there is between two frames. */
import type uPlot from "uplot";

/** One line: where its values stand in the chart's data, and those of its extremes. */
export interface Stroke {
  column: number;
  colour: string;
  width: number;
  shade?: { low: number; high: number; fill: string };
}

type Values = ReadonlyArray<number | null | undefined>;

/** Pixels of a tile; a chart keeps so many of them. */
const WIDE = 96;
const KEPT = 48;
/** Pixels for which a line has two points, its least and its most, at most. */
const GRAIN = 4;

export class Strip {
  private readonly tiles = new Map<number, HTMLCanvasElement>();
  private scales = "";
  private origin = 0;
  private data: uPlot.AlignedData | null = null;

  constructor(private readonly strokes: readonly Stroke[]) {}

  /** Put what is in sight onto the chart's canvas. */
  draw(plot: uPlot): void {
    const { left, top, width, height } = plot.bbox;
    const { min, max } = plot.scales.x ?? {};
    if (min == null || max == null || width <= 0 || height <= 0) return;
    const pixel = (max - min) / width;
    const { y } = plot.scales;
    const scales = [pixel.toPrecision(9), height, y?.min, y?.max, y?.distr, plot.scales.r?.min, plot.scales.r?.max].join(" ");
    if (scales !== this.scales || plot.data !== this.data) {
      this.tiles.clear();
      [this.scales, this.data, this.origin] = [scales, plot.data, min];
    }
    const from = Math.round((min - this.origin) / pixel);
    const { ctx } = plot;
    ctx.save();
    ctx.beginPath();
    ctx.rect(left, top, width, height);
    ctx.clip();
    for (let at = Math.floor(from / WIDE); at * WIDE < from + width; at += 1) {
      let tile = this.tiles.get(at);
      if (!tile) {
        tile = this.paint(plot, this.origin + at * WIDE * pixel, pixel, height);
        this.tiles.set(at, tile);
        if (this.tiles.size > KEPT) this.tiles.delete(this.tiles.keys().next().value ?? at);
      }
      ctx.drawImage(tile, left + at * WIDE - from, top);
    }
    ctx.restore();
  }

  private paint(plot: uPlot, start: number, pixel: number, height: number): HTMLCanvasElement {
    const tile = document.createElement("canvas");
    [tile.width, tile.height] = [WIDE, height];
    const ctx = tile.getContext("2d");
    if (!ctx) return tile;
    ctx.lineJoin = "round";
    const [at, { top }] = [plot.data[0], plot.bbox];
    const x = (index: number) => ((at[index] ?? 0) - start) / pixel;
    const step = Math.max(1, Math.floor((GRAIN * pixel * at.length) / ((at.at(-1) ?? 0) - (at[0] ?? 0) || 1)));
    const first = plot.valToIdx(start);
    const last = plot.valToIdx(start + WIDE * pixel);
    for (const { column, colour, width, shade } of this.strokes) {
      const aligned = (width % 2) / 2; // as uPlot does
      ctx.setTransform(1, 0, 0, 1, aligned, aligned);
      const scale = plot.series[column]?.scale ?? "y";
      const y = (value: number) => plot.valToPos(value, scale, true) - top;
      const values = plot.data[column] as Values;
      // whole steps, and a point beyond either end, so that tiles meet
      const [from, to] = [before(values, first, step), after(values, last, step)];
      if (shade) {
        ctx.fillStyle = shade.fill;
        ctx.fill(between(plot.data[shade.low] as Values, plot.data[shade.high] as Values, from, to, step, x, y));
      }
      ctx.strokeStyle = colour;
      ctx.lineWidth = width;
      ctx.stroke(along(values, from, to, step, x, y));
    }
    return tile;
  }
}

function before(values: Values, index: number, step: number): number {
  let from = Math.max(0, index - step - 1);
  while (from > 0 && values[from] === undefined) from -= 1;
  return from - (from % step);
}

function after(values: Values, index: number, step: number): number {
  let to = Math.min(values.length - 1, index + step + 1);
  while (to < values.length - 1 && values[to] === undefined) to += 1;
  return to;
}

type Place = (value: number) => number;

/** The least and the most of each step, in their order; a gap where one was not measured. */
export function along(values: Values, from: number, to: number, step: number, x: Place, y: Place): Path2D {
  const path = new Path2D();
  let drawing = false;
  const go = (index: number, value: number) => {
    if (drawing) path.lineTo(x(index), y(value));
    else path.moveTo(x(index), y(value));
    drawing = true;
  };
  for (let begin = from; begin <= to; begin += step) {
    let [low, high] = [-1, -1];
    for (let index = begin; index < begin + step && index <= to; index += 1) {
      const value = values[index];
      if (value === null) drawing = false;
      if (typeof value !== "number") continue;
      if (low < 0 || value < (values[low] ?? 0)) low = index;
      if (high < 0 || value > (values[high] ?? 0)) high = index;
    }
    if (low < 0) continue;
    for (const index of low === high ? [low] : low < high ? [low, high] : [high, low]) go(index, values[index] ?? 0);
  }
  return path;
}

/** The surface between the least and the most of each step. */
function between(lows: Values, highs: Values, from: number, to: number, step: number, x: Place, y: Place): Path2D {
  const path = new Path2D();
  const [edge, back]: [Array<[number, number]>, Array<[number, number]>] = [[], []];
  for (let begin = from; begin <= to; begin += step) {
    let [low, high] = [Infinity, -Infinity];
    for (let index = begin; index < begin + step && index <= to; index += 1) {
      low = Math.min(low, lows[index] ?? Infinity);
      high = Math.max(high, highs[index] ?? -Infinity);
    }
    if (low > high) continue;
    edge.push([x(begin), y(high)]);
    back.push([x(begin), y(low)]);
  }
  for (const [at, [left, top]] of [...edge, ...back.reverse()].entries()) path[at ? "lineTo" : "moveTo"](left, top);
  path.closePath();
  return path;
}
