// The call in the form as curl and as Python; never with a key in it.
import type { Json } from '../form/normalise';
import { isRecord } from '../form/values';

/** What a snippet is made from. */
export interface SnippetCall {
  url: string;
  method: string;
  body: Json | undefined;
  needsKey: boolean;
  /** The answer was seen to be a stream of events. */
  isStream?: boolean;
}

/** The call for a shell. */
export function curl(call: SnippetCall): string {
  const lines = [`curl ${call.isStream ? '-N ' : ''}-X ${call.method} ${quote(call.url)}`];
  if (call.needsKey) {
    lines.push('-H "Authorization: Key $FAL_KEY"');
  }
  if (call.body !== undefined) {
    lines.push('-H "Content-Type: application/json"', `-d ${quote(JSON.stringify(call.body))}`);
  }
  return lines.join(' \\\n  ');
}

function quote(text: string): string {
  return `'${text.replace(/'/g, `'\\''`)}'`;
}

/** The call for Python with httpx. */
export function python(call: SnippetCall): string {
  const lines = [...(call.needsKey ? ['import os', ''] : []), 'import httpx', ''];
  return [...lines, ...(call.isStream ? streamed(call) : answered(call))].join('\n');
}

function answered(call: SnippetCall): string[] {
  const open = `response = httpx.${call.method.toLowerCase()}(`;
  return [open, ...given([literal(call.url)], call), ')', 'response.raise_for_status()', 'print(response.json())'];
}

function streamed(call: SnippetCall): string[] {
  return [
    'with httpx.stream(',
    ...given([literal(call.method), literal(call.url)], call),
    ') as response:',
    '    response.raise_for_status()',
    '    for line in response.iter_lines():',
    '        if line.startswith("data: "):',
    '            print(line.removeprefix("data: "))'
  ];
}

/** The arguments, one on each line. */
function given(first: string[], call: SnippetCall): string[] {
  const key = call.needsKey ? ['headers={"Authorization": f"Key {os.environ[\'FAL_KEY\']}"}'] : [];
  const body = call.body === undefined ? [] : [`json=${literal(call.body, 1)}`];
  return [...first, ...key, ...body, 'timeout=60'].map(line => `    ${line},`);
}

const WIDTH = 88;

/** A JSON value as a Python literal, on one line where it fits. */
export function literal(value: Json | undefined, depth = 0): string {
  if (value === null || value === undefined) {
    return 'None';
  }
  if (typeof value === 'boolean') {
    return value ? 'True' : 'False';
  }
  if (typeof value === 'string' || typeof value === 'number') {
    return JSON.stringify(value);
  }
  const isList = Array.isArray(value);
  const parts = isList
    ? value.map(item => literal(item, depth + 1))
    : Object.entries(isRecord(value) ? value : {}).map(([key, member]) => `${JSON.stringify(key)}: ${literal(member, depth + 1)}`);
  const [open, close] = isList ? ['[', ']'] : ['{', '}'];
  const flat = open + parts.join(', ') + close;
  if (flat.length + depth * 4 <= WIDTH || parts.length === 0 || (isList && value.every(item => typeof item === 'number'))) {
    return flat;
  }
  const indent = '    '.repeat(depth + 1);
  return `${open}\n${parts.map(part => indent + part + ',').join('\n')}\n${'    '.repeat(depth)}${close}`;
}

/** What the snippet of a session is made from. */
export interface SessionSnippet {
  app: string;
  path: string;
  url: string;
  body: Json;
  needsKey: boolean;
  isRealtime: boolean;
}

/** A session for Python: with fal's client, or a plain websocket. */
export function pythonSession(call: SessionSnippet): string {
  if (call.isRealtime) {
    const path = call.path === '/realtime' ? '' : `, path=${literal(call.path)}`;
    return [
      'import fal_client',
      '',
      `with fal_client.realtime(${literal(call.app)}${path}, use_jwt=False) as session:`,
      `    session.send(${literal(call.body, 1)})`,
      '    print(session.recv())'
    ].join('\n');
  }
  const key = call.needsKey ? [', additional_headers={"Authorization": f"Key {os.environ[\'FAL_KEY\']}"}'] : [''];
  return [
    ...(call.needsKey ? ['import os', ''] : []),
    'from websockets.sync.client import connect',
    '',
    `with connect(${literal(call.url)}${key[0]}) as socket:`,
    '    socket.send("hello")',
    '    print(socket.recv())'
  ].join('\n');
}

/** A session for JavaScript with fal's client. */
export function javascriptSession(call: SessionSnippet): string {
  const path = call.path === '/realtime' ? [] : [`  path: ${JSON.stringify(call.path)},`];
  return [
    'import { fal } from "@fal-ai/client";',
    '',
    `const live = fal.realtime.connect(${JSON.stringify(call.app)}, {`,
    ...path,
    '  tokenProvider: async (app) => fetchTokenFromYourServer(app),',
    '  onResult: (result) => console.log(result),',
    '  onError: (error) => console.error(error),',
    '});',
    `live.send(${JSON.stringify(call.body)});`
  ].join('\n');
}
