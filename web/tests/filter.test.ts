import { expect, test } from "vitest";
import shared from "../../tests/karn/filter_cases.json";
import { itemSubject, parse, rowSubject } from "../src/lib/filter";
import type { EnvironmentRow, FeedItem } from "../src/lib/schema";

interface Case {
  filter: string;
  error?: boolean;
  items?: string[];
  rows?: number[];
}

test.each(shared.cases as Case[])("$filter", (one) => {
  if (one.error) {
    expect(() => parse(one.filter)).toThrow(/position/);
    return;
  }
  const wanted = parse(one.filter);
  expect((shared.items as FeedItem[]).filter((item) => wanted.matches(itemSubject(item))).map((item) => item.id)).toEqual(one.items);
  expect((shared.rows as unknown as EnvironmentRow[]).filter((row) => wanted.matches(rowSubject(row))).map((row) => row.env)).toEqual(one.rows);
});
