// The lines of a log: read once or followed, bounded, with the place to go on from.
import type { Transport } from '../api/transport';
import type { LogLine } from '../api/wire.gen';

const KEPT_LINES = 2_000;
const PAUSE_MS = 1_000;

/** Lines so far; the oldest go when there are too many. */
export interface LogView {
  lines: LogLine[];
  dropped: number;
  isEnded: boolean;
}

export type LogAction = { type: 'clear' } | { type: 'lines'; lines: LogLine[] } | { type: 'ended' };

export const NO_LOG: LogView = { lines: [], dropped: 0, isEnded: false };

/** Return the view after one action. */
export function reduceLog(view: LogView, action: LogAction): LogView {
  switch (action.type) {
    case 'clear':
      return NO_LOG;
    case 'lines': {
      const all = view.lines.concat(action.lines);
      const excess = Math.max(0, all.length - KEPT_LINES);
      return { lines: all.slice(excess), dropped: view.dropped + excess, isEnded: false };
    }
    case 'ended':
      return { ...view, isEnded: true };
  }
}

/** What to read: the log of one runner, of all of an app, or of an image's build. */
export type LogSource = { app: string } | { runner: string } | { image: string };

function pathOf(source: LogSource, follow: boolean): string {
  const flag = follow ? '1' : '0';
  if ('image' in source) {
    return `api/v1/images/${encodeURIComponent(source.image)}/log?follow=${flag}`;
  }
  const whose = 'app' in source ? `app=${encodeURIComponent(source.app)}` : `runner=${encodeURIComponent(source.runner)}`;
  return `api/v1/logs?${whose}&follow=${flag}`;
}

/** Send the log's lines to `dispatch`, again and again from the start when the stream breaks. */
export function followLog(
  transport: Transport,
  source: LogSource,
  follow: boolean,
  dispatch: (action: LogAction) => void
): () => void {
  const stop = new AbortController();
  void read(transport, pathOf(source, follow), follow, dispatch, stop.signal);
  return () => stop.abort();
}

async function read(
  transport: Transport,
  path: string,
  follow: boolean,
  dispatch: (action: LogAction) => void,
  signal: AbortSignal
): Promise<void> {
  do {
    const batch = new Batch(dispatch);
    try {
      for await (const item of transport.events(path, signal)) {
        if (item === 'open') {
          dispatch({ type: 'clear' });
        } else if (item.event === null) {
          batch.add(JSON.parse(item.data) as LogLine);
        } else {
          // `end`, or `error` for a log that is not there.
          batch.flush();
          dispatch({ type: 'ended' });
          return;
        }
      }
      batch.flush();
    } catch {
      // The card itself says that the backend is away; the log comes back with it.
      batch.flush();
    }
    await new Promise(resolve => setTimeout(resolve, PAUSE_MS));
  } while (follow && !signal.aborted);
}

/** Gathers lines so that a burst is drawn once. */
class Batch {
  private lines: LogLine[] = [];
  private timer: ReturnType<typeof setTimeout> | null = null;

  constructor(private readonly dispatch: (action: LogAction) => void) {}

  add(line: LogLine): void {
    this.lines.push(line);
    this.timer ??= setTimeout(() => this.flush(), 50);
  }

  flush(): void {
    if (this.timer) {
      clearTimeout(this.timer);
      this.timer = null;
    }
    if (this.lines.length) {
      this.dispatch({ type: 'lines', lines: this.lines });
      this.lines = [];
    }
  }
}
