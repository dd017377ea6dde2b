/** The binary frames of the WebSocket, and the patches inside them. */
import { WIRE, type View } from "./schema";

const HEADER = 32;

/** The flight board as columns; see esper.karn.web.columns. */
export interface Columns {
  count: number;
  slots: number;
  ids: Int32Array;
  env: Float32Array;
  cell: Float32Array;
  envKind: Uint8Array;
  cellKind: Uint8Array;
  stage: Uint8Array;
  gate: Uint8Array;
}

export interface Frame {
  sequence: number;
  missed: number;
  whole: boolean;
  content: unknown;
  /** Columns of all environments, or of some. */
  columns: Columns | null;
  /** Places of those some. */
  rows: Int32Array | null;
}

export type Patch = readonly unknown[] | null;

/** Take a frame apart. Throws on anything that is not one. */
export function decodeFrame(buffer: ArrayBuffer): Frame {
  const header = new DataView(buffer, 0, HEADER);
  const magic = String.fromCharCode(...new Uint8Array(buffer, 0, 4));
  if (magic !== WIRE.magic) throw new Error(`not a frame: it starts with ${JSON.stringify(magic)}`);
  const word = (index: number) => header.getUint32(index * 4, true);
  const length = word(3);
  const text = new TextDecoder().decode(new Uint8Array(buffer, HEADER, length));
  const [count, slots, changed] = [word(4), word(5), word(7)];
  const rows = changed ? new Int32Array(buffer, HEADER + length, changed) : null;
  return {
    sequence: word(1),
    missed: word(2),
    whole: word(6) === 1,
    content: JSON.parse(text),
    columns: count ? decodeColumns(buffer, HEADER + length + 4 * changed, changed || count, slots) : null,
    rows,
  };
}

function decodeColumns(buffer: ArrayBuffer, start: number, count: number, slots: number): Columns {
  const { envColumns, cellColumns } = WIRE;
  let at = start;
  const take = <T>(make: (at: number, length: number) => T, length: number, bytes: number): T => {
    const made = make(at, length);
    at += length * bytes;
    return made;
  };
  const floats = (from: number, length: number) => new Float32Array(buffer, from, length);
  const codes = (from: number, length: number) => new Uint8Array(buffer, from, length);
  return {
    count,
    slots,
    ids: take((from, length) => new Int32Array(buffer, from, length), count, 4),
    env: take(floats, envColumns.length * count, 4),
    cell: take(floats, cellColumns.length * count * slots, 4),
    envKind: take(codes, envColumns.length * count, 1),
    cellKind: take(codes, cellColumns.length * count * slots, 1),
    stage: take(codes, count * slots, 1),
    gate: take(codes, count * slots, 1),
  };
}

/** The columns after `frame`: others, or those `before` with some environments written over. */
export function columnsAfter(before: Columns | null, { columns, rows }: Frame): Columns | null {
  if (columns === null || rows === null) return columns ?? before;
  if (before === null) throw new Error("columns of some environments before those of all");
  const { envColumns, cellColumns } = WIRE;
  const { count, slots } = before;
  rows.forEach((row, at) => {
    for (let column = 0; column < envColumns.length; column += 1) {
      const [to, from] = [column * count + row, column * columns.count + at];
      before.env[to] = columns.env[from] ?? 0;
      before.envKind[to] = columns.envKind[from] ?? 0;
    }
    for (let column = 0; column < cellColumns.length; column += 1) {
      const [to, from] = [(column * count + row) * slots, (column * columns.count + at) * slots];
      before.cell.set(columns.cell.subarray(from, from + slots), to);
      before.cellKind.set(columns.cellKind.subarray(from, from + slots), to);
    }
    before.stage.set(columns.stage.subarray(at * slots, (at + 1) * slots), row * slots);
    before.gate.set(columns.gate.subarray(at * slots, (at + 1) * slots), row * slots);
  });
  return before;
}

/** `value` with `patch` applied, as a new object; parts that the patch leaves alone are shared. */
export function applyPatch(value: unknown, patch: Patch): unknown {
  if (patch === null) return value;
  switch (patch[0]) {
    case "=":
      return patch[1];
    case "{}": {
      const next: Record<string, unknown> = { ...(value as Record<string, unknown>) };
      for (const [key, inner] of Object.entries(patch[1] as Record<string, Patch>)) next[key] = applyPatch(next[key], inner);
      for (const key of patch[2] as string[]) delete next[key];
      return next;
    }
    case "[]": {
      const kept = (value as unknown[]).slice(patch[1] as number);
      for (const [index, inner] of Object.entries(patch[2] as Record<string, Patch>))
        kept[Number(index)] = applyPatch(kept[Number(index)], inner);
      return kept.concat(patch[3] as unknown[]);
    }
  }
  throw new Error(`not a patch: ${JSON.stringify(patch).slice(0, 80)}`);
}

/** The view after `frame`. */
export function advance(view: View | null, frame: Frame): View {
  return (frame.whole ? frame.content : applyPatch(view, frame.content as Patch)) as View;
}
