/** Curves of a run or of several, asked for again as their journals grow. */
import { get } from "./connection";
import type { RunCurves } from "./schema";
import { overwatch } from "./store.svelte";

type Query = Record<string, string | number | undefined>;

/** Least milliseconds between two questions; a server that reads for long is asked less often. */
const EVERY = 5000;
const SHARE = 10;

export class CurvesOf {
  found = $state.raw<RunCurves | null>(null);
  problem = $state("");
  /** What `found` answers. */
  of = $state.raw<Query>({});
  private answers = $state(0);

  /** Within a component: it asks what `query` gives, and anew when that changes or the run has said something. */
  constructor(query: () => Query) {
    let [asked, busy, known, read, due] = [0, false, "", -1, 0];
    const load = async (asking: Query) => {
      const [mine, began] = [++asked, performance.now()];
      busy = true;
      try {
        const found = await get<RunCurves>("api/curves", asking);
        if (mine === asked) [this.found, this.of, this.problem] = [found, asking, ""];
      } catch (error) {
        if (mine === asked) this.problem = (error as Error).message;
      }
      if (mine !== asked) return;
      due = performance.now() + Math.max(EVERY, SHARE * (performance.now() - began));
      busy = false;
      this.answers += 1;
    };
    const events = $derived(overwatch.snapshot?.clock.events ?? 0);
    $effect(() => {
      const [asking, now] = [query(), events];
      const key = JSON.stringify(asking);
      void this.answers;
      if (key === known && (busy || now === read)) return;
      const start = () => {
        [known, read] = [key, now];
        void load(asking);
      };
      const later = setTimeout(start, key === known ? Math.max(0, due - performance.now()) : 0);
      return () => clearTimeout(later);
    });
  }
}
