/** What the keys do, wherever the focus is, but for fields that take text. */
import { VIEWS } from "./route";
import { overwatch } from "./store.svelte";
import { theme } from "./theme.svelte";

export interface Hands {
  help(): void;
  export(): void;
  filter(): void;
}

export function press(event: KeyboardEvent, hands: Hands): void {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const target = event.target as HTMLElement;
  if (target.matches("input:not([type=range]):not([type=checkbox]), select, textarea")) return;
  const act = keyed(event.key, target, hands);
  if (!act) return;
  event.preventDefault();
  act();
}

function keyed(key: string, target: HTMLElement, hands: Hands): (() => void) | null {
  const button = target.matches("button, a, summary, input");
  const view = /^[1-9]$/.test(key) ? VIEWS[Number(key) - 1] : undefined;
  if (view) return () => overwatch.go({ view });
  switch (key) {
    case "?":
      return hands.help;
    case "x":
      return hands.export;
    case "/":
      return hands.filter;
    case "j":
    case "ArrowDown":
      return () => overwatch.move(1);
    case "k":
    case "ArrowUp":
      return () => overwatch.move(-1);
    case "PageDown":
      return () => overwatch.move(20);
    case "PageUp":
      return () => overwatch.move(-20);
    case "g":
    case "Home":
      return () => overwatch.move(-1e9);
    case "G":
    case "End":
      return () => overwatch.move(1e9);
    case "Enter":
      return button ? null : enter;
    case "Escape":
      return () => overwatch.close();
    case " ":
      return button && !target.matches("input") ? null : () => overwatch.toggle();
    case "h":
      return () => overwatch.step(-1);
    case "l":
      return () => overwatch.step(1);
    case "H":
      return () => overwatch.step(-100);
    case "L":
      return () => overwatch.step(100);
    case "[":
      return () => overwatch.faster(-1);
    case "]":
      return () => overwatch.faster(1);
    case "0":
      return () => overwatch.seek(0);
    case "$":
      return () => overwatch.seek(overwatch.timeline?.events ?? 0);
    case "n":
      return () => overwatch.live();
    case "s":
      return () => (overwatch.byNumber = !overwatch.byNumber);
    case "t":
      return () => theme.toggle();
  }
  return null;
}

/** Open the environment under the cursor; once it is open, its first blocked seed, else its first seed. */
function enter(): void {
  const { cursor, place, detail, envs } = overwatch;
  if (place.env === undefined || place.env !== (cursor ?? place.env)) {
    const env = cursor ?? envs[0];
    if (env !== undefined) overwatch.open(env);
    return;
  }
  const seeds = Object.values(detail?.slots ?? {}).flatMap((slot) => (slot.seed ? [slot.seed] : []));
  const seed = seeds.find((one) => one.blocked) ?? seeds[0];
  if (seed) overwatch.go({ slot: seed.slot, seed: seed.seed });
}
