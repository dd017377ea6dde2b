/** Light and dark: the system's choice until the operator makes one. Colours for the canvas are read from the sheet. */
const KEY = "esper.theme";

class Theme {
  chosen = $state<"light" | "dark" | null>(localStorage.getItem(KEY) as "light" | "dark" | null);
  system = $state<"light" | "dark">(matchMedia("(prefers-color-scheme: light)").matches ? "light" : "dark");
  name = $derived(this.chosen ?? this.system);

  constructor() {
    matchMedia("(prefers-color-scheme: light)").addEventListener("change", (event) => {
      this.system = event.matches ? "light" : "dark";
    });
  }

  toggle(): void {
    this.chosen = this.name === "dark" ? "light" : "dark";
    localStorage.setItem(KEY, this.chosen);
  }

  /** Write the theme to the page and give its colours. */
  apply(): void {
    document.documentElement.dataset.theme = this.name;
  }
}

export const theme = new Theme();

/** A function from the names of custom properties, and of hues (`hue-120`), to colours for a canvas. */
export function palette(): (name: string, alpha?: number) => string {
  const sheet = getComputedStyle(document.documentElement);
  const known = new Map<string, string>();
  return (name, alpha = 1) => {
    if (name.startsWith("hue-")) return `oklch(${sheet.getPropertyValue("--hue-lightness").trim()} 0.12 ${name.slice(4)} / ${alpha})`;
    let value = known.get(name);
    if (value === undefined) known.set(name, (value = sheet.getPropertyValue(`--${name}`).trim()));
    return alpha === 1 ? value : `${value}${Math.round(alpha * 255).toString(16).padStart(2, "0")}`;
  };
}
