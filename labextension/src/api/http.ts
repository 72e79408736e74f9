// The transport over HTTP: in JupyterLab through its server, on web pages straight to the backend.
import { readEvents } from './sse';
import { ApiError, OfflineError, type CallInit, type ServerEvent, type Transport } from './transport';
import type { ErrorBody } from './wire.gen';

/** `fetch`, or one that adds JupyterLab's own headers. */
export type Fetcher = (url: string, init: RequestInit) => Promise<Response>;

const SILENCE_MS = 30_000;

/** What a surface can do beside plain requests. */
export interface Abilities {
  start?: () => Promise<void>;
  socket?: (path: string) => WebSocket;
  /** Requests carry a key, so files can be kept, and are read by the way of the requests. */
  keepsFiles?: boolean;
}

const KEPT_FILE = /^https?:\/\/(?:127\.0\.0\.1|localhost|\[::1\])(?::\d+)?\/(files\/[0-9a-f]{32}\/[^/?#]+)$/;

/** Reaches a backend below `base`, which ends with a slash. */
export class HttpTransport implements Transport {
  readonly start?: () => Promise<void>;
  readonly socket?: (path: string) => WebSocket;
  readonly keepsFiles: boolean;

  constructor(
    private readonly base: string,
    private readonly fetcher: Fetcher,
    abilities: Abilities = {}
  ) {
    this.start = abilities.start;
    this.socket = abilities.socket;
    this.keepsFiles = abilities.keepsFiles ?? false;
  }

  /** A backend on the server's own machine is not on that of the browser. */
  show(url: string): string {
    const found = this.keepsFiles ? KEPT_FILE.exec(url) : null;
    return found ? this.base + found[1] : url;
  }

  get key(): string {
    return this.base;
  }

  async json<T>(path: string, init: { method?: string; body?: unknown; signal?: AbortSignal } = {}): Promise<T> {
    const response = await this.fetch(path, {
      method: init.method ?? 'GET',
      signal: init.signal,
      headers: init.body === undefined ? {} : { 'content-type': 'application/json' },
      body: init.body === undefined ? undefined : JSON.stringify(init.body)
    });
    if (!response.ok) {
      throw new ApiError(response.status, await readError(response));
    }
    return (await response.json()) as T;
  }

  call(path: string, init: CallInit): Promise<Response> {
    return this.fetch(path, init);
  }

  async *events(path: string, signal: AbortSignal, lastId?: string): AsyncGenerator<ServerEvent | 'open'> {
    const headers: Record<string, string> = { accept: 'text/event-stream' };
    if (lastId) {
      headers['last-event-id'] = lastId;
    }
    const response = await this.fetch(path, { method: 'GET', headers, signal });
    if (!response.ok) {
      throw new ApiError(response.status, await readError(response));
    }
    yield 'open';
    yield* readEvents(response, SILENCE_MS);
  }

  private async fetch(path: string, init: RequestInit): Promise<Response> {
    let response: Response;
    try {
      response = await this.fetcher(this.base + path, init);
    } catch (error) {
      if (init.signal?.aborted) {
        throw error;
      }
      throw new OfflineError(error instanceof Error ? error.message : String(error));
    }
    if (response.headers.get('x-fal-offline')) {
      const problem = await readError(response);
      const { address, command } = problem.details as { address?: string; command?: string };
      throw new OfflineError(problem.message, address ?? null, command ?? null);
    }
    return response;
  }
}

async function readError(response: Response): Promise<ErrorBody> {
  const blank = { code: 'http.' + response.status, fix: null, where: null, traceback: null, details: {} };
  try {
    const body = (await response.json()) as { error?: ErrorBody; detail?: unknown; message?: unknown };
    return body.error ?? { ...blank, message: String(body.detail ?? body.message ?? response.statusText) };
  } catch {
    return { ...blank, message: `HTTP ${response.status} ${response.statusText}` };
  }
}
