// The lines of a log: read once, or followed with all else that the page watches; bounded.
import type { Transport } from '../api/transport';
import type { LogLine } from '../api/wire.gen';
import { watchOf } from './watch';

const KEPT_LINES = 2_000;

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

function pathOf(source: LogSource): string {
  if ('image' in source) {
    return `api/v1/images/${encodeURIComponent(source.image)}/log`;
  }
  return 'app' in source ? `api/v1/logs?app=${encodeURIComponent(source.app)}` : `api/v1/logs?runner=${encodeURIComponent(source.runner)}`;
}

function topicOf(source: LogSource): string {
  return 'image' in source ? `image/${source.image}` : 'app' in source ? `app/${source.app}` : `runner/${source.runner}`;
}

/** Send the log's lines to `dispatch`, once or for as long as it grows; returns how to end that. */
export function followLog(
  transport: Transport,
  source: LogSource,
  follow: boolean,
  dispatch: (action: LogAction) => void
): () => void {
  const batch = new Batch(dispatch);
  const leave = follow ? watch(transport, source, batch) : readOnce(transport, source, batch);
  return () => {
    leave();
    batch.drop();
  };
}

function watch(transport: Transport, source: LogSource, batch: Batch): () => void {
  return watchOf(transport).add(topicOf(source), {
    open: () => batch.begin(),
    item: event => batch.add(JSON.parse(event.data) as LogLine),
    ended: () => batch.end()
  });
}

function readOnce(transport: Transport, source: LogSource, batch: Batch): () => void {
  const stop = new AbortController();
  const read = async (): Promise<void> => {
    for await (const item of transport.events(pathOf(source), stop.signal)) {
      if (item === 'open') {
        batch.begin();
      } else if (item.event === null) {
        batch.add(JSON.parse(item.data) as LogLine);
      } else {
        // `end`, or `error` for a log that is not there.
        batch.end();
        return;
      }
    }
  };
  // The card itself says that the backend is away; the log comes back with it.
  read().catch(() => undefined);
  return () => stop.abort();
}

/** Gathers lines so that a burst is drawn once, and a log that is told again does not vanish in between. */
class Batch {
  private lines: LogLine[] = [];
  private timer: ReturnType<typeof setTimeout> | null = null;
  private hasBegun = false;
  private isAgain = false;

  constructor(private readonly dispatch: (action: LogAction) => void) {}

  /** The log is told from its first line now. */
  begin(): void {
    if (this.hasBegun) {
      this.isAgain = true;
      this.lines = [];
    } else {
      this.hasBegun = true;
      this.dispatch({ type: 'clear' });
    }
  }

  add(line: LogLine): void {
    this.lines.push(line);
    this.timer ??= setTimeout(() => this.flush(), 50);
  }

  end(): void {
    this.flush();
    this.dispatch({ type: 'ended' });
  }

  /** Nobody looks any more. */
  drop(): void {
    if (this.timer) {
      clearTimeout(this.timer);
      this.timer = null;
    }
    this.lines = [];
  }

  private flush(): void {
    const lines = this.lines;
    this.drop();
    if (lines.length) {
      if (this.isAgain) {
        this.isAgain = false;
        this.dispatch({ type: 'clear' });
      }
      this.dispatch({ type: 'lines', lines });
    }
  }
}
