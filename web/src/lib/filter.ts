/** The filter language, as esper.karn.filter has it: `env=3 stage=blending severity>=warning text`. */
import type { EnvironmentRow, FeedItem, RunRow } from "./schema";

type Value = string | number;
export type Subject = Record<string, Value | Value[] | undefined>;

const ORDERS: Record<string, readonly string[]> = {
  severity: ["debug", "info", "warning", "error", "critical"],
  level: ["ok", "watch", "bad", "critical"],
};
const NUMBERS = new Set(["env", "episode", "epoch", "score", "metric", "loss", "parameters", "time", "duration"]);
const WORDS = new Set(["type", "slot", "seed", "stage", "blueprint", "gate", "arm", "policy", "device", "status", "factor", "run", "task", "kind", "state", "name", "tag", "archived"]);
export const FIELDS = [...NUMBERS, ...Object.keys(ORDERS), ...WORDS].sort();

const COMPARE: Record<string, (a: Value, b: Value) => boolean> = {
  "=": (a, b) => a === b,
  "!=": (a, b) => a !== b,
  ">": (a, b) => a > b,
  ">=": (a, b) => a >= b,
  "<": (a, b) => a < b,
  "<=": (a, b) => a <= b,
};

interface Term {
  negated: boolean;
  field: string | null;
  op: string;
  values: Value[];
}

export interface Filter {
  text: string;
  matches(subject: Subject): boolean;
}

const TERM = /(-?)(?:([A-Za-z_]+)\s*(!=|>=|<=|=|>|<)\s*)?("[^"]*"?|[^\s"]*)/y;

/** Parse a filter. Throws an error whose message says where it is wrong. `also` are names of settings: their values compare as numbers where both are. */
export function parse(text: string, also: readonly string[] = []): Filter {
  const terms: Term[] = [];
  let at = 0;
  while (at < text.length) {
    if (/\s/.test(text[at] ?? "")) {
      at += 1;
      continue;
    }
    TERM.lastIndex = at;
    const match = TERM.exec(text);
    if (!match?.[0]) throw wrong(at, `cannot read ${JSON.stringify(text[at])}`);
    terms.push(term(match, at, also));
    at += match[0].length;
  }
  return { text, matches: (subject) => terms.every((one) => holds(one, subject) !== one.negated) };
}

function term(match: RegExpExecArray, at: number, also: readonly string[]): Term {
  const [whole, not, field, op, given] = match as unknown as [string, string, string?, string?, string?];
  let raw = given ?? "";
  const place = at + whole.length - raw.length;
  let values: string[];
  if (raw.startsWith('"')) {
    if (raw.length < 2 || !raw.endsWith('"')) throw wrong(place, "the quotation is not closed");
    raw = raw.slice(1, -1);
    values = [raw];
  } else values = field === undefined ? [raw] : raw.split(",");
  if (!raw || values.some((value) => !value))
    throw wrong(place, field === undefined ? "a word is missing" : `a value after ${field}${op} is missing`);
  if (field === undefined || op === undefined)
    return { negated: not === "-", field: null, op: "", values: [raw.toLowerCase()] };
  const name = field.toLowerCase();
  if (!FIELDS.includes(name) && !also.includes(name)) throw wrong(at + not.length, `unknown field '${field}': choose from ${[...FIELDS, ...also].join(", ")}`);
  if (WORDS.has(name) && op !== "=" && op !== "!=")
    throw wrong(at + not.length + field.length, `${name} has no order, so ${op} makes no sense; use = or !=`);
  return { negated: not === "-", field: name, op, values: values.map((value) => rank(name, value, place)) };
}

function holds(one: Term, subject: Subject): boolean {
  if (one.field === null) return String(subject.text ?? "").toLowerCase().includes(String(one.values[0]));
  const given = subject[one.field];
  if (given === undefined) return false;
  const field = one.field;
  const ranked = (Array.isArray(given) ? given : [given]).map((value) => rank(field, value, 0));
  const ask = COMPARE[one.op] ?? (() => false);
  // of a setting one value may be a number and another a word: those are unlike, and in no order
  const compare = (a: Value, b: Value) => (typeof a === typeof b ? ask(a, b) : one.op === "!=");
  // "is none of them" must hold for all, everything else for any
  return one.op === "!="
    ? ranked.every((value) => one.values.every((wanted) => compare(value, wanted)))
    : ranked.some((value) => one.values.some((wanted) => compare(value, wanted)));
}

function rank(field: string, value: Value, at: number): Value {
  if (NUMBERS.has(field)) {
    const name = String(value).trim().toLowerCase();
    const found = NON_FINITE[name.replace(/^\+/, "")] ?? (name ? Number(name) : Number.NaN);
    if (Number.isNaN(found) && !/^[+-]?nan$/.test(name)) throw wrong(at, `${field} is a number, not '${value}'`);
    return found;
  }
  const order = ORDERS[field];
  const folded = String(value).toLowerCase();
  if (!order) return WORDS.has(field) || !folded.trim() || Number.isNaN(Number(folded)) ? folded : Number(folded);
  if (!order.includes(folded)) throw wrong(at, `${field} is one of ${order.join(", ")}, not '${value}'`);
  return order.indexOf(folded);
}

const NON_FINITE: Record<string, number> = { inf: Infinity, infinity: Infinity, "-inf": -Infinity, "-infinity": -Infinity };

const wrong = (at: number, problem: string) => new Error(`filter, position ${at + 1}: ${problem}`);

/** Fields of a feed item. */
export function itemSubject(item: FeedItem): Subject {
  const names = [item.type, item.slot, item.seed, item.blueprint, item.stage].filter((name) => name !== undefined);
  return { ...item, text: [item.text, ...names].join(" ") } as Subject;
}

/** Fields of a run, its settings by their names. */
export function runSubject(row: RunRow): Subject {
  const settings = Object.entries(row.settings ?? {}).map(([name, value]) => [name, Array.isArray(value) ? value.map(String) : typeof value === "number" || typeof value === "string" ? value : String(value)]);
  const { name, task, policy, kind, state, level, result, created, seconds, headline, title, tags = [], notes } = row;
  return {
    ...(Object.fromEntries(settings) as Subject),
    ...{ run: name, task, policy, kind, state, level, metric: result, time: created, duration: seconds, name: title, tag: tags.length ? tags : undefined, archived: row.archived ? "yes" : "no" },
    text: [name, task, policy, state, headline, title, ...tags, notes].filter(Boolean).join(" "),
  };
}

/** Fields of an environment; slots, stages, blueprints and factors match if any of them does. */
export function rowSubject(row: EnvironmentRow): Subject {
  const chips = Object.values(row.slots ?? {});
  const all = (values: Array<string | undefined>) => values.filter((value): value is string => value !== undefined);
  const { env, episode, epoch, arm, policy, device, status, level, score } = row;
  const blueprints = all(chips.map((chip) => chip.blueprint));
  const factors = row.factors ?? [];
  return {
    ...{ env, episode, epoch, arm, policy, device, status, level, score },
    metric: row.metric?.value as Value | undefined,
    loss: row.loss?.value as Value | undefined,
    parameters: row.parameters?.value as Value | undefined,
    slot: chips.map((chip) => chip.slot),
    stage: all(chips.map((chip) => chip.stage)),
    blueprint: blueprints,
    seed: all(chips.map((chip) => chip.seed)),
    gate: all(chips.map((chip) => chip.gate)),
    factor: factors.map((factor) => factor.name),
    text: [...factors.map((factor) => factor.text), arm ?? "", ...chips.map((chip) => chip.slot), ...blueprints].join(" "),
  };
}
