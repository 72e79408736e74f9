// How a surface reaches a backend; the kernel's transport of later parts implements the same face.
import type { ErrorBody } from './wire.gen';

/** One server-sent event. */
export interface ServerEvent {
  data: string;
  id: string | null;
  event: string | null;
}

/** A call to an app and how to leave it. */
export interface CallInit {
  method: string;
  headers: Record<string, string>;
  body?: string | Blob;
  signal: AbortSignal;
}

/** Requests go to paths below the backend's root, without a leading slash. */
export interface Transport {
  /** Names the backend for caches that outlive a mount. */
  readonly key: string;
  /** Read or write the control API; throws ApiError or OfflineError. */
  json<T>(path: string, init?: { method?: string; body?: unknown; signal?: AbortSignal }): Promise<T>;
  /** Call an app; every HTTP answer is returned, only a missing backend throws OfflineError. */
  call(path: string, init: CallInit): Promise<Response>;
  /** Yield events until the stream ends or the signal fires. */
  events(path: string, signal: AbortSignal, lastId?: string): AsyncGenerator<ServerEvent | 'open'>;
  /** Ask the server to start its backend; undefined where this surface cannot. */
  start?(): Promise<void>;
  /** Open a websocket; undefined where this surface cannot. */
  socket?(path: string): WebSocket;
  /** Files may be kept with the backend: this surface has a key for that. */
  readonly keepsFiles?: boolean;
  /** Where this page reads a file that the backend keeps; other addresses stay as they are. */
  show?(url: string): string;
}

/** The backend answered with an error. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    readonly error: ErrorBody
  ) {
    super(error.message);
  }
}

/** No backend answered. */
export class OfflineError extends Error {
  constructor(
    message: string,
    readonly address: string | null = null,
    readonly command: string | null = null
  ) {
    super(message);
  }
}
