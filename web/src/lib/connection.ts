/** One WebSocket to Overwatch, and `GET` for history. Reconnects for ever, and says nothing it does not know. */
import { WIRE, type Request } from "./schema";

const KEY = "esper.token";

/** The token from the link's fragment, removed from the address bar and kept for this tab only. */
export function takeToken(): string | null {
  const fields = new URLSearchParams(location.hash.replace(/^#/, "").replace(/^[^?=&]*\?/, ""));
  const given = fields.get("token");
  if (given) {
    sessionStorage.setItem(KEY, given);
    const rest = location.hash.replace(/([#?&])token=[^&]*&?/, "$1").replace(/[?&]$/, "");
    history.replaceState(null, "", location.pathname + (rest === "#" ? "" : rest));
  }
  return sessionStorage.getItem(KEY);
}

/** A token that a person gave, kept for this tab. */
export function keepToken(token: string): string {
  sessionStorage.setItem(KEY, token);
  return token;
}

export async function get<T>(path: string, query: Record<string, string | number | undefined> = {}): Promise<T> {
  const known = Object.entries(query).filter(([, value]) => value !== undefined && value !== "");
  const search = new URLSearchParams(known.map(([name, value]) => [name, String(value)])).toString();
  return ask<T>(`${path}${search ? `?${search}` : ""}`);
}

/** Change something; the server answers with what it is now. */
export async function post<T>(path: string, query: Record<string, string>, body: unknown): Promise<T> {
  return ask<T>(`${path}?${new URLSearchParams(query)}`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
}

/** With this tab's token; what is not answered with is thrown as {@link Refused}. */
async function ask<T>(address: string, how: { method?: string; headers?: Record<string, string>; body?: string } = {}): Promise<T> {
  const headers = { Authorization: `Bearer ${sessionStorage.getItem(KEY) ?? ""}`, ...how.headers };
  const response = await fetch(address, { ...how, headers });
  if (!response.ok) throw new Refused(response.status, (await response.text()).trim() || response.statusText);
  return (await response.json()) as T;
}

/** The server answered, and not with what was asked for. */
export class Refused extends Error {
  constructor(
    readonly status: number,
    text: string,
  ) {
    super(text);
  }
}

export interface Listener {
  frame(data: ArrayBuffer): void;
  opened(): void;
  /** The connection ended, or did not come about: a browser does not say why, so the listener asks. */
  closed(reason: string, wasOpen: boolean): void;
}

export class Connection {
  private socket: WebSocket | null = null;
  private timer = 0;
  private wait = 250;
  private over = false;

  constructor(
    private readonly run: string | undefined,
    private readonly token: string,
    private readonly listener: Listener,
  ) {
    this.open();
  }

  /** Ask for something; lost while there is no contact, since the view is asked for anew on every opening. */
  ask(request: Request): void {
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(request));
  }

  close(): void {
    this.over = true;
    clearTimeout(this.timer);
    this.socket?.close();
  }

  private open(): void {
    const query = this.run === undefined ? "" : `?run=${encodeURIComponent(this.run)}`;
    // beside the page, wherever a proxy has put that
    const address = new URL(`ws${query}`, location.href.split("#")[0]);
    address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(address, [
      WIRE.protocol,
      WIRE.tokenPrefix + this.token,
    ]);
    socket.binaryType = "arraybuffer";
    let wasOpen = false;
    socket.onopen = () => {
      this.wait = 250;
      wasOpen = true;
      this.listener.opened();
    };
    socket.onmessage = (event) => this.listener.frame(event.data as ArrayBuffer);
    socket.onclose = (event) => {
      if (this.over) return;
      this.timer = window.setTimeout(() => this.open(), this.wait);
      this.wait = Math.min(this.wait * 2, 4000);
      this.listener.closed(event.reason, wasOpen);
    };
    this.socket = socket;
  }
}
