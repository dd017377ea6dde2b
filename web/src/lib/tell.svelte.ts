/** Desktop notices of what a person who is not looking wants to know: off until asked for, and only while a tab is open. */
const KEY = "esper.tell";

class Tell {
  on = $state(localStorage.getItem(KEY) === "yes" && granted());
  problem = $state("");
  private run: string | undefined;
  private so: ReadonlySet<string> | null = null;

  async toggle(): Promise<void> {
    this.problem = "";
    if (this.on) {
      this.on = false;
      localStorage.removeItem(KEY);
      return;
    }
    if (!("Notification" in window)) {
      this.problem = "this browser gives notices only to pages of this machine, or behind https";
      return;
    }
    if ((await Notification.requestPermission()) !== "granted") {
      this.problem = "the browser does not let this page give notices; allow that in its settings";
      return;
    }
    this.on = true;
    localStorage.setItem(KEY, "yes");
  }

  /** What a run is now. What it was when the page first saw it is not told. */
  look(run: string, kinds: string[], headline: string): void {
    const before = this.run === run ? this.so : null;
    this.run = run;
    this.so = new Set(kinds);
    const news = before === null ? [] : kinds.filter((kind) => !before.has(kind));
    if (news.length && this.on && granted()) new Notification(`${run}: ${news.join(", ")}`, { body: headline, tag: run });
  }
}

function granted(): boolean {
  return "Notification" in window && Notification.permission === "granted";
}

export const tell = new Tell();
