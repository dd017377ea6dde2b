/** The flight board on a canvas: only lines in sight are drawn, from rows where there are some, else from columns. */
import { ABSENT, brief, LEVEL_GLYPH, marked } from "./format";
import { WIRE, type Chip, type EnvironmentRow, type Figure } from "./schema";
import type { Line } from "./store.svelte";
import type { Columns } from "./wire";

type Level = EnvironmentRow["level"];

export interface Layout {
  width: number;
  height: number;
  /** Narrow screens: short columns. */
  narrow: boolean;
  /** Two lines for each environment, the reason on the second: where there is room, and on narrow boards. */
  double: boolean;
  line: number;
  head: number;
  ratio: number;
  map: number;
}

export interface Scene {
  lines: Line[];
  rowOf: (env: number) => EnvironmentRow | undefined;
  columns: Columns | null;
  slots: string[];
  unit: string;
  scroll: number;
  cursor: number | null;
  opened: number | undefined;
}

export type Paint = (name: string) => string;

const STAGES = Object.entries(WIRE.stages).reduce<string[]>((names, [name, code]) => ((names[code] = name), names), []);
const GLYPHS: Record<string, string> = WIRE.glyphs;
export const RANKS: Array<[number, Level]> = [[1, "critical"], [0.6, "bad"], [0.25, "watch"]];

export function layoutOf(width: number, height: number, lines: number): Layout {
  const narrow = width < 560;
  const double = narrow || width < 720 || lines * 46 < height - 26;
  const line = double ? 46 : 30;
  const head = narrow ? 0 : 26;
  const overflow = lines * line > height - head;
  return { width, height, narrow, double, line, head, ratio: Math.min(2, devicePixelRatio || 1), map: overflow && !narrow ? 36 : 0 };
}

/** Stages in which a gate can hold a seed back. */
const LIVE = new Set(["GERMINATED", "TRAINING", "BLENDING", "HOLDING"]);

/** How strongly a level colours its row. */
const TINT = { watch: 0.07, bad: 0.11, critical: 0.15 } as const;

export const stageName = (code: number | undefined): string | undefined => STAGES[code ?? WIRE.noStage];
export const glyphOf = (stage: string | undefined): string => GLYPHS[stage ?? ""] ?? "?";

/** A row as far as columns tell it, for environments whose whole rows have not come yet. */
export function rowFromColumns(columns: Columns, index: number, slots: string[]): EnvironmentRow {
  const fact = (name: (typeof WIRE.envColumns)[number]): Figure | undefined => {
    const at = WIRE.envColumns.indexOf(name) * columns.count + index;
    return figureOf(columns.env[at], columns.envKind[at]);
  };
  const plain = (name: (typeof WIRE.envColumns)[number]) => fact(name)?.value as number | undefined;
  const rank = plain("rank") ?? 0;
  const level = RANKS.find(([least]) => rank >= least)?.[1] ?? "ok";
  const chips: Record<string, Chip> = {};
  slots.slice(0, columns.slots).forEach((slot, cell) => {
    const at = index * columns.slots + cell;
    const stage = stageName(columns.stage[at]);
    const gate = columns.gate[at];
    chips[slot] = {
      slot,
      stage,
      glyph: glyphOf(stage),
      alpha: figureOf(columns.cell[at], columns.cellKind[at]),
      gate_passed: gate ? gate === WIRE.gates.PASSED : undefined,
    };
  });
  return {
    ...{ env: columns.ids[index] ?? 0, device: "", level, score: rank, rank, status: "", slots: chips },
    ...{ epoch: plain("epoch"), max_epochs: plain("max_epochs"), metric: fact("metric"), loss: fact("loss") },
  };
}

function figureOf(value: number | undefined, kind: number | undefined): Figure | undefined {
  const { kinds } = WIRE;
  switch (kind) {
    case kinds.VALUE:
      return { value: value ?? 0, time: 0 };
    case kinds.STALE:
      return { value: value ?? 0, stale: true };
    case kinds.NAN:
      return { value: "NaN" };
    case kinds.POSITIVE_INFINITY:
      return { value: "Infinity" };
    case kinds.NEGATIVE_INFINITY:
      return { value: "-Infinity" };
  }
  return undefined;
}

/** What a line of the canvas shows; a row that did not change is the same object. */
interface Drawn {
  entry: Line;
  row: EnvironmentRow | null;
  marked: boolean;
}

/** Draws the part of the board that is in sight, and of that only the lines that show something else than before. */
export class Painter {
  private before: { layout: Layout; scene: Scene; colour: Paint } | null = null;
  private drawn = new Map<number, Drawn>();

  constructor(private readonly canvas: HTMLCanvasElement) {}

  paint(layout: Layout, scene: Scene, colour: Paint): void {
    const context = this.canvas.getContext("2d", { alpha: false });
    if (!context || !layout.width) return;
    const { height, head, line, map } = layout;
    const columns = columnsOf(layout, scene.slots.length);
    const indexOf = scene.columns ? indexer(scene.columns) : null;
    if (!this.goesOn(layout, scene, colour)) this.clear(context, layout, colour);
    this.before = { layout, scene, colour };
    const first = Math.max(0, Math.floor(scene.scroll / line));
    const last = Math.ceil((scene.scroll + height - head) / line) + 1;
    let changed = false;
    for (let at = first; at < last; at += 1) {
      const entry = scene.lines[at];
      const now = entry === undefined ? null : this.shown(entry, scene, indexOf);
      if (same(now, this.drawn.get(at))) continue;
      const y = head + at * line - scene.scroll;
      context.fillStyle = colour("ground");
      context.fillRect(0, y, layout.width - map, line);
      if (now === null) this.drawn.delete(at);
      else this.drawn.set(at, now);
      if (now && "device" in now.entry) drawDevice(context, layout, now.entry, y, colour);
      else if (now && "env" in now.entry) drawRow(context, layout, columns, scene, { env: now.entry.env, row: now.row, y }, colour);
      changed = true;
    }
    if (head && changed) drawHead(context, layout, columns, scene, colour);
    if (map && scene.columns) drawMap(context, layout, scene, colour);
  }

  /** Whether what was drawn can be drawn on. */
  private goesOn(layout: Layout, scene: Scene, colour: Paint): boolean {
    const before = this.before;
    if (before?.layout !== layout || before.colour !== colour) return false;
    // a line that begins within a pixel cannot be cleared without its neighbour
    if (!Number.isInteger(layout.ratio) || !Number.isInteger(scene.scroll)) return false;
    return before.scene.scroll === scene.scroll && before.scene.slots === scene.slots && before.scene.unit === scene.unit;
  }

  private clear(context: CanvasRenderingContext2D, layout: Layout, colour: Paint): void {
    const { width, height, ratio } = layout;
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.textBaseline = "middle";
    context.fillStyle = colour("ground");
    context.fillRect(0, 0, width, height);
    this.drawn.clear();
  }

  private shown(entry: Line, scene: Scene, indexOf: ((env: number) => number | undefined) | null): Drawn {
    if ("device" in entry) return { entry, row: null, marked: false };
    const { env } = entry;
    const index = indexOf?.(env);
    const row = scene.rowOf(env) ?? (scene.columns && index !== undefined ? rowFromColumns(scene.columns, index, scene.slots) : null);
    return { entry, row, marked: env === scene.cursor || env === scene.opened };
  }
}

function same(now: Drawn | null, before: Drawn | undefined): boolean {
  if (now === null || before === undefined) return now === null && before === undefined;
  if (now.marked || before.marked || now.row !== before.row) return false;
  const [one, other] = [now.entry, before.entry];
  if ("env" in one) return "env" in other && one.env === other.env;
  return "device" in other && one.device === other.device && one.count === other.count;
}

interface Places {
  env: number;
  metric: number;
  spark: number;
  epoch: number;
  slots: number;
  chip: number;
  reason: number;
  end: number;
}

function columnsOf(layout: Layout, slots: number): Places {
  const end = layout.width - layout.map - 12;
  if (layout.narrow) return { env: 30, metric: 128, spark: 0, epoch: 188, slots: 200, chip: Math.min(26, (end - 200) / Math.max(1, slots)), reason: 30, end };
  const wide = layout.width > 820;
  const start = wide ? 320 : 250;
  if (layout.double) {
    const chip = Math.min(190, (end - start) / Math.max(1, slots));
    return { env: 34, metric: 150, spark: wide ? 166 : 0, epoch: wide ? 300 : 232, slots: start, chip, reason: 70, end };
  }
  const reason = Math.max(190, (end - start) * 0.48);
  const room = Math.min(150, (end - start - reason - 16) / Math.max(1, slots));
  // where only the glyph fits, the reason gets what the glyph does not need
  const chip = room < 40 ? Math.min(room, 23) : room;
  return { env: 34, metric: 150, spark: wide ? 166 : 0, epoch: wide ? 302 : 232, slots: start, chip, reason: start + chip * slots + 16, end };
}

const MONO = 'ui-monospace, "SF Mono", "Cascadia Mono", "Roboto Mono", "DejaVu Sans Mono", monospace';
const SANS = 'system-ui, "Segoe UI", "Helvetica Neue", "Noto Sans", "DejaVu Sans", sans-serif';
const mono = (size = 12.5, weight = 400) => `${weight} ${size}px ${MONO}`;
const sans = (size = 12.5, weight = 400) => `${weight} ${size}px ${SANS}`;

function write(context: CanvasRenderingContext2D, text: string, x: number, y: number, style: string, font: string, align: CanvasTextAlign = "left"): void {
  if (!text) return;
  context.font = font;
  context.fillStyle = style;
  context.textAlign = align;
  context.fillText(text, x, y);
}

/** Letters of a name, with the sign that it is cut, that tell it from others. */
const NAMED = 5;

/** `text` cut with an ellipsis so that it fits. */
export function fit(context: CanvasRenderingContext2D, text: string, width: number): string {
  if (width <= 0) return "";
  const whole = context.measureText(text).width;
  if (whole <= width) return text;
  const fits = (length: number) => context.measureText(`${text.slice(0, length)}…`).width <= width;
  // letters are about equally wide, so the cut is near their share
  let length = Math.min(text.length - 1, Math.max(0, Math.floor((text.length * width) / whole)));
  while (length > 0 && !fits(length)) length -= 1;
  while (length < text.length - 1 && fits(length + 1)) length += 1;
  return length ? `${text.slice(0, length)}…` : "";
}

function drawHead(context: CanvasRenderingContext2D, layout: Layout, at: Places, scene: Scene, colour: Paint): void {
  context.fillStyle = colour("ground");
  context.fillRect(0, 0, layout.width, layout.head);
  const y = layout.head / 2;
  const font = sans(11, 500);
  const label = (text: string, x: number, align: CanvasTextAlign = "left") => write(context, text, x, y, colour("faint"), font, align);
  label("env", at.env);
  label(scene.unit || "metric", at.metric, "right");
  if (at.spark) label("course", at.spark);
  label("epoch", at.epoch, "right");
  scene.slots.forEach((slot, index) => {
    context.font = font;
    if (at.chip >= 40) label(fit(context, slot, at.chip - 8), at.slots + index * at.chip + 2);
  });
  if (at.chip < 40) label(`${scene.slots.length} slots`, at.slots);
  if (!layout.double) label("why it stands here", at.reason);
  rule(context, 0, layout.head - 0.5, layout.width - layout.map, colour("line-strong"));
}

function drawDevice(context: CanvasRenderingContext2D, layout: Layout, entry: Extract<Line, { device: string }>, y: number, colour: Paint): void {
  const text = `${entry.device} · ${entry.count} environment${entry.count === 1 ? "" : "s"}`;
  write(context, text, 14, y + layout.line - 14, colour("soft"), sans(11.5, 600));
  rule(context, 0, y + layout.line - 0.5, layout.width - layout.map, colour("line"));
}

function drawRow(context: CanvasRenderingContext2D, layout: Layout, at: Places, scene: Scene, line: { env: number; row: EnvironmentRow | null; y: number }, colour: Paint): void {
  const { env, row, y } = line;
  const level: Level = row?.level ?? "ok";
  const width = layout.width - layout.map;
  if (level !== "ok") {
    // what is on fire is a band of its colour, seen before it is read
    context.fillStyle = colour(level);
    context.globalAlpha = TINT[level];
    context.fillRect(0, y, width, layout.line - 1);
    context.globalAlpha = 1;
    context.fillRect(0, y, 4, layout.line - 1);
  }
  if (env === scene.opened || env === scene.cursor) {
    context.fillStyle = colour(env === scene.opened ? "select" : "raise");
    context.fillRect(level === "ok" ? 0 : 4, y, width, layout.line - 1);
  }
  if (env === scene.cursor) {
    context.strokeStyle = colour("accent");
    context.lineWidth = 1.5;
    context.strokeRect(1, y + 1, width - 2, layout.line - 3);
  }
  const middle = y + (layout.double ? 14 : layout.line / 2);
  write(context, LEVEL_GLYPH[level], 20, middle, colour(level), sans(13), "center");
  write(context, String(env), at.env, middle, colour(level === "ok" ? "ink" : level), mono(12.5, level === "ok" ? 400 : 600));
  rule(context, 0, y + layout.line - 0.5, width, colour("line"));
  if (!row) {
    write(context, "…", at.metric, middle, colour("faint"), mono(), "right");
    return;
  }
  const odd = typeof row.metric?.value === "string";
  write(context, row.metric ? marked(row.metric) : ABSENT, at.metric, middle, colour(odd ? "critical" : row.metric?.stale ? "faint" : "ink"), mono(12.5, odd ? 600 : 400), "right");
  if (at.spark) drawSpark(context, row.spark ?? [], at.spark, y + (layout.double ? 5 : 7), 80, layout.double ? 18 : layout.line - 14, colour);
  write(context, row.epoch === undefined ? ABSENT : row.max_epochs === undefined ? `${row.epoch}` : `${row.epoch}/${row.max_epochs}`, at.epoch, middle, colour("soft"), mono(11.5), "right");
  scene.slots.forEach((slot, index) => {
    const chip = row.slots?.[slot];
    drawChip(context, chip, at.slots + index * at.chip, y + 4, at.chip - 4, layout.double ? 20 : layout.line - 9, colour);
  });
  drawReason(context, layout, at, row, y, colour);
}

function drawReason(context: CanvasRenderingContext2D, layout: Layout, at: Places, row: EnvironmentRow, y: number, colour: Paint): void {
  const middle = layout.double ? y + 34 : y + layout.line / 2;
  const factors = row.factors ?? [];
  const first = factors[0];
  const all = factors.map((factor) => factor.text).join(" · ");
  const held = Object.values(row.slots ?? {}).filter((chip) => chip.gate_passed === false && chip.gate && LIVE.has(chip.stage ?? ""));
  const calm = row.status === "running" || row.status === "" ? (row.last_action ?? "").toLowerCase() : row.status;
  const quiet = held.length ? held.map((chip) => `${chip.gate} holds back ${chip.blueprint ?? "a seed"} in ${chip.slot}`).join(" · ") : calm;
  const score = first ? row.score.toFixed(2) : "";
  if (score) write(context, score, at.end, middle, colour(row.level === "ok" ? "faint" : row.level), mono(12, 600), "right");
  context.font = sans(12.5);
  const text = fit(context, first ? all : quiet, at.end - at.reason - (score ? 42 : 0));
  write(context, text, at.reason, middle, colour(first && row.level !== "ok" ? "ink" : first || held.length ? "soft" : "faint"), sans(12.5));
}

function drawChip(context: CanvasRenderingContext2D, chip: Chip | undefined, x: number, y: number, width: number, height: number, colour: Paint): void {
  const stage = chip?.stage;
  const tone = colour(stage ? `stage-${stage.toLowerCase()}` : "faint");
  const empty = stage === undefined || stage === "DORMANT";
  if (!empty) {
    context.globalAlpha = 0.16;
    context.fillStyle = tone;
    context.fillRect(x, y, width, height);
    context.globalAlpha = 1;
  }
  const alpha = chip?.alpha?.value;
  if (!empty && typeof alpha === "number") {
    context.fillStyle = tone;
    context.fillRect(x, y + height - 2, Math.max(0, Math.min(1, alpha)) * width, 2);
  }
  const middle = y + height / 2;
  write(context, chip?.glyph ?? "?", x + Math.min(10, width / 2), middle, tone, sans(12.5, 600), "center");
  const failed = chip?.gate_passed === false;
  if (width >= 90 && chip && !empty) {
    const gate = chip.gate ? `${chip.gate}${chip.gate_passed ? "✓" : "✕"}` : "";
    context.font = mono(11);
    const gateWidth = gate ? context.measureText(gate).width + 6 : 0;
    if (gate) write(context, gate, x + width - 4, middle, colour(failed ? "bad" : "soft"), mono(11, failed ? 600 : 400), "right");
    context.font = sans(12);
    const strength = alpha === undefined ? "" : ` ${brief(alpha, 2)}`;
    const room = width - 24 - gateWidth;
    const whole = chip.blueprint ?? "";
    // a name cut to a letter says nothing: the strength, which the bar below shows too, makes room for it
    const beside = fit(context, whole, room - context.measureText(strength).width);
    const name = beside.length >= Math.min(NAMED, whole.length) ? `${beside}${strength}` : fit(context, whole, room);
    write(context, name.length >= Math.min(NAMED, whole.length) ? name.trim() : strength.trim(), x + 20, middle, colour("ink"), sans(12));
  } else if (width >= 40 && !empty) {
    write(context, alpha === undefined ? "" : brief(alpha, 2), x + 20, middle, colour("soft"), mono(10.5));
    if (failed) write(context, "✕", x + width - 3, middle, colour("bad"), sans(11, 700), "right");
  } else if (failed) write(context, "✕", x + width - 1, y + 5, colour("bad"), sans(9, 700), "right");
}

function drawSpark(context: CanvasRenderingContext2D, values: NonNullable<EnvironmentRow["spark"]>, x: number, y: number, width: number, height: number, colour: Paint): void {
  const finite = values.filter((value): value is number => typeof value === "number");
  if (!values.length) return;
  const low = Math.min(...finite);
  // a wobble of a hundredth must not look like a collapse
  const span = Math.max(Math.max(...finite) - low, 0.04 * Math.abs(low)) || 1;
  const step = width / Math.max(1, values.length - 1);
  context.strokeStyle = colour("soft");
  context.lineWidth = 1.25;
  context.beginPath();
  let drawing = false;
  values.forEach((value, index) => {
    if (typeof value !== "number") {
      drawing = false;
      return;
    }
    const px = x + index * step;
    const py = y + height - ((value - low) / span) * height;
    if (drawing) context.lineTo(px, py);
    else context.moveTo(px, py);
    drawing = true;
  });
  context.stroke();
  values.forEach((value, index) => {
    if (typeof value !== "number") write(context, "×", x + index * step, y + height / 2, colour("critical"), sans(12, 700), "center");
  });
}

/** All environments at once, one line of pixels each, in the order of the board; the frame is what is in sight. */
function drawMap(context: CanvasRenderingContext2D, layout: Layout, scene: Scene, colour: Paint): void {
  const columns = scene.columns;
  if (!columns) return;
  const { width, height, map, line, head } = layout;
  context.fillStyle = colour("ground");
  context.fillRect(width - map, 0, map, height);
  const left = width - map + 6;
  const inner = map - 10;
  const step = height / scene.lines.length;
  const indexOf = indexer(columns);
  const image = new ImageData(Math.max(1, columns.slots), Math.max(1, scene.lines.length));
  const pixels = new Uint32Array(image.data.buffer);
  const tones = tonesOf(colour);
  scene.lines.forEach((entry, at) => {
    const index = "env" in entry ? indexOf(entry.env) : undefined;
    if (index === undefined) return;
    for (let slot = 0; slot < columns.slots; slot += 1)
      pixels[at * columns.slots + slot] = tones[columns.stage[index * columns.slots + slot] ?? WIRE.noStage] ?? 0;
    const rank = columns.env[index] ?? 0;
    const level = rank < 0.25 ? undefined : RANKS.find(([least]) => rank >= least)?.[1];
    if (level) {
      context.fillStyle = colour(level);
      context.fillRect(left - 5, at * step, 3, Math.max(1, step));
    }
  });
  sheet ??= document.createElement("canvas");
  sheet.width = image.width;
  sheet.height = image.height;
  sheet.getContext("2d")?.putImageData(image, 0, 0);
  context.imageSmoothingEnabled = image.height > height;
  context.drawImage(sheet, left, 0, inner, height);
  context.strokeStyle = colour("ink");
  context.lineWidth = 1;
  context.strokeRect(left - 1.5, (scene.scroll / line) * step + 0.5, inner + 2, Math.max(6, ((height - head) / line) * step) - 1);
}

let sheet: HTMLCanvasElement | null = null;

/** Stage code -> pixel, for the map. */
function tonesOf(colour: Paint): Uint32Array {
  const tones = new Uint32Array(256);
  STAGES.forEach((stage, code) => (tones[code] = pixelOf(colour(`stage-${stage.toLowerCase()}`))));
  tones[WIRE.noStage] = pixelOf(colour("line"));
  return tones;
}

function pixelOf(hex: string): number {
  const value = Number.parseInt(hex.slice(1), 16);
  return ((255 << 24) | ((value & 255) << 16) | (value & 0xff00) | (value >> 16)) >>> 0;
}

let indexed: { ids: Int32Array; map: Map<number, number> } | null = null;

function indexer(columns: Columns): (env: number) => number | undefined {
  if (indexed?.ids !== columns.ids) {
    const same = indexed?.ids.length === columns.count && columns.ids.every((id, at) => id === indexed?.ids[at]);
    indexed = { ids: columns.ids, map: same && indexed ? indexed.map : new Map(Array.from(columns.ids, (id, at) => [id, at])) };
  }
  const { map } = indexed;
  return (env) => map.get(env);
}

function rule(context: CanvasRenderingContext2D, x: number, y: number, width: number, style: string): void {
  context.strokeStyle = style;
  context.lineWidth = 1;
  context.beginPath();
  context.moveTo(x, y);
  context.lineTo(x + width, y);
  context.stroke();
}
