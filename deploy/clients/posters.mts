// Show a user's posters and tell Pigeon about it; needs nothing but fetch.
// PIGEON_URL=http://127.0.0.1:8080 PIGEON_TOKEN=... node posters.mjs u1 m50,m51
interface Poster {
  item: string;
  source: "tonight" | "last_good" | "item" | "control";
  image_url: string | null;
  showing: string | null;
}
interface FeedbackEvent {
  showing: string;
  action: "impression" | "click" | "dismiss";
  position?: number;
}

const { PIGEON_URL: url, PIGEON_TOKEN: token } = process.env;

async function posters(user: string, items: string): Promise<Poster[]> {
  const where = `${url}/v1/users/${encodeURIComponent(user)}/posters?${new URLSearchParams({ items })}`;
  const answer = await fetch(where, { headers: { Authorization: `Bearer ${token}` } });
  if (!answer.ok) throw new Error(`${answer.status} ${await answer.text()}`);
  return ((await answer.json()) as { posters: Poster[] }).posters;
}

async function tell(events: FeedbackEvent[]): Promise<number> {
  const headers = { "Content-Type": "application/json" };
  const answer = await fetch(`${url}/v1/feedback`, { method: "POST", headers, body: JSON.stringify({ events }) });
  if (!answer.ok) throw new Error(`${answer.status} ${await answer.text()}`);
  return ((await answer.json()) as { accepted: number }).accepted;
}

const [user, items] = process.argv.slice(2);
const shown = await posters(user!, items!);
shown.forEach((one, place) => console.log(place, one.item, one.source, one.image_url));
const events: FeedbackEvent[] = shown.flatMap((one, position) =>
  one.showing ? [{ showing: one.showing, action: "impression" as const, position }] : []);
if (events.length) console.log("told:", await tell([...events, { ...events[0]!, action: "click" }]));
