// Numbers and times in the interface's words: units always, digits to what can be trusted.

/** "6.4 ms", "76 ms", "4.02 s", "3 min 20 s". */
export function duration(ms: number): string {
  if (ms < 1_000) {
    return ms < 10 ? `${ms.toFixed(1)} ms` : `${Math.round(ms)} ms`;
  }
  const s = ms / 1_000;
  if (s < 60) {
    return `${s < 10 ? s.toFixed(2) : s.toFixed(1)} s`;
  }
  const minutes = Math.floor(s / 60);
  return minutes < 60 ? `${minutes} min ${Math.round(s % 60)} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** Seconds of a phase: "12 ms", "0.1 s", "12.4 s". */
export function seconds(s: number): string {
  if (s < 0.1) {
    return duration(s * 1_000);
  }
  return s < 60 ? `${s.toFixed(1)} s` : duration(s * 1_000);
}

/** Seconds of a step; under a millisecond there is nothing to tell. */
export function brief(s: number): string {
  return s < 0.001 ? 'at once' : s < 0.1 ? `${Math.round(s * 1_000)} ms` : seconds(s);
}

/** "0 s", "0.2 s", "2 min": a label of a time axis. */
export function tickText(s: number): string {
  return s < 60 || s % 60 ? `${Number(s.toPrecision(3))} s` : `${s / 60} min`;
}

/** "9.5 MB"; decimal units. */
export function bytes(size: number): string {
  const units = ['B', 'kB', 'MB', 'GB', 'TB'];
  const power = size < 1_000 ? 0 : Math.min(4, Math.floor(Math.log10(size) / 3));
  const value = size / 1_000 ** power;
  return `${power && value < 100 ? value.toFixed(1) : Math.round(value)} ${units[power]}`;
}

/** "198 of 320 MB, 4 s left"; without a guess until something has come through. */
export function left(sent: number, total: number, after_ms: number): string {
  const unit = bytes(total).split(' ')[1] ?? '';
  const [said, ofUnit] = bytes(sent).split(' ');
  const share = `${said}${ofUnit === unit ? '' : ' ' + ofUnit} of ${bytes(total)}`;
  if (!sent || sent >= total || after_ms < 500) {
    return share;
  }
  return `${share}, ${Math.max(1, Math.round(((total - sent) * after_ms) / sent / 1_000))} s left`;
}

/** "2 min ago" under a day, then a date. */
export function ago(then: number, now: number): string {
  const s = Math.max(0, Math.round((now - then) / 1_000));
  if (s < 60) {
    return `${s} s ago`;
  }
  const minutes = Math.round(s / 60);
  if (minutes < 60) {
    return `${minutes} min ago`;
  }
  const hours = Math.round(minutes / 60);
  return hours < 24 ? `${hours} h ago` : new Date(then).toLocaleDateString(undefined, { day: 'numeric', month: 'short' });
}

/** "12:04". */
export function clock(then: number): string {
  return new Date(then).toLocaleTimeString(undefined, { hour: '2-digit', minute: '2-digit' });
}

/** "12:04:31.114", for log lines. */
export function logTime(iso: string): string {
  const date = new Date(iso);
  const pad = (value: number, width = 2): string => String(value).padStart(width, '0');
  return `${pad(date.getHours())}:${pad(date.getMinutes())}:${pad(date.getSeconds())}.${pad(date.getMilliseconds(), 3)}`;
}

/** A number that was worked out, to six digits; whole ones as they are. */
export function digits(value: number): string {
  return String(Number.isInteger(value) ? value : Number(value.toPrecision(6)));
}

/** "1 runner", "2 runners". */
export function count(number: number, noun: string): string {
  return `${number} ${noun}${number === 1 ? '' : 's'}`;
}

/** "1 of 3 parts is new, 11.2 MB". */
export function uploadText(parts: number, isNew: number, size: number): string {
  const all = parts === 1 ? 'the one part' : `${parts} parts`;
  if (!isNew) {
    return `nothing new, ${all} there already`;
  }
  return `${isNew} of ${count(parts, 'part')} ${isNew === 1 ? 'is' : 'are'} new, ${bytes(size)}`;
}

/** What became of the calls during a rollout: "no failed request"; empty where they were not counted. */
export function callsText(calls: number | null, failed: number | null): string {
  if (calls === null || failed === null) {
    return '';
  }
  if (!calls) {
    return 'no request meanwhile';
  }
  return failed ? `${failed} of ${count(calls, 'request')} failed` : `no failed request of ${calls}`;
}

/** The beginning of a long id, as people compare them; the whole one belongs into the tooltip. */
export function shortId(id: string): string {
  return id.slice(0, 8);
}
