import { describe, expect, test } from "vitest";
import { roomFor } from "../src/lib/curve";
import { csv } from "../src/lib/export";
import { ageOf, duration, limit, marked, number, roundEnds, sortOf } from "../src/lib/format";
import { formatPlace, parsePlace } from "../src/lib/route";
import { along } from "../src/lib/strip";
import { WIRE } from "../src/lib/schema";
import { applyPatch, columnsAfter, decodeFrame } from "../src/lib/wire";

describe("values that must not look alike", () => {
  test("absent, zero, non-finite, stale and of unknown age", () => {
    const shown = [undefined, { value: 0, epoch: 1 }, { value: "NaN", epoch: 1 }, { value: "-Infinity", epoch: 1 }, { value: 0, epoch: 1, stale: true }, { value: 0 }] as const;
    expect(shown.map((figure) => marked(figure))).toEqual(["–", "0", "⚠ NaN", "⚠ −∞", "~ 0", "? 0"]);
    expect(new Set(shown.map((figure) => sortOf(figure))).size).toBe(5);
  });

  test("ages in words", () => {
    expect(ageOf({ value: 1, epoch: 7, time: 100 }, 141)).toBe("as of epoch 7, 41 s ago");
    expect(ageOf({ value: 1 }, 141)).toBe("of unknown age");
    expect(ageOf(undefined, 141)).toBe("not measured");
  });

  test.each([[0.31, "0.310"], [1e-7, "1.0e−7"], [-3.14159, "−3.14"], [1234567.8, "1.23 M"], [-1e18, "−1.00e+18"], [true, "yes"], [42, "42"]])("%s", (value, text) => {
    expect(number(value)).toBe(text);
  });

  test("limits keep no empty digits", () => expect([limit(0.5), limit(2), limit("Infinity")]).toEqual(["0.5", "2", "∞"]));
  test.each([
    [4.795, 15.2, 0, 100, 4, 16],
    [93.1, 99.8, 0, 100, 92, 100],
    [-0.0123, 0.0042, -Infinity, Infinity, -0.015, 0.005],
    [1.05, 9.4, 1.5, 9, 1.5, 9],
  ])("the ends of an axis from %d to %d are round numbers", (low, high, least, most, first, last) => {
    expect(roundEnds(low, high, least, most)).toEqual({ low: first, high: last });
  });
  test("durations", () => expect([duration(41), duration(185), duration(7800)]).toEqual(["41 s", "3 min 5 s", "2 h 10 min"]));
});

describe("patches", () => {
  test("every kind", () => {
    const value = { a: [1, 2, 3], b: { c: 1, d: 2 }, e: 5 };
    const patch = ["{}", { a: ["[]", 1, { "0": ["=", 9] }, [4]], b: ["{}", { c: ["=", 7] }, ["d"]] }, ["e"]];
    expect(applyPatch(value, patch)).toEqual({ a: [9, 3, 4], b: { c: 7 } });
    expect(value.a).toEqual([1, 2, 3]);
    expect(applyPatch(value, null)).toBe(value);
  });

  test("what is no patch is refused", () => expect(() => applyPatch({}, ["?"])).toThrow(/not a patch/));
});

describe("frames", () => {
  test("anything else is refused", () => expect(() => decodeFrame(new ArrayBuffer(40))).toThrow(/not a frame/));

  /** A frame whose numbers all are `start`, `start + 1`, ... */
  function frame(envs: number[], slots: number, start: number, rows: number[] = []): ArrayBuffer {
    const count = rows.length || envs.length;
    const floats = count * (WIRE.envColumns.length + WIRE.cellColumns.length * slots);
    const bytes = floats + 2 * count * slots;
    const buffer = new ArrayBuffer(32 + 8 + 4 * rows.length + 4 * count + 4 * floats + bytes);
    new Uint8Array(buffer, 0, 4).set([...WIRE.magic].map((letter) => letter.charCodeAt(0)));
    new Uint32Array(buffer, 4, 7).set([1, 0, 8, envs.length, slots, 0, rows.length]);
    new Uint8Array(buffer, 32, 8).set([..."null    "].map((letter) => letter.charCodeAt(0)));
    new Int32Array(buffer, 40, rows.length + count).set([...rows, ...(rows.length ? rows.map((row) => envs[row] ?? -1) : envs)]);
    new Float32Array(buffer, 40 + 4 * (rows.length + count), floats).set(Array.from({ length: floats }, (_, at) => start + at));
    new Uint8Array(buffer, buffer.byteLength - bytes).set(Array.from({ length: bytes }, (_, at) => (start + at) % 256));
    return buffer;
  }

  test("columns of some environments are written over those of all", () => {
    const envs = [0, 4, 9];
    const whole = columnsAfter(null, decodeFrame(frame(envs, 2, 0)));
    const fresh = columnsAfter(null, decodeFrame(frame(envs, 2, 0)));
    const some = decodeFrame(frame(envs, 2, 100, [2, 0]));
    const after = columnsAfter(whole, some);
    for (let row = 0; row < 3; row += 1) {
      const [source, count, at] = row === 1 ? [fresh, 3, 1] : [some.columns, 2, row === 2 ? 0 : 1];
      for (let column = 0; column < WIRE.envColumns.length; column += 1) {
        expect(after?.env[column * 3 + row]).toBe(source?.env[column * count + at]);
        expect(after?.envKind[column * 3 + row]).toBe(source?.envKind[column * count + at]);
      }
      for (let slot = 0; slot < 2; slot += 1) {
        for (let column = 0; column < WIRE.cellColumns.length; column += 1) {
          expect(after?.cell[(column * 3 + row) * 2 + slot]).toBe(source?.cell[(column * count + at) * 2 + slot]);
          expect(after?.cellKind[(column * 3 + row) * 2 + slot]).toBe(source?.cellKind[(column * count + at) * 2 + slot]);
        }
        expect(after?.stage[row * 2 + slot]).toBe(source?.stage[at * 2 + slot]);
        expect(after?.gate[row * 2 + slot]).toBe(source?.gate[at * 2 + slot]);
      }
    }
    expect([...(after?.ids ?? [])]).toEqual(envs);
    expect(() => columnsAfter(null, some)).toThrow(/before those of all/);
  });
});

describe("places", () => {
  test.each(["#/flight", "#/flight?env=3&slot=stem&seed=e3-stem-1&at=812", "#/events?run=a%26b&filter=env%3D3+-x"])("%s", (hash) => {
    expect(formatPlace(parsePlace(hash))).toBe(hash);
  });

  test("a bare fragment and nonsense", () => {
    expect(parsePlace("#at=0")).toMatchObject({ view: "verdict", at: 0 });
    expect(parsePlace("#/nowhere?env=-3")).toMatchObject({ view: "verdict", env: undefined });
  });
});

test("a spreadsheet runs nothing", async () => {
  const text = await csv([{ name: "=1+1", n: -3, list: [1, "a"] }, { name: 'say "hi"', gone: undefined }]).text();
  expect(text).toBe('name,n,list,gone\r\n\'=1+1,-3,"[1,""a""]",\r\n"say ""hi""",,,\r\n');
});

test("a single position has room, and two are the ends", () => expect([roomFor([1, 1]), roomFor([1, 9])]).toEqual([[0.5, 1.5], [1, 9]]));

describe("lines drawn roughly", () => {
  class Path {
    said: string[] = [];
    moveTo = (x: number, y: number) => this.said.push(`M${x},${y}`);
    lineTo = (x: number, y: number) => this.said.push(`L${x},${y}`);
  }
  globalThis.Path2D = Path as unknown as typeof Path2D;
  const drawn = (values: Array<number | null | undefined>, step: number, from = 0, to = values.length - 1) => (along(values, from, to, step, (x) => x, (y) => y) as unknown as Path).said.join(" ");

  test("each step keeps its least and its most, in their order", () => expect(drawn([1, 9, 2, 8, 3, 3], 2)).toBe("M0,1 L1,9 L2,2 L3,8 L4,3"));
  test("what was not measured is a gap, what is of another line is none", () => expect(drawn([1, undefined, 2, null, 3], 1)).toBe("M0,1 L2,2 M4,3"));
  test("a part of it", () => expect(drawn([5, 6, 7, 8], 1, 1, 2)).toBe("M1,6 L2,7"));
});
