/**
 * Drives Debian's Chromium for the tests: one JSON request a line on standard input, one JSON answer a line back.
 * {"do": "open", "url", "width", "height", "scheme"} and so on; see the table at the end.
 */
import { createInterface } from "node:readline";
import { AxeBuilder } from "@axe-core/playwright";
import { chromium } from "playwright-core";

const FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"];
const browser = await chromium.launch({ executablePath: process.argv[2] ?? "/usr/bin/chromium", args: FLAGS });
let page = null;
let said = [];
let watched = null;
let session = null;

/** One page for all, since a new one costs seconds; `fresh` gives one that knows nothing, not even the token. */
async function open({ url, width = 1280, height = 800, scheme = "dark", fresh = false }) {
  if (fresh || page === null) {
    await page?.context().close();
    const context = await browser.newContext({ deviceScaleFactor: 1, acceptDownloads: true });
    page = await context.newPage();
    page.on("console", (message) => ["error", "warning"].includes(message.type()) && said.push(message.text()));
    page.on("pageerror", (error) => said.push(String(error)));
    page.setDefaultTimeout(15_000);
  } else await page.goto("about:blank");
  await page.setViewportSize({ width, height });
  await page.emulateMedia({ colorScheme: scheme });
  said = [];
  await page.goto(url);
}

const actions = {
  open,
  visit: ({ url }) => page.goto(url),
  size: ({ width, height }) => page.setViewportSize({ width, height }),
  press: ({ key }) => page.keyboard.press(key),
  type: ({ text }) => page.keyboard.type(text),
  click: ({ selector }) => page.locator(selector).first().click(),
  drag: async ({ selector, from, to }) => {
    const box = await page.locator(selector).first().boundingBox();
    const at = (share) => [box.x + share * box.width, box.y + box.height / 2];
    await page.mouse.move(...at(from));
    await page.mouse.down();
    await page.mouse.move(...at(to), { steps: 4 });
    await page.mouse.up();
  },
  fill: ({ selector, text }) => page.locator(selector).first().fill(text),
  wait: ({ selector, state = "visible" }) => page.locator(selector).first().waitFor({ state }).then(() => null),
  text: ({ selector }) => page.locator(selector).first().innerText(),
  texts: ({ selector }) => page.locator(selector).allTextContents(),
  eval: ({ code }) => page.evaluate(code),
  shot: ({ path }) => page.screenshot({ path }).then(() => null),
  axe: async () => {
    // there are no frames and no foreign sheets, and what passes is not asked for: each would cost a second a view
    const { violations } = await new AxeBuilder({ page }).setLegacyMode().options({ resultTypes: ["violations"], preload: false }).analyze();
    return violations.map(({ id, help, nodes }) => `${id}: ${help}: ${nodes.map((node) => node.html.slice(0, 160)).slice(0, 4).join(" | ")}`);
  },
  download: async ({ selector, path }) => {
    const [download] = await Promise.all([page.waitForEvent("download"), page.locator(selector).first().click()]);
    await download.saveAs(path);
    return download.suggestedFilename();
  },
  metrics: async () => {
    if (watched !== page) {
      watched = page;
      session = await page.context().newCDPSession(page);
      await session.send("Performance.enable");
      await session.send("HeapProfiler.enable");
    }
    const { metrics } = await session.send("Performance.getMetrics");
    await session.send("HeapProfiler.collectGarbage");
    const heap = await session.send("Runtime.getHeapUsage");
    return { ...Object.fromEntries(metrics.map(({ name, value }) => [name, value])), heap: heap.usedSize };
  },
  said: () => said,
};

for await (const line of createInterface({ input: process.stdin })) {
  const { do: name, ...given } = JSON.parse(line);
  try {
    const answer = await actions[name](given);
    console.log(JSON.stringify({ ok: answer === undefined || typeof answer === "function" ? null : answer }, (_, value) => (value?.constructor?.name === "Response" ? null : value)));
  } catch (error) {
    console.log(JSON.stringify({ error: String(error?.message ?? error) }));
  }
}
await browser.close();
