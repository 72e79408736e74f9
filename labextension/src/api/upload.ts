// Keeping a file with the backend: begun over its control of storage, sent in parts, so that each says how far it is.
//
// The address that comes back names the backend as others reach it; this page sends to the same path by its own way.
// Source: FAL protocol, "File storage"; fal-js.
import { ApiError, type Transport } from './transport';

/** A part of a large file; smaller files go in one. */
export const PART_BYTES = 8 * 1024 * 1024;

/** How many parts are on their way at once. */
const AT_ONCE = 2;

/** How far an upload is. */
export interface Progress {
  sent: number;
  total: number;
}

interface Begun {
  upload_url: string;
  file_url: string;
}

/** Return the address by which apps read the file. Throws ApiError, OfflineError, and what an abort throws. */
export async function upload(transport: Transport, file: File, report: (progress: Progress) => void, signal: AbortSignal): Promise<string> {
  const type = file.type || 'application/octet-stream';
  const isLarge = file.size > PART_BYTES;
  const begun = await transport.json<Begun>(`rest/storage/upload/initiate${isLarge ? '-multipart' : ''}?storage_type=fal-cdn-v3`, {
    method: 'POST',
    body: { file_name: plainName(file.name), content_type: type },
    signal
  });
  const { path, query } = wayOf(begun.upload_url);
  report({ sent: 0, total: file.size });
  if (isLarge) {
    const parts = await sendParts(transport, file, path, query, report, signal);
    await transport.json(`${path}/complete${query}`, { method: 'POST', body: { parts }, signal });
  } else {
    await put(transport, path + query, file, type, signal);
  }
  report({ sent: file.size, total: file.size });
  return begun.file_url;
}

/** A name that is no way around: the path that carries it must pass every proxy. */
function plainName(name: string): string {
  return name.replace(/[\\/]/g, '_').replace(/\.{2,}/g, '.') || 'file';
}

/** Return the path without its leading slash, and the query with its question mark. */
export function wayOf(url: string): { path: string; query: string } {
  const { pathname, search } = new URL(url);
  return { path: pathname.slice(pathname.indexOf('/files/') + 1), query: search };
}

interface Part {
  partNumber: number;
  etag: string;
}

async function sendParts(
  transport: Transport,
  file: File,
  path: string,
  query: string,
  report: (progress: Progress) => void,
  signal: AbortSignal
): Promise<Part[]> {
  const count = Math.ceil(file.size / PART_BYTES);
  const parts: Part[] = [];
  let next = 0;
  let sent = 0;
  const work = async (): Promise<void> => {
    while (next < count) {
      const number = next++;
      const piece = file.slice(number * PART_BYTES, (number + 1) * PART_BYTES);
      const answer = await put(transport, `${path}/${number + 1}${query}`, piece, 'application/octet-stream', signal);
      parts.push((await answer.json()) as Part);
      sent += piece.size;
      report({ sent, total: file.size });
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, work));
  return parts.sort((a, b) => a.partNumber - b.partNumber);
}

async function put(transport: Transport, path: string, body: Blob, type: string, signal: AbortSignal): Promise<Response> {
  const response = await transport.call(path, { method: 'PUT', headers: { 'content-type': type }, body, signal });
  if (!response.ok) {
    const said = (await response.json().catch(() => ({}))) as { detail?: unknown };
    const message = typeof said.detail === 'string' ? said.detail : `The upload was refused with status ${response.status}.`;
    throw new ApiError(response.status, { code: 'http.' + response.status, message, fix: null, where: null, traceback: null, details: {} });
  }
  return response;
}
