/** What the address says: the view, and a moment, an environment and a seed to look at. */
export const VIEWS = ["verdict", "flight", "curves", "events", "governor", "runs", "compare", "leaders"] as const;
export type ViewName = (typeof VIEWS)[number];

export interface Place {
  view: ViewName;
  run?: string;
  env?: number;
  slot?: string;
  seed?: string;
  /** Events folded at the moment shown; absent while now is shown. */
  at?: number;
  filter?: string;
  /** Names of the runs to compare, with commas; absent for the newest. */
  runs?: string;
}

export function parsePlace(hash: string): Place {
  const body = hash.replace(/^#\/?/, "");
  const [path = "", query = ""] = body.includes("?") ? body.split("?", 2) : body.includes("=") ? ["", body] : [body];
  const fields = new URLSearchParams(query);
  const text = (name: string) => fields.get(name) ?? undefined;
  const whole = (name: string) => (/^\d+$/.test(fields.get(name) ?? "") ? Number(fields.get(name)) : undefined);
  return {
    view: VIEWS.find((view) => view === path) ?? "verdict",
    run: text("run"),
    env: whole("env"),
    slot: text("slot"),
    seed: text("seed"),
    at: whole("at"),
    filter: text("filter"),
    runs: text("runs"),
  };
}

export function formatPlace(place: Place): string {
  const { view, ...rest } = place;
  const known = Object.entries(rest).filter(([, value]) => value !== undefined && value !== "");
  const query = new URLSearchParams(known.map(([name, value]) => [name, String(value)])).toString();
  return `#/${view}${query ? `?${query}` : ""}`;
}
