// Files that people pick: where they go, and what this page remembers of them.
//
// With a key they are kept with the backend and the input gets their address. A page without one puts small
// files into the request itself, as `data:` addresses.
import { createContext } from 'preact';
import { useContext } from 'preact/hooks';
import type { Transport } from '../api/transport';
import { upload, type Progress } from '../api/upload';
import { bytes } from './words';

/** What a form and its answers need to handle files. */
export interface FileDoor {
  /** Return the address to put into the input. Throws with a sentence for people. */
  take(file: File, report: (progress: Progress) => void, signal: AbortSignal): Promise<string>;
  /** Where this page reads an address. */
  show(url: string): string;
}

const PLAIN: FileDoor = { take: (file, report, signal) => intoRequest(file, report, signal), show: url => url };

const Door = createContext<FileDoor>(PLAIN);
export const FileDoorProvider = Door.Provider;

/** Return the door around a control or an output. */
export function useFileDoor(): FileDoor {
  return useContext(Door);
}

/** Return the door of a backend. */
export function doorOf(transport: Transport): FileDoor {
  return {
    take: transport.keepsFiles ? (file, report, signal) => upload(transport, file, report, signal) : PLAIN.take,
    show: url => transport.show?.(url) ?? url
  };
}

/** The largest file that goes into a request. */
export const INLINE_BYTES = 4_000_000;

async function intoRequest(file: File, report: (progress: Progress) => void, signal: AbortSignal): Promise<string> {
  if (file.size > INLINE_BYTES) {
    throw new Error(`This page has no key to keep files with. Up to ${bytes(INLINE_BYTES)} can go into the request itself; for larger files enter a URL.`);
  }
  const whole = new Uint8Array(await file.arrayBuffer());
  signal.throwIfAborted();
  report({ sent: file.size, total: file.size });
  const pieces: string[] = [];
  for (let start = 0; start < whole.length; start += 0x8000) {
    pieces.push(String.fromCharCode(...whole.subarray(start, start + 0x8000)));
  }
  return `data:${file.type || 'application/octet-stream'};base64,${btoa(pieces.join(''))}`;
}

/** What is known of a file by its address. */
export interface Known {
  name: string;
  size: number;
  /** An address of this page, where the bytes are at hand. */
  local: string | null;
}

const known = new Map<string, Known>();
const KEPT = 24;

/** Remember a picked file, so that it is shown without being fetched; only the newest keep their bytes. */
export function remember(url: string, file: File): void {
  known.delete(url);
  known.set(url, { name: file.name, size: file.size, local: URL.createObjectURL(file) });
  const [oldest] = known.keys();
  if (known.size > KEPT && oldest !== undefined) {
    URL.revokeObjectURL(known.get(oldest)?.local ?? '');
    known.delete(oldest);
  }
}

/** Return what is known of an address: of a typed one its last part. */
export function knownOf(url: string): Known {
  const found = known.get(url);
  if (found) {
    return found;
  }
  if (url.startsWith('data:')) {
    return { name: url.slice(5, Math.max(5, url.search(/[;,]/))) || 'data', size: Math.round((url.length - url.indexOf(',') - 1) * 0.75), local: null };
  }
  const last = /\/([^/?#]+)(?:[?#].*)?$/.exec(url)?.[1];
  return { name: last ? decoded(last) : url, size: 0, local: null };
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
