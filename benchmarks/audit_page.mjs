// What bars people from a report page, by axe-core: node audit_page.mjs PAGE CHROMIUM
// Light, dark and on a phone; also the time to the chart, and messages of the console.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { resolve } from "node:path";
import puppeteer from "puppeteer-core";

const [page_file, executablePath] = process.argv.slice(2);
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const browser = await puppeteer.launch({ executablePath, args: ["--no-sandbox"] });
let problems = 0;
for (const [name, scheme, width] of [["light", "light", 1280], ["dark", "dark", 1280], ["phone", "light", 390]]) {
  const page = await browser.newPage();
  const said = [];
  page.on("console", (message) => said.push(message.text()));
  page.on("pageerror", (error) => said.push(String(error)));
  await page.setViewport({ width, height: 900 });
  await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
  await page.evaluateOnNewDocument(() => {
    new MutationObserver((_, observer) => {
      if (!document.querySelector(".chart canvas")) return;
      window.chartAt = performance.now();
      observer.disconnect();
    }).observe(document, { childList: true, subtree: true });
  });
  await page.goto(`file://${resolve(page_file)}`, { timeout: 120000 });
  await page.waitForSelector(".chart canvas", { timeout: 120000 });
  const [chart, whole] = await page.evaluate(() => [chartAt, performance.getEntriesByType("navigation")[0].loadEventEnd]);
  console.log(`${name}: chart after ${Math.round(chart)} ms, the whole page after ${Math.round(whole)} ms`);
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => axe.run());
  for (const found of violations) {
    console.log(`  ${found.id} (${found.impact}): ${found.help}; ${found.nodes[0].html.slice(0, 120)}`);
  }
  for (const text of said) console.log(`  console: ${text}`);
  problems += violations.length + said.length;
  await page.close();
}
await browser.close();
console.log(problems ? `${problems} problems` : "nothing found");
process.exit(problems ? 1 : 0);
