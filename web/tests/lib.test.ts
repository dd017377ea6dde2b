import { describe, expect, test } from "vitest";
import { csv } from "../src/lib/export";
import { ageOf, duration, limit, marked, number, sortOf } from "../src/lib/format";
import { formatPlace, parsePlace } from "../src/lib/route";
import { applyPatch, decodeFrame } from "../src/lib/wire";

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

  test.each([[0.31, "0.310"], [1e-7, "1.0e−7"], [-3.14159, "−3.14"], [1234567.8, "1.23 M"], [true, "yes"], [42, "42"]])("%s", (value, text) => {
    expect(number(value)).toBe(text);
  });

  test("limits keep no empty digits", () => expect([limit(0.5), limit(2), limit("Infinity")]).toEqual(["0.5", "2", "∞"]));
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
});

describe("places", () => {
  test.each(["#/flight", "#/flight?env=3&slot=stem&seed=e3-stem-1&at=812", "#/events?run=a%26b&filter=env%3D3+-x"])("%s", (hash) => {
    expect(formatPlace(parsePlace(hash))).toBe(hash);
  });

  test("a bare fragment and nonsense", () => {
    expect(parsePlace("#at=0")).toMatchObject({ view: "flight", at: 0 });
    expect(parsePlace("#/nowhere?env=-3")).toMatchObject({ view: "flight", env: undefined });
  });
});

test("a spreadsheet runs nothing", async () => {
  const text = await csv([{ name: "=1+1", n: -3, list: [1, "a"] }, { name: 'say "hi"', gone: undefined }]).text();
  expect(text).toBe('name,n,list,gone\r\n\'=1+1,-3,"[1,""a""]",\r\n"say ""hi""",,,\r\n');
});
