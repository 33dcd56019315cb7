// Opens the console's pages in headless Chromium, wide and light, then narrow and dark, with axe-core on each.
// node console_browser.js ADDRESS TOKEN FOLDER PAGE...   prints a JSON list of what is wrong
const { chromium } = require("playwright-core");
const axe = require("fs").readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

const [address, token, folder, ...pages] = process.argv.slice(2);
const found = [];

async function look(page, path, mode) {
  const answer = await page.goto(address + path);
  if (answer.status() >= 500) found.push(`${path} ${mode}: ${answer.status()}`);
  const name = path.replace(/[^a-z]+/g, "-").slice(0, 40);
  await page.screenshot({ path: `${folder}/${name}-${mode}.png`, fullPage: true });
  const wide = await page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
  if (wide > 0) found.push(`${path} ${mode}: ${wide} pixels wider than the window`);
  await page.evaluate(() => document.querySelectorAll("details").forEach((one) => { one.open = true; }));
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => window.axe.run(document));
  for (const one of violations) found.push(`${path} ${mode}: ${one.id}: ${one.nodes.map((node) => node.html.slice(0, 90)).join(" | ")}`);
}

// By keyboard alone: the first Tab is the way past the menu, and every link and field comes up with a visible focus.
async function walk(page) {
  await page.goto(`${address}/console/posters`);
  await page.keyboard.press("Tab");
  const first = await page.evaluate(() => document.activeElement.textContent);
  if (first !== "Skip to the page") found.push(`keyboard: the first stop is ${first}`);
  for (let stop = 0; stop < 40; stop += 1) {
    await page.keyboard.press("Tab");
    const [name, outline] = await page.evaluate(() => {
      const one = document.activeElement;
      return [one.outerHTML.slice(0, 80), one === document.body ? "end" : getComputedStyle(one).outlineStyle];
    });
    if (outline === "end") break;
    if (outline === "none") found.push(`keyboard: no visible focus on ${name}`);
  }
}

(async () => {
  const browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args: ["--no-sandbox"] });
  for (const [mode, width, colorScheme] of [["wide", 1200, "light"], ["phone", 390, "dark"]]) {
    // axe is put into the page from outside, which the pages' own policy forbids.
    const context = await browser.newContext({ viewport: { width, height: 900 }, colorScheme, bypassCSP: true });
    const page = await context.newPage();
    page.on("console", (message) => { if (message.type() === "error") found.push(`${page.url()} ${mode}: ${message.text()}`); });
    await page.goto(`${address}/console`);
    await page.fill("#token", token);
    await page.keyboard.press("Enter");
    await page.waitForSelector("nav");
    for (const path of pages) await look(page, path, mode);
    if (mode === "wide") await walk(page);
  }
  await browser.close();
  console.log(JSON.stringify(found));
})();
