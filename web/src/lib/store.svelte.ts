/** What the page knows: the newest view, the contact it has, and where the operator looks. */
import { Connection, get, keepToken, Refused, takeToken } from "./connection";
import { parse, rowSubject, type Filter } from "./filter";
import { formatPlace, parsePlace, type Place } from "./route";
import type { EnvironmentRow, Request, RunRow, RunTable, Snapshot, View } from "./schema";
import { tell } from "./tell.svelte";
import { advance, columnsAfter, decodeFrame, type Columns } from "./wire";

/** Milliseconds without a frame after which the page says that it has no contact. */
export const NO_CONTACT = 2000;
/** Milliseconds after which the folder of runs is looked at again. */
const RUNS_EVERY = 3000;
/** Milliseconds in which so many frames are a burst: ten come in a second. */
const BURST = 400;
const BURST_FRAMES = 10;
/** Milliseconds without a burst after which frames come one by one again. */
const BURST_OVER = 30_000;

export interface Mark {
  events: number;
  type: string;
  time?: number;
  env?: number;
}

export interface Timeline {
  events: number;
  start_time?: number;
  end_time?: number;
  marks: Mark[];
  marks_seen: number;
}

export type Line = { device: string; count: number; level: string } | { env: number };

class Overwatch {
  view = $state.raw<View | null>(null);
  place = $state.raw<Place>({ view: "verdict" });
  token = $state<string | null>(null);
  runs = $state.raw<RunRow[]>([]);
  /** Settings in which the runs differ. */
  keys = $state.raw<string[]>([]);
  /** Whether runs can be named, tagged, described, put away and deleted here. */
  edits = $state(false);
  timeline = $state.raw<Timeline | null>(null);
  cursor = $state<number | null>(null);
  byNumber = $state(false);
  filterText = $state("");
  /** Rows of all environments, fetched only while a filter needs more than the listed ones. */
  everyRow = $state.raw<Record<string, EnvironmentRow> | null>(null);
  problem = $state("");
  missed = $state(0);
  /** Milliseconds since the last frame, to the half second. */
  silence = $state(0);
  reason = $state("");
  /** Seconds between bursts of frames, where something on the way keeps them back; 0 where they come one by one. */
  bursts = $state(0);
  /** The server does not know this tab's token: another one was started since. */
  refused = $state(false);
  /** The run that was asked for is not among those of the server. */
  gone = $state(false);
  boardVersion = $state(0);
  columns: Columns | null = null;

  private connection: Connection | null = null;
  private latest: View | null = null;
  private lastFrame = performance.now();
  private painting = false;
  private boardChanged = false;
  private wantedRows = "";

  snapshot = $derived<Snapshot | null>(this.view?.snapshot ?? null);
  detail = $derived(this.view?.detail ?? null);
  replay = $derived(this.view?.mode.kind === "replay");
  noContact = $derived(this.silence >= NO_CONTACT);
  now = $derived(this.view?.snapshot.clock.now);
  private devices = $derived(this.view?.snapshot.devices);
  private listed = $derived(this.view?.snapshot.environments);

  filter = $derived.by<{ filter: Filter | null; error: string }>(() => {
    try {
      return { filter: this.filterText.trim() ? parse(this.filterText, this.keys) : null, error: "" };
    } catch (error) {
      return { filter: null, error: (error as Error).message };
    }
  });

  /** The lines of the flight board in the order shown. */
  lines = $derived.by<Line[]>(() => {
    const wanted = this.filter.filter;
    const rows = wanted ? { ...this.everyRow, ...this.listed } : {};
    const lines: Line[] = [];
    for (const group of this.devices ?? []) {
      let envs = group.environments;
      if (wanted)
        envs = envs.filter((env) => {
          const row = rows[env];
          return row !== undefined && wanted.matches(rowSubject(row));
        });
      if (this.byNumber) envs = [...envs].sort((a, b) => a - b);
      if (!envs.length) continue;
      if (this.devices && this.devices.length > 1) lines.push({ device: group.device, count: envs.length, level: group.level });
      for (const env of envs) lines.push({ env });
    }
    return lines;
  });

  envs = $derived(this.lines.flatMap((line) => ("env" in line ? [line.env] : [])));

  start(): void {
    this.token = takeToken();
    this.place = parsePlace(location.hash);
    this.filterText = this.place.filter ?? "";
    addEventListener("hashchange", () => {
      if (/[#?&]token=/.test(location.hash)) this.token = takeToken();
      this.arrive(parsePlace(location.hash));
    });
    setInterval(() => this.tick(), 500);
    if (this.token) this.connect();
  }

  useToken(token: string): void {
    this.token = keepToken(token);
    this.connect();
  }

  connect(): void {
    this.connection?.close();
    this.refused = this.gone = false;
    this.latest = this.view = null;
    this.columns = null;
    this.timeline = null;
    this.lastFrame = performance.now();
    this.connection = new Connection(this.place.run, this.token ?? "", {
      frame: (data) => this.frame(data),
      opened: () => {
        this.failures = 0;
        this.resume();
      },
      closed: (reason, wasOpen) => {
        this.reason = reason;
        if (!wasOpen) void this.askWhy();
      },
    });
    void this.loadRuns();
    void this.loadTimeline();
  }

  /** When the folder of runs is looked at again; 0 while that goes on. */
  private runsDue = 0;

  ask(request: Request): void {
    this.connection?.ask(request);
  }

  /** Why there is no connection: nobody answers, the token is no longer the right one, or the run is not here. */
  private async askWhy(): Promise<void> {
    try {
      this.take(await get<RunTable>("api/runs"));
      this.gone = this.place.run !== undefined && !this.runs.some((run) => run.name === this.place.run);
      this.failures += 1;
      if (this.failures > 1 && !this.gone) this.problem = "Overwatch answers, but its live connection (WebSocket) does not come about: a proxy in between has to pass that on. It is tried again and again.";
    } catch (error) {
      if (error instanceof Refused && error.status === 401) {
        this.connection?.close();
        this.connection = null;
        this.refused = true;
      }
    }
  }

  /** Change where the operator looks; the address follows, so that every place can be linked to. */
  go(change: Partial<Place>, keep = false): void {
    const next = { ...this.place, ...change };
    // a filter of runs says nothing of environments and events, nor the other way round
    if (ofRuns(next) !== ofRuns(this.place) && !("filter" in change)) delete next.filter;
    const hash = formatPlace(next);
    if (keep || hash === formatPlace(this.place)) history.replaceState(null, "", hash);
    else history.pushState(null, "", hash);
    this.arrive(next);
  }

  open(env: number): void {
    this.cursor = env;
    this.go({ view: "flight", env, slot: undefined, seed: undefined });
  }

  close(): void {
    if (this.place.seed !== undefined || this.place.slot !== undefined) this.go({ seed: undefined, slot: undefined });
    else if (this.place.env !== undefined) this.go({ env: undefined });
  }

  move(by: number): void {
    const { envs } = this;
    if (!envs.length) return;
    const here = this.cursor === null ? -1 : envs.indexOf(this.cursor);
    const next = here < 0 ? (by > 0 ? 0 : envs.length - 1) : Math.min(envs.length - 1, Math.max(0, here + by));
    this.cursor = envs[next] ?? null;
    if (this.place.env !== undefined && this.cursor !== null) this.go({ env: this.cursor, seed: undefined, slot: undefined }, true);
  }

  /** Ask for whole rows of environments that came into sight. */
  want(envs: number[]): void {
    const key = envs.join();
    if (key === this.wantedRows) return;
    this.wantedRows = key;
    this.ask({ envs });
  }

  seek(events: number): void {
    this.ask({ seek: Math.max(0, Math.round(events)) });
  }

  step(by: number): void {
    this.ask({ step: by });
  }

  toggle(): void {
    const mode = this.view?.mode;
    if (mode?.playing) this.ask({ pause: true });
    else this.ask({ play: this.speed });
  }

  speed = $state(1);

  faster(by: number): void {
    const place = SPEEDS.indexOf(this.speed) + by;
    this.speed = SPEEDS[Math.min(SPEEDS.length - 1, Math.max(0, place))] ?? 1;
    if (this.view?.mode.playing) this.ask({ play: this.speed });
  }

  live(): void {
    this.ask({ live: true });
    this.go({ at: undefined }, true);
  }

  async loadTimeline(): Promise<void> {
    const began = performance.now();
    try {
      this.timeline = await get<Timeline>("api/timeline", { run: this.place.run });
      // the server reads on meanwhile: its frames must not be late for the sake of marks
      this.timelineDue = performance.now() + Math.max(10_000, 100 * (performance.now() - began));
    } catch {
      this.timelineDue = performance.now() + 10_000;
    }
  }

  private timelineDue = Number.POSITIVE_INFINITY;

  private take(table: RunTable): void {
    this.runs = table.rows;
    this.keys = table.keys;
    this.edits = table.edits ?? false;
  }

  async loadRuns(): Promise<void> {
    try {
      const began = performance.now();
      this.take(await get<RunTable>("api/runs"));
      this.runsDue = performance.now() + Math.max(RUNS_EVERY, 50 * (performance.now() - began));
    } catch (error) {
      this.problem = (error as Error).message;
      this.runsDue = performance.now() + RUNS_EVERY;
    }
  }

  private arrive(next: Place): void {
    const before = this.place;
    this.place = next;
    if (next.filter !== undefined || ofRuns(next) !== ofRuns(before)) this.filterText = next.filter ?? "";
    if (next.run !== before.run) {
      this.cursor = null;
      this.connect();
      return;
    }
    if (next.env !== before.env) this.ask({ focus: next.env ?? -1 });
    if (next.at !== before.at && next.at !== undefined && next.at !== this.snapshot?.clock.events) this.seek(next.at);
  }

  private resume(): void {
    this.latest = null;
    this.reason = "";
    this.wantedRows = "";
    const { env, at } = this.place;
    if (env !== undefined) this.ask({ focus: env });
    if (at !== undefined) this.seek(at);
  }

  /** A server that stood still sends one newest frame then; a proxy that keeps frames back lets many go at once. */
  private pace(now: number): void {
    const gap = now - this.lastFrame;
    if (gap >= NO_CONTACT) this.burst = { gap, at: now, frames: 1 };
    else if (now - this.burst.at < BURST && ++this.burst.frames >= BURST_FRAMES) this.bursts = Math.round(this.burst.gap / 1000);
    this.lastFrame = now;
  }

  private burst = { gap: 0, at: Number.NEGATIVE_INFINITY, frames: 0 };
  private failures = 0;

  private frame(data: ArrayBuffer): void {
    this.pace(performance.now());
    const frame = decodeFrame(data);
    if (!frame.whole && this.latest === null) return;
    this.latest = advance(this.latest, frame);
    this.missed = frame.missed;
    this.columns = columnsAfter(this.columns, frame);
    if (frame.columns) this.boardChanged = true;
    // here, and not where it is drawn: nothing is drawn in a tab that is not looked at
    const { run, verdict } = this.latest.snapshot;
    if (this.latest.mode.kind === "live" && run.state !== "reading") tell.look(this.place.run ?? run.run_id ?? "run", verdict.tell ?? [], verdict.headline);
    if (this.painting) return;
    this.painting = true;
    // asked for before the work, so that it is not waited for behind it
    requestAnimationFrame(() => this.painted());
    this.publish();
  }

  /** The animation frame that shows what was published: of what came since, only the newest is drawn. */
  private painted(): void {
    if (this.view !== this.latest) this.publish();
    this.painting = false;
    const detail = { taken: this.view?.snapshot.clock.now, received: this.lastFrame };
    dispatchEvent(new CustomEvent("overwatch:frame", { detail }));
  }

  private publish(): void {
    if (this.boardChanged) this.boardVersion += 1;
    this.boardChanged = false;
    this.view = this.latest;
    this.silence = 0;
    this.problem = "";
    const events = this.view?.snapshot.clock.events;
    if (this.replay && !this.view?.mode.playing && events !== undefined && events !== this.place.at)
      this.go({ at: events }, true);
  }

  private tick(): void {
    if (this.refused) return;
    const silence = performance.now() - this.lastFrame;
    if (this.bursts && performance.now() - this.burst.at > BURST_OVER) this.bursts = 0;
    this.silence = this.token && silence >= NO_CONTACT ? Math.floor(silence / 500) * 500 : 0;
    const count = this.devices?.reduce((sum, group) => sum + group.environments.length, 0) ?? 0;
    if (this.runsDue && performance.now() > this.runsDue && !this.noContact) {
      this.runsDue = 0;
      void this.loadRuns();
    }
    if (this.filter.filter && count > Object.keys(this.listed ?? {}).length) void this.fetchRows();
    else if (this.everyRow) this.everyRow = null;
    if (performance.now() > this.timelineDue && this.snapshot && this.timeline?.events !== this.snapshot.clock.events) {
      this.timelineDue = Number.POSITIVE_INFINITY;
      void this.loadTimeline();
    }
  }

  private fetching = false;

  private async fetchRows(): Promise<void> {
    if (this.fetching) return;
    this.fetching = true;
    try {
      const events = this.replay ? this.snapshot?.clock.events : undefined;
      this.everyRow = (await get<Snapshot>("api/snapshot", { run: this.place.run, events })).environments;
    } catch (error) {
      this.problem = (error as Error).message;
    } finally {
      this.fetching = false;
    }
  }
}

const ofRuns = (place: Place): boolean => place.view === "runs";

export const SPEEDS = [0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 100, 1000];

export const overwatch = new Overwatch();
